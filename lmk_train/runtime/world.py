"""The ranks that train together: how many there are, which one this is, and what they exchange."""

import inspect
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from lmk_data.errors import TrainingError, UserError
from lmk_data.system.terminal import EXIT_ERROR
from lmk_train.runtime.oom import is_out_of_memory
from lmk_train.runtime.peers import PEER_LOST, PeerWatch

Value = TypeVar("Value")
# gloo has no exception of its own; its messages begin like this when a connection breaks.
_CONNECTION_LOST = re.compile(r"gloo|Connection (closed|reset) by|connection (closed|reset)")
# How long one rank waits for another: longer than a checkpoint takes on slow storage, or a batch while a storage fails.
_PATIENCE = timedelta(minutes=30)


@dataclass(frozen=True)
class World:
    """One of the `size` ranks that torchrun started. With a single rank every method is a no-op."""

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this rank writes the files of the run."""
        return self.rank == 0

    def first_only(self, announce: Callable[[str], None]) -> Callable[[str], None]:
        """Return `announce` on the first rank, and a function that does nothing on the others."""
        return announce if self.is_first else lambda _: None

    def share(self, picks: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return this rank's contiguous part of a global batch."""
        return share(picks, self.rank, self.size)

    def largest_share(self, batch_size: int) -> int:
        """Return the largest number of samples of a global batch that any rank gets."""
        return -(-batch_size // self.size)

    def wrap(self, model: nn.Module, device: torch.device) -> nn.Module:
        """Return the model with its gradients averaged over the ranks.

        All of its parameters that require a gradient have to be used in each step. Gradients are views of what is sent
        to the other ranks, so that there is no second copy of them.
        """
        if self.size == 1:
            return model
        devices = [device.index or 0] if device.type == "cuda" else None
        known = inspect.signature(DistributedDataParallel.__init__).parameters
        batched: dict[str, Any] = {"batched_grad_copy": True} if "batched_grad_copy" in known else {}  # torch 2.14
        with warnings.catch_warnings():
            # The argument that replaces it copies the first rank's running statistics to all others here.
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            return DistributedDataParallel(
                model, device_ids=devices, broadcast_buffers=False, gradient_as_bucket_view=True, **batched
            )

    def sum(self, *values: float) -> list[float]:
        """Return the sum of each value over the ranks."""
        if self.size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        distributed.all_reduce(total)
        return [float(value) for value in total]

    def sum_tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the sum of a tensor of the host over the ranks."""
        if self.size == 1:
            return tensor
        total = tensor.clone()
        distributed.all_reduce(total)
        return total

    def max(self, value: int) -> int:
        """Return the largest value of any rank."""
        if self.size == 1:
            return value
        largest = torch.tensor(value)
        distributed.all_reduce(largest, distributed.ReduceOp.MAX)
        return int(largest)

    def min(self, value: int) -> int:
        """Return the smallest value of any rank."""
        return -self.max(-value)

    def gather(self, value: Value) -> list[Value]:
        """Return the values of all ranks, in order of rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        distributed.all_gather_object(values, value)
        return values

    def average_buffers(self, model: nn.Module) -> None:
        """Replace the running statistics of batch normalisation by their mean over the ranks."""
        if self.size == 1:
            return
        for buffer in model.buffers():
            if buffer.is_floating_point():
                mean = buffer.detach().to("cpu", torch.float64)
                distributed.all_reduce(mean)
                buffer.copy_(mean / self.size)

    def barrier(self) -> None:
        """Wait until every rank gets here."""
        if self.size > 1:
            distributed.barrier()


SINGLE = World()


def local_rank() -> int:
    """Return this rank's number on its machine, which is the number of its CUDA device."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def under_torchrun() -> bool:
    """Return whether torchrun, or something else that sets its variables, started this process."""
    return "WORLD_SIZE" in os.environ


@contextmanager
def joined_world(device: torch.device) -> Iterator[World]:
    """Join the ranks that torchrun started; without torchrun there is a single rank.

    On CUDA, NCCL carries the gradients and gloo everything else; on the CPU, gloo carries everything.

    The group is destroyed on success only: on NCCL that waits for all other ranks, which wait for this one. After an
    exception the process has to end without exit handlers, as `run_as_rank` does.

    Raises:
        UserError: torchrun's variables do not make sense.
        TrainingError: another rank ended or cannot be reached.
    """
    if not under_torchrun():
        yield SINGLE
        return
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    try:
        distributed.init_process_group(backend, timeout=_PATIENCE)
        world = World(distributed.get_rank(), distributed.get_world_size())
        watch = PeerWatch(world.rank, world.size)
    except (ValueError, RuntimeError) as error:
        raise UserError(f"the processes of torchrun did not find each other: {error}") from error
    try:
        yield world
        watch.finish()
    except BaseException as error:
        watch.leave(agreed=isinstance(error, KeyboardInterrupt))
        if _is_of_another_rank(error):
            raise TrainingError(PEER_LOST) from error
        raise
    distributed.destroy_process_group()


def run_as_rank(command: Callable[[], int]) -> int:
    """Return the exit code of a command; if it failed as one of several ranks, end the process with that code instead.

    The process then ends without exit handlers and destructors: those of NCCL wait for ranks that wait for this one.
    """
    try:
        code = command()
    except Exception:
        if not distributed.is_initialized():
            raise
        traceback.print_exc()
        code = EXIT_ERROR
    if distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _is_of_another_rank(error: BaseException) -> bool:
    """Return whether an error says that another rank ended or cannot be reached."""
    if not isinstance(error, RuntimeError) or is_out_of_memory(error):
        return False
    return isinstance(error, distributed.DistError) or bool(_CONNECTION_LOST.search(str(error)))


def share(picks: NDArray[np.int64], part: int, parts: int) -> NDArray[np.int64]:
    """Return part `part` of `parts` near-equal contiguous parts: a rank's share of a batch, or a micro-batch."""
    return picks[len(picks) * part // parts : len(picks) * (part + 1) // parts]
