"""Out-of-memory in all its forms, as one line that says what to change."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from lmk_data.errors import TrainingError

# Only the allocator of CUDA tensors raises torch.OutOfMemoryError. CUDA, cuBLAS, cuDNN and NCCL, which allocate memory
# themselves, and the allocator of the host have their own words. cuDNN finds no engine if none fits into what is left.
_SAID = re.compile(
    r"out of memory|cudaErrorMemoryAllocation|CU(BLAS|DNN|SPARSE|SOLVER)_STATUS_ALLOC_FAILED|"
    r"unable to find an engine|DefaultCPUAllocator: (can't allocate|not enough) memory",
    re.IGNORECASE,
)
_SENTENCES = 3  # of CUDA's allocator: what happened, how much was wanted, how much there is; advice on its use follows


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that the memory of the device or of the host does not suffice."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and bool(_SAID.search(str(error)))


@contextmanager
def oom_as_training_error(advice: str) -> Iterator[None]:
    """Turn out-of-memory into a TrainingError of one line; `advice` says what to change."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise TrainingError(f"out of memory ({_reason(error)}); {advice}") from error


def _reason(error: BaseException) -> str:
    """Return the sentences of a message that say what was out of memory, and of how much."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = next((line for line in lines if _SAID.search(line)), lines[0] if lines else "on the host")
    return ". ".join(line.split(". ")[:_SENTENCES]).removesuffix(".")
