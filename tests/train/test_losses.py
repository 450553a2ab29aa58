import math

import numpy as np
import pytest
import torch

from lmk_train.losses import LDAM, CrossEntropy, ldam_margins

COUNTS = np.array([1000, 300, 16, 1, 0])


def ldam_by_the_paper(logits: "np.ndarray[tuple[int, int], np.dtype[np.float64]]", target: int, margin: float) -> float:
    """-log( exp(z_y - D_y) / (exp(z_y - D_y) + sum over j != y of exp(z_j)) ) in float64."""
    row = logits.astype(np.float64).copy().ravel()
    row[target] -= margin
    top = row.max()
    return float(-(row[target] - top - math.log(np.exp(row - top).sum())))


def test_margins_are_the_papers() -> None:
    margins = ldam_margins(COUNTS, 0.5)
    constant = 0.5 * 1**0.25
    expected = [constant / n**0.25 if n else 0.0 for n in COUNTS]
    np.testing.assert_allclose(margins.numpy(), expected, rtol=1e-6)
    assert ldam_margins(np.array([81, 16]), 0.3).tolist() == pytest.approx([0.2, 0.3])


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_ldam_is_the_papers_formula(scale: float) -> None:
    random = np.random.default_rng(0)
    logits = torch.from_numpy(random.normal(0, 3, (8, 5))).float()
    targets = torch.from_numpy(random.integers(0, 5, 8))
    margins = ldam_margins(COUNTS, 0.5)
    loss = LDAM(margins, scale)(logits, targets)
    by_hand = [ldam_by_the_paper(logits[i].numpy(), int(t), scale * float(margins[t])) for i, t in enumerate(targets)]
    assert loss.item() == pytest.approx(np.mean(by_hand), rel=1e-5)


def test_ldam_gradient_agrees_with_finite_differences() -> None:
    logits = torch.randn(4, 5, dtype=torch.float64, requires_grad=True, generator=torch.Generator().manual_seed(0))
    criterion = LDAM(ldam_margins(COUNTS, 0.5).double(), 30.0)
    targets = torch.tensor([0, 3, 4, 2])
    assert torch.autograd.gradcheck(lambda z: criterion(z, targets), (logits,))


@pytest.mark.parametrize("size", [1e-30, 1e4, 1e30])
def test_huge_and_tiny_logits_stay_finite(size: float) -> None:
    logits = (torch.randn(4, 5, generator=torch.Generator().manual_seed(0)) * size).requires_grad_()
    targets = torch.tensor([0, 3, 4, 2])
    for criterion in (LDAM(ldam_margins(COUNTS, 0.5), 30.0), CrossEntropy(0.1)):
        loss = criterion(logits, targets)
        assert torch.isfinite(loss)
        (gradient,) = torch.autograd.grad(loss, logits)
        assert torch.isfinite(gradient).all()


def test_without_margin_ldam_is_cross_entropy() -> None:
    logits, targets = torch.randn(6, 5), torch.randint(0, 5, (6,))
    assert LDAM(torch.zeros(5), 30.0)(logits, targets) == CrossEntropy()(logits, targets)
