"""The devices that tests run on: always the CPU, which proves that a test is sound, and CUDA where there is one."""

import pytest
import torch

ON_CUDA = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
every_device = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=ON_CUDA)])
"""Runs a test as `device`; `-m cuda` selects the runs on CUDA."""
every_precision = pytest.mark.parametrize(
    ("device", "amp"),
    [
        pytest.param("cpu", "fp16", marks=pytest.mark.slow),  # the CPU has no fast kernels for it
        ("cpu", "bf16"),
        ("cpu", "off"),
        *(pytest.param("cuda", amp, marks=ON_CUDA) for amp in ("fp16", "bf16", "off")),
    ],
)
"""Runs a test as `device` and `amp`."""
_AMPERE = (8, 0)  # the first compute capability with bfloat16


def skip_without_bfloat16(device: str, amp: str) -> None:
    """Skip a test of bfloat16 on a card that has none."""
    if device == "cuda" and amp == "bf16" and torch.cuda.get_device_capability() < _AMPERE:
        pytest.skip("bfloat16 needs compute capability 8.0")
