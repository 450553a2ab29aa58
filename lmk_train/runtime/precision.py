"""The device and the precision of training, evaluation and prediction."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import torch

from lmk_data.errors import TrainingError, UserError
from lmk_train.runtime.world import local_rank

_AMPERE = (8, 0)  # the first CUDA compute capability with bfloat16


@dataclass(frozen=True)
class Precision:
    """A device and the 16-bit dtype of autocast on it; None computes in float32."""

    device: torch.device
    dtype: torch.dtype | None

    @classmethod
    def resolve(cls, amp: str, device: torch.device) -> "Precision":
        """Return the precision of an `--amp` value: `fp16`, `bf16`, `off` or `auto`.

        `auto` is bfloat16 where the device supports it, else float16 on CUDA, else float32.
        """
        dtypes = {"fp16": torch.float16, "bf16": torch.bfloat16, "off": None}
        return cls(device, dtypes[amp] if amp in dtypes else _automatic_dtype(device))

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context of a forward pass."""
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None)

    def grad_scaler(self) -> torch.amp.GradScaler:
        """Return a gradient scaler, which is disabled unless the dtype is float16."""
        return torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)

    def __str__(self) -> str:
        return str(self.dtype).removeprefix("torch.") if self.dtype else "float32"


def resolve_device(name: str) -> torch.device:
    """Return the device of a `--device` value: `cpu`, `cuda` or `auto`, which is CUDA if there is one.

    Under torchrun each rank of a machine gets its own CUDA device. Also turns TF32 off, so that float32 is float32 from
    here on: PyTorch uses TF32 for convolutions by default, and for matrix products if an environment variable says so.

    Raises:
        UserError: the device does not exist.
    """
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: no CUDA device is there; leave it out to use the CPU")
    if name == "cpu":
        return torch.device(name)
    number = local_rank()
    if number >= torch.cuda.device_count():
        raise UserError(
            f"local rank {number} has no CUDA device: this machine has {torch.cuda.device_count()}; "
            "start fewer processes"
        )
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


def _automatic_dtype(device: torch.device) -> torch.dtype | None:
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability(device) >= _AMPERE else torch.float16
    return torch.bfloat16 if _cpu_has_bfloat16() else None


def _cpu_has_bfloat16() -> bool:
    if hasattr(torch.cpu, "get_capabilities"):
        return bool(torch.cpu.get_capabilities().get("avx512_bf16", False))
    return bool(torch.cpu._is_avx512_bf16_supported())  # torch 2.8 has no get_capabilities
