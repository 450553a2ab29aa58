"""Copies between the host and the device of which neither waits for the other."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch
from numpy.typing import NDArray


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a tensor of the host on the device, without waiting for the device; itself if that is the host."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)  # the host waits for copies from memory that is not pinned


def pin(memory: NDArray[Any], device: torch.device) -> Callable[[], None] | None:
    """Have CUDA pin memory of the host where it is, for copies to a device.

    Returns what ends that, or None where CUDA cannot do it.
    """
    cudart = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    address = memory.ctypes.data
    if cudart.cudaHostRegister(address, memory.nbytes, 0) != cudart.cudaError.success:
        with suppress(RuntimeError):  # CUDA tells the next operation of the error too
            torch.zeros(1, device=device)
        return None

    def unpin() -> None:
        with suppress(RuntimeError):  # a device that has failed says so with every call
            torch.cuda.synchronize(device)  # copies may be under way
        cudart.cudaHostUnregister(address)

    return unpin


class CopyStream:
    """Copies to a CUDA device on a stream of their own: they run beside what is computed there."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def __call__(self, *pinned: torch.Tensor) -> tuple[list[torch.Tensor], torch.cuda.Event]:
        """Return pinned tensors on the device, and an event after which their memory on the host may be used again.

        What is computed from here on waits for the copies; the host does not.
        """
        computing = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._stream):
            copies = [tensor.to(self._device, non_blocking=True) for tensor in pinned]
            copied = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            copied.record()
        computing.wait_stream(self._stream)
        for copy in copies:  # or their memory would be taken for the next copies while it is still read
            copy.record_stream(computing)
        return copies, copied


class ToHost:
    """Tensors on their way to the host: their copies are queued at once and waited for in `arrays`."""

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        self._copies, self._done = list(tensors), None
        if tensors[0].device.type == "cuda":
            pinned = (torch.empty(one.shape, dtype=one.dtype, pin_memory=True) for one in tensors)
            self._copies = [copy.copy_(one, non_blocking=True) for copy, one in zip(pinned, tensors, strict=True)]
            # `blocking`: the host sleeps, and does not take the time of the threads that decode.
            self._done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            self._done.record()

    def arrays(self) -> list[NDArray[Any]]:
        """Return the tensors as arrays, in the order given; waits for their copies alone."""
        if self._done is None:
            return [copy.numpy() for copy in self._copies]
        self._done.synchronize()
        return [copy.numpy().copy() for copy in self._copies]  # returns the pinned memory
