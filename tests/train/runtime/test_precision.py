"""Precision of float32."""

import pytest
import torch

from lmk_train.runtime.precision import Precision, resolve_device


def test_float32_is_not_rounded_to_tf32() -> None:
    """Whatever was chosen before, by a variable of the environment too."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    resolve_device("cpu")
    assert not torch.backends.cuda.matmul.allow_tf32
    assert not torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize(("has_it", "dtype"), [(True, torch.bfloat16), (False, None)])
def test_an_older_torch_knows_bfloat16_of_the_cpu_too(
    monkeypatch: pytest.MonkeyPatch, has_it: bool, dtype: torch.dtype | None
) -> None:
    """torch 2.8 has no `torch.cpu.get_capabilities`."""
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_it)
    assert Precision.resolve("auto", torch.device("cpu")).dtype == dtype
