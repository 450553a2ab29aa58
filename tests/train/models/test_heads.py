"""Heads and their gradients."""

import pytest
import torch
from torch.nn import functional

from lmk_train.models import heads
from lmk_train.models.heads import CosineHead


@pytest.mark.parametrize("rows_at_once", [1, 3, 7])
def test_cosine_head_and_its_gradients_are_those_of_normalised_weights(
    rows_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heads, "_PART_BYTES", rows_at_once * 12 * 8)
    generator = torch.Generator().manual_seed(0)
    head = CosineHead(12, 7, scale=30.0).double()
    features = torch.randn(5, 12, dtype=torch.float64, generator=generator, requires_grad=True)
    upstream = torch.randn(5, 7, dtype=torch.float64, generator=generator)
    logits = head(features)
    plain = 30.0 * functional.normalize(features) @ functional.normalize(head.weight).T
    torch.testing.assert_close(logits, plain)
    found = torch.autograd.grad(logits, (features, head.weight), upstream)
    expected = torch.autograd.grad(plain, (features, head.weight), upstream)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert torch.autograd.gradcheck(head, (features,))
    assert logits.abs().max() <= 30.0 + 1e-9
