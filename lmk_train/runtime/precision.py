"""The device and the precision of training, evaluation and prediction."""

import re
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from lmk_data.errors import UserError
from lmk_train.runtime.world import local_rank

_AMPERE = (8, 0)  # the first CUDA compute capability with bfloat16
_CODE = re.compile(r"(?P<kind>sm|compute)_(?P<major>\d+)(?P<minor>\d)(?P<suffix>[af]?)")


@dataclass(frozen=True)
class Precision:
    """A device and the 16-bit dtype of autocast on it; None computes in float32."""

    device: torch.device
    dtype: torch.dtype | None

    @classmethod
    def resolve(cls, amp: str, device: torch.device) -> "Precision":
        """Return the precision of an `--amp` value: `fp16`, `bf16`, `off` or `auto`.

        `auto` is bfloat16 where the device supports it, else float16 on CUDA, else float32. Raises UserError for
        bfloat16 on a CUDA device that has none.
        """
        if amp == "bf16" and device.type == "cuda" and (capability := _capability(device)) < _AMPERE:
            raise UserError(
                f"--amp bf16: {torch.cuda.get_device_name(device)} has compute capability {_dotted(capability)}, and "
                f"bfloat16 needs {_dotted(_AMPERE)}; give --amp fp16 (a run that is resumed keeps its precision and "
                "needs a newer device)"
            )
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


def device_type(name: str) -> str:
    """Return `cpu` or `cuda` for a `--device` value. Does not use the device, which would take memory of it.

    Raises:
        UserError: there is no such device.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: no CUDA device is there; leave it out to use the CPU")
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return name


def resolve_device(name: str) -> torch.device:
    """Return the device of a `--device` value: `cpu`, `cuda` or `auto`, which is CUDA if there is one.

    Under torchrun each rank of a machine gets its own CUDA device. Also turns TF32 off, so that float32 is float32 from
    here on: PyTorch uses TF32 for convolutions by default, and for matrix products if an environment variable says so.

    Raises:
        UserError: the device does not exist, or the installed torch has no code for it.
    """
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    kind = device_type(name)
    if kind == "cpu":
        return torch.device(kind)
    number = local_rank()
    if number >= torch.cuda.device_count():
        raise UserError(
            f"local rank {number} has no CUDA device: this machine has {torch.cuda.device_count()}; "
            "start fewer processes"
        )
    torch.cuda.set_device(number)
    device = torch.device(kind, number)
    capability, code = _capability(device), torch.cuda.get_arch_list()
    if torch.version.hip is None and code and not any(_runs(one, capability) for one in code):
        raise UserError(
            f"{torch.cuda.get_device_name(device)} has compute capability {_dotted(capability)}, and the installed "
            f"torch {torch.__version__} has code for {' '.join(code)} only; install a torch that has it, or give "
            "--device cpu"
        )
    return device


def _automatic_dtype(device: torch.device) -> torch.dtype | None:
    if device.type == "cuda":
        return torch.bfloat16 if _capability(device) >= _AMPERE else torch.float16
    return torch.bfloat16 if _cpu_has_bfloat16() else None


def _cpu_has_bfloat16() -> bool:
    if hasattr(torch.cpu, "get_capabilities"):
        return bool(torch.cpu.get_capabilities().get("avx512_bf16", False))
    return bool(torch.cpu._is_avx512_bf16_supported())  # torch 2.8 has no get_capabilities


def _capability(device: torch.device) -> tuple[int, int]:
    """Return the compute capability of a CUDA device, (major, minor)."""
    return torch.cuda.get_device_capability(device)


def _runs(code: str, capability: tuple[int, int]) -> bool:
    """Return whether a device runs code that torch has, such as `sm_86` or `compute_90`.

    Machine code (sm) runs on devices of the same major version and at least the same minor one; PTX (compute) is
    compiled by the driver for any later device. An `a` behind the version restricts both to that device, an `f` to its
    major version.
    """
    match = _CODE.fullmatch(code)
    if match is None:
        return False
    built_for = int(match["major"]), int(match["minor"])
    if match["suffix"] == "a":
        return capability == built_for
    if match["kind"] == "compute" and not match["suffix"]:
        return capability >= built_for
    return capability[0] == built_for[0] and capability >= built_for


def _dotted(capability: tuple[int, int]) -> str:
    return f"{capability[0]}.{capability[1]}"
