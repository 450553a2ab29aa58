"""Out-of-memory, however it is said."""

import pytest
import torch

from lmk_data.errors import TrainingError
from lmk_train.runtime.oom import oom_as_training_error


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 8.00 GiB.\nmore"), "CUDA out of memory. Tried"),
        (
            torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 98.00 MiB. GPU 0 has a total capacity of 139.80 GiB of which "
                "132.99 GiB is free. Including non-PyTorch memory, this process has 6.81 GiB memory in use. See it."
            ),
            "CUDA out of memory. Tried to allocate 98.00 MiB. GPU 0 has a total capacity of 139.80 GiB of which "
            "132.99 GiB is free); take less",
        ),
        (
            torch.AcceleratorError("CUDA error: out of memory\nSearch for `cudaErrorMemoryAllocation'"),
            "CUDA error: out",
        ),
        (
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
            "CUDA error: CUBLAS",
        ),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), "cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        (RuntimeError("GET was unable to find an engine to execute this computation"), "GET was unable"),
        (
            RuntimeError("NCCL error, unhandled cuda error\nLast error:\nCuda failure 2 'out of memory'"),
            "Cuda failure 2",
        ),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
            "[enforce fail] Default",
        ),
        (MemoryError("Unable to allocate 8.00 GiB for an array"), "Unable to allocate 8.00 GiB"),
        (MemoryError(), "on the host"),
    ],
)
def test_every_form_is_a_line_that_says_what_to_change(error: Exception, reason: str) -> None:
    with pytest.raises(TrainingError) as caught, oom_as_training_error("take less"):
        raise error
    said = str(caught.value)
    assert said.startswith(f"out of memory ({reason}")
    assert said.endswith("); take less")
    assert "\n" not in said


@pytest.mark.parametrize(
    "error", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("out of memory")]
)
def test_other_errors_stay_what_they_are(error: Exception) -> None:
    with pytest.raises(type(error), match=str(error)), oom_as_training_error("take less"):
        raise error
