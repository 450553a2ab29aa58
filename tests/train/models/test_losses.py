import copy
import math
from decimal import Decimal, getcontext

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from lmk_train.models.losses import (
    LDAM,
    ArcFace,
    BalancedSoftmax,
    CrossEntropy,
    arcface_margins,
    drw_weights,
    ldam_margins,
    log_prior,
)

COUNTS = np.array([1000, 300, 16, 1, 0])
CRITERIA = (
    LDAM(ldam_margins(COUNTS, 0.5), 30.0),
    CrossEntropy(0.1),
    BalancedSoftmax(log_prior(COUNTS)),
    ArcFace(arcface_margins(COUNTS, 0.5, 0.05), 30.0),
)


def ldam_by_the_paper(logits: NDArray[np.float64], target: int, margin: float) -> float:
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
    losses = LDAM(margins, scale)(logits, targets)
    by_hand = [ldam_by_the_paper(logits[i].numpy(), int(t), scale * float(margins[t])) for i, t in enumerate(targets)]
    assert losses.tolist() == pytest.approx(by_hand, rel=1e-5)


@pytest.mark.parametrize("criterion", CRITERIA, ids=lambda criterion: type(criterion).__name__)
def test_gradients_agree_with_finite_differences(criterion: nn.Module) -> None:
    logits = torch.randn(4, 5, dtype=torch.float64, requires_grad=True, generator=torch.Generator().manual_seed(0))
    exact, targets = copy.deepcopy(criterion).double(), torch.tensor([0, 3, 4, 2])
    assert torch.autograd.gradcheck(lambda z: exact(z, targets), (logits,))


@pytest.mark.parametrize("size", [1e-30, 1e4, 1e30])
def test_huge_and_tiny_logits_stay_finite(size: float) -> None:
    logits = (torch.randn(4, 5, generator=torch.Generator().manual_seed(0)) * size).requires_grad_()
    targets = torch.tensor([0, 3, 4, 2])
    for criterion in CRITERIA:
        loss = criterion(logits, targets).sum()
        assert torch.isfinite(loss)
        (gradient,) = torch.autograd.grad(loss, logits)
        assert torch.isfinite(gradient).all()


def test_without_margin_ldam_is_cross_entropy() -> None:
    logits, targets = torch.randn(6, 5), torch.randint(0, 5, (6,))
    assert torch.equal(LDAM(torch.zeros(5), 30.0)(logits, targets), CrossEntropy()(logits, targets))
    assert torch.equal(BalancedSoftmax(torch.zeros(5))(logits, targets), CrossEntropy()(logits, targets))


def test_angular_margins_are_the_papers() -> None:
    """a n^(-1/4) + b radians; a class without training samples has the smallest."""
    expected = [0.5 / n**0.25 + 0.05 if n else 0.05 for n in COUNTS]
    np.testing.assert_allclose(arcface_margins(COUNTS, 0.5, 0.05).numpy(), expected, rtol=1e-6)


def test_arcface_is_the_papers_formula_by_angles() -> None:
    """-log softmax with s cos(t + m) at the target, angles in float64; beyond pi the line that falls."""
    random = np.random.default_rng(0)
    cosines, targets = random.uniform(-1, 1, (400, 5)), random.integers(0, 5, 400)
    margins = arcface_margins(COUNTS, 1.0, 0.2).double().numpy()
    logits = 30 * cosines
    beyond = 0
    for row, target in enumerate(targets):
        angle = math.acos(cosines[row, target]) + margins[target]
        fallen = cosines[row, target] - margins[target] * math.sin(margins[target])
        logits[row, target] = 30 * (math.cos(angle) if angle < math.pi else fallen)
        beyond += angle >= math.pi
    top = logits.max(axis=1)
    expected = top + np.log(np.exp(logits - top[:, None]).sum(axis=1)) - logits[np.arange(400), targets]
    given = torch.from_numpy(30 * cosines).float()
    losses = ArcFace(arcface_margins(COUNTS, 1.0, 0.2), 30.0)(given, torch.from_numpy(targets))
    assert beyond > 20
    np.testing.assert_allclose(losses.numpy(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("margin", [0.05, 0.55, 1.5])
def test_arcface_asks_more_the_wider_the_angle(margin: float) -> None:
    """The target's logit falls all the way from angle 0 to pi, and is never above the plain one."""
    cosines = torch.cos(torch.linspace(0.01, math.pi - 0.01, 500))
    criterion = ArcFace(torch.tensor([margin, 0.0]), 30.0)
    logits = torch.stack([30 * cosines, torch.zeros(500)], dim=1)
    losses = criterion(logits, torch.zeros(500, dtype=torch.int64))
    assert (losses.diff() >= 0).all()
    assert (losses >= CrossEntropy()(logits, torch.zeros(500, dtype=torch.int64)) - 1e-5).all()


def test_without_margin_arcface_is_cross_entropy() -> None:
    logits, targets = torch.rand(6, 5) * 60 - 30, torch.randint(0, 5, (6,))
    torch.testing.assert_close(ArcFace(torch.zeros(5), 30.0)(logits, targets), CrossEntropy()(logits, targets))


def test_balanced_softmax_is_the_papers_formula() -> None:
    """-log( n_y exp(z_y) / sum over j of n_j exp(z_j) ) in float64; an empty class counts as one."""
    random = np.random.default_rng(0)
    logits, targets = random.normal(0, 3, (8, 5)), random.integers(0, 5, 8)
    counts = np.maximum(COUNTS, 1)
    weighted = counts * np.exp(logits)
    expected = -np.log(weighted[np.arange(8), targets] / weighted.sum(axis=1))
    losses = BalancedSoftmax(log_prior(COUNTS))(torch.from_numpy(logits).float(), torch.from_numpy(targets))
    assert losses.tolist() == pytest.approx(expected.tolist(), rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_label_smoothing_is_the_formula(smoothing: float) -> None:
    """-sum over j of q_j log p_j with q = (1 - s) [j = y] + s / K, in float64 (Szegedy et al., CVPR 2016)."""
    random = np.random.default_rng(0)
    logits, targets = random.normal(0, 3, (8, 5)), random.integers(0, 5, 8)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    wanted = np.full((8, 5), smoothing / 5)
    wanted[np.arange(8), targets] += 1 - smoothing
    losses = CrossEntropy(smoothing)(torch.from_numpy(logits).float(), torch.from_numpy(targets))
    assert losses.tolist() == pytest.approx((-(wanted * log_p).sum(axis=1)).tolist(), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [1e-6, 1e4])
@pytest.mark.parametrize("criterion", CRITERIA, ids=lambda criterion: type(criterion).__name__)
def test_logits_near_the_ends_of_sixteen_bits_give_float32s_losses_and_gradients(
    criterion: nn.Module, size: float, dtype: torch.dtype
) -> None:
    """Logits that a 16-bit network hands over, under autocast and as float32 without."""
    logits = (torch.randn(4, 5, generator=torch.Generator().manual_seed(0)) * size).to(dtype).requires_grad_()
    exact, targets = logits.detach().float().requires_grad_(), torch.tensor([0, 3, 4, 2])
    expected = criterion(exact, targets)
    with torch.autocast("cpu", dtype=dtype):
        losses = criterion(logits.float(), targets)
    assert torch.isfinite(losses).all()
    torch.testing.assert_close(losses, expected)
    expected.sum().backward()
    losses.sum().backward()
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, exact.grad.to(dtype))  # type: ignore[union-attr]


def test_deferred_weights_are_the_papers() -> None:
    """(1 - b) / (1 - b^n) in exact decimal arithmetic, summing to K; an empty class weighs nothing."""
    getcontext().prec = 50
    beta = Decimal("0.9999")
    by_hand = [(1 - beta) / (1 - beta ** int(n)) if n else Decimal(0) for n in COUNTS]
    expected = [float(weight * len(COUNTS) / sum(by_hand)) for weight in by_hand]
    assert drw_weights(COUNTS).tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("criterion", CRITERIA, ids=lambda criterion: type(criterion).__name__)
def test_losses_are_float32_under_autocast(criterion: nn.Module, dtype: torch.dtype) -> None:
    logits, targets = torch.randn(6, 5) * 40, torch.randint(0, 5, (6,))
    outside = criterion(logits, targets)
    with torch.autocast("cpu", dtype=dtype):
        inside = criterion(logits, targets)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, outside)
