"""Heads and their gradients."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from lmk_train.models import heads
from lmk_train.models.heads import Classifier, CosineHead, SubcenterHead, make_neck


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


@pytest.mark.parametrize("rows_at_once", [1, 3, 7])
def test_subcenter_head_and_its_gradients_are_those_of_the_largest_of_all_cosines(
    rows_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heads, "_PART_BYTES", rows_at_once * 3 * 12 * 8)
    generator = torch.Generator().manual_seed(0)
    head = SubcenterHead(12, 7, scale=30.0, num_centers=3).double()
    features = torch.randn(5, 12, dtype=torch.float64, generator=generator, requires_grad=True)
    upstream = torch.randn(5, 7, dtype=torch.float64, generator=generator)
    logits = head(features)
    cosines = torch.einsum("bd,kcd->bkc", functional.normalize(features), functional.normalize(head.weight, dim=2))
    plain = 30.0 * cosines.amax(dim=2)
    assert len(cosines.argmax(dim=2).unique()) == 3
    torch.testing.assert_close(logits, plain)
    with torch.no_grad():
        torch.testing.assert_close(head(features), plain)
    found = torch.autograd.grad(logits, (features, head.weight), upstream)
    expected = torch.autograd.grad(plain, (features, head.weight), upstream)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert torch.autograd.gradcheck(head, (features,))


def test_one_center_is_the_cosine_head() -> None:
    cosine, single = CosineHead(12, 7, 30.0), SubcenterHead(12, 7, 30.0, num_centers=1)
    single.load_state_dict({"weight": cosine.weight[:, None]})
    features = torch.randn(5, 12, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(single(features), cosine(features))


def test_a_neck_takes_features_and_trains_while_the_backbone_is_frozen() -> None:
    model = Classifier(nn.Identity(), nn.Linear(4, 3), 0.0, make_neck(12, 4))
    model.freeze(True)
    features = torch.randn(8, 12, generator=torch.Generator().manual_seed(0))
    model(features).sum().backward()
    assert all(parameter.grad is not None for parameter in model.neck.parameters())
    narrow = model.neck(features)
    torch.testing.assert_close(narrow.mean(dim=0), torch.zeros(4), atol=1e-5, rtol=0)
    assert set(model.state_dict()) > {"head.weight", "neck.0.weight", "neck.1.running_mean"}
    assert not any("neck" in name for name in Classifier(nn.Identity(), nn.Linear(12, 3), 0.0).state_dict())
