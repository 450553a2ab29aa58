"""Where to compute and in which precision: one device-neutral answer for training, evaluation and prediction."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import torch

from lmk_data.errors import TrainingError, UserError
from lmk_train.runtime.world import local_rank

_AMPERE = (8, 0)


@dataclass(frozen=True)
class Precision:
    """The device and the 16-bit type of autocast; None computes in float32."""

    device: torch.device
    dtype: torch.dtype | None

    @classmethod
    def resolve(cls, amp: str, device: torch.device) -> "Precision":
        """`auto` takes bfloat16 where the device computes with it, else float16 on CUDA, else float32."""
        chosen = {"fp16": torch.float16, "bf16": torch.bfloat16, "off": None}
        return cls(device, chosen[amp] if amp in chosen else _automatic(device))

    def autocast(self) -> AbstractContextManager[object]:
        """The context of a forward pass."""
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None)

    def grad_scaler(self) -> torch.amp.GradScaler:
        """A gradient scaler that does something for float16 only."""
        return torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)

    def __str__(self) -> str:
        return str(self.dtype).removeprefix("torch.") if self.dtype else "float32"


def resolve_device(name: str) -> torch.device:
    """The device of that name; `auto` takes CUDA if there is one. UserError if it is not there.

    Under torchrun each process of a machine takes a device of its own. float32 is float32 from here on: TF32, which
    PyTorch takes for convolutions and an environment variable for products, is off.
    """
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: no CUDA device is there; leave it out to train on the CPU")
    if name == "cpu":
        return torch.device(name)
    number = local_rank()
    if number >= torch.cuda.device_count():
        raise UserError(f"process {number} of this machine has no CUDA device; it has {torch.cuda.device_count()}")
    torch.cuda.set_device(number)
    return torch.device(name, number)


@contextmanager
def oom_as_training_error() -> Iterator[None]:
    """Turn a device's running out of memory into a TrainingError that says what to do."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            f"out of memory ({str(error).splitlines()[0]}); a smaller --batch-size needs less, in training also "
            "--grad-accum 2, whose updates are the same"
        ) from error


def _automatic(device: torch.device) -> torch.dtype | None:
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability(device) >= _AMPERE else torch.float16
    return torch.bfloat16 if torch.cpu.get_capabilities().get("avx512_bf16", False) else None
