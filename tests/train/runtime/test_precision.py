"""Precision of float32."""

import torch

from lmk_train.runtime.precision import resolve_device


def test_float32_is_not_rounded_to_tf32() -> None:
    """Whatever was chosen before, by a variable of the environment too."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    resolve_device("cpu")
    assert not torch.backends.cuda.matmul.allow_tf32
    assert not torch.backends.cudnn.allow_tf32
