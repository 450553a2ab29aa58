"""Mixup and cutmix: which samples are mixed, how, and what becomes of their labels."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional

from lmk_train.data.mixing import Mix, Mixing, beta_quantiles, main_labels, mix_pictures, mixed_losses, partners
from lmk_train.models.losses import (
    LDAM,
    ArcFace,
    BalancedSoftmax,
    CrossEntropy,
    arcface_margins,
    ldam_margins,
    log_prior,
)
from lmk_train.runtime.world import share

SIZE = (20, 12)
KINDS = [Mixing(0.4, None), Mixing(None, 1.0), Mixing(0.4, 1.0)]


def pictures(num: int) -> torch.Tensor:
    made = torch.randn(num, 3, SIZE[1], SIZE[0], generator=torch.Generator().manual_seed(0))
    return made.to(memory_format=torch.channels_last)


def mixed(mixing: Mixing, picks: NDArray[np.int64], given: torch.Tensor) -> tuple[torch.Tensor, Mix]:
    out, mix = given.clone(), mixing.of(picks, 7, 3, SIZE)
    mix_pictures(out, mix)
    return out, mix


@pytest.mark.parametrize("alpha", [0.1, 0.4, 1.0, 2.0, 32.0])
def test_shares_have_the_beta_distribution(alpha: float) -> None:
    special = pytest.importorskip("scipy.special", reason="scikit-learn brings scipy")
    draws = np.array([1e-4, 0.01, 0.2, 0.4999, 0.5, 0.6, 0.99])
    found = beta_quantiles(draws, alpha)
    np.testing.assert_allclose(found, special.betaincinv(alpha, alpha, draws), atol=1e-5)
    assert (np.diff(found) > 0).all()
    everywhere = beta_quantiles((np.arange(100_000) + 0.5) / 100_000, alpha)
    assert everywhere.mean() == pytest.approx(0.5)
    assert everywhere.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=1e-3)


@pytest.mark.parametrize("mixing", KINDS, ids=["mixup", "cutmix", "both"])
def test_any_ranks_and_micro_batches_of_even_length_mix_the_same(mixing: Mixing) -> None:
    picks, given = np.random.default_rng(0).permutation(1000)[:48], pictures(48)
    whole, how = mixed(mixing, picks, given)
    for world, accumulated in ((2, 1), (3, 2), (4, 3), (24, 1)):
        parts = [
            share(share(np.arange(48), rank, world), part, accumulated)
            for rank in range(world)
            for part in range(accumulated)
        ]
        assert all(len(part) % 2 == 0 for part in parts)
        again = [mixed(mixing, picks[part], given[part]) for part in parts]
        assert torch.equal(torch.cat([out for out, _ in again]), whole)
        assert np.array_equal(np.concatenate([mix.own for _, mix in again]), how.own)
    other = mixing.of(picks, 7, 4, SIZE)
    assert not np.array_equal(other.own, how.own), "another epoch mixes anew"


def test_mixup_is_the_papers_line_between_two_pictures() -> None:
    given = pictures(8)
    out, mix = mixed(KINDS[0], np.arange(8), given)
    for i in range(8):
        line = mix.own[i] * given[i].double() + (1 - mix.own[i]) * given[i ^ 1].double()
        torch.testing.assert_close(out[i].double(), line, atol=1e-6, rtol=1e-6)
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert mix.boxes is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cutmix_pastes_a_rectangle_and_counts_its_pixels(dtype: torch.dtype) -> None:
    given = pictures(64).to(dtype)
    out, mix = mixed(KINDS[1], np.arange(64), given)
    assert mix.boxes is not None
    for i in range(64):
        left, top, width, height = (int(side[i]) for side in mix.boxes)
        expected = given[i].clone()
        place = (slice(None), slice(top, top + height), slice(left, left + width))
        expected[place] = given[i ^ 1][place]
        assert torch.equal(out[i], expected), "pixels are copied, not rounded"
        assert mix.own[i] == pytest.approx(1 - width * height / (SIZE[0] * SIZE[1]))
        assert 0 <= left <= left + width <= SIZE[0]
        assert 0 <= top <= top + height <= SIZE[1]
    assert 0.2 < mix.own.mean() < 0.9
    assert mix.own.std() > 0.1


def test_both_together_are_drawn_alike_often() -> None:
    mix = KINDS[2].of(np.arange(4000), 0, 0, SIZE)
    assert mix.boxes is not None
    cut = mix.faded == 0
    assert 0.45 < cut.mean() < 0.55
    assert (mix.boxes.width[~cut] == 0).all()
    np.testing.assert_allclose(mix.own[~cut], 1 - mix.faded[~cut])


COUNTS = np.array([1000, 300, 16, 1, 0])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("prior", [False, True])
def test_the_loss_of_a_mix_is_that_of_the_soft_target(smoothing: float, prior: bool) -> None:
    """-sum over j of q_j log p_j in float64, q the smoothed targets of both labels by their shares."""
    random = np.random.default_rng(0)
    logits, labels, own = random.normal(0, 3, (8, 5)), random.integers(0, 5, 8), random.random(8)
    shifted = logits + (np.log(np.maximum(COUNTS, 1) / np.maximum(COUNTS, 1).sum()) if prior else 0)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    if prior:
        smoothing, criterion = 0.0, BalancedSoftmax(log_prior(COUNTS))
    else:
        criterion = CrossEntropy(smoothing)  # type: ignore[assignment]
    target = np.full((8, 5), smoothing / 5)
    for i, label in enumerate(labels):
        target[i, label] += (1 - smoothing) * own[i]
        target[i, labels[i ^ 1]] += (1 - smoothing) * (1 - own[i])
    given, mix = torch.from_numpy(logits).float(), Mix(own, 1 - own, None)
    found = mixed_losses(lambda one: criterion(given, one), torch.from_numpy(labels), mix)
    np.testing.assert_allclose(found.numpy(), -(target * log_p).sum(axis=1), rtol=1e-5)


@pytest.mark.parametrize(
    "criterion", [LDAM(ldam_margins(COUNTS, 0.5), 30.0), ArcFace(arcface_margins(COUNTS, 0.5, 0.05), 30.0)]
)
def test_losses_with_margins_are_those_of_both_labels_by_their_shares(criterion: torch.nn.Module) -> None:
    logits, labels, own = torch.rand(6, 5) * 60 - 30, torch.tensor([0, 3, 1, 1, 2, 4]), np.linspace(0, 1, 6)
    found = mixed_losses(lambda one: criterion(logits, one), labels, Mix(own, 1 - own, None))
    others = labels[[1, 0, 3, 2, 5, 4]]
    for i, share_ in enumerate(own):
        alone = [float(criterion(logits[i : i + 1], one[i : i + 1])) for one in (labels, others)]
        assert float(found[i]) == pytest.approx(share_ * alone[0] + (1 - share_) * alone[1], rel=1e-5)
    assert torch.equal(mixed_losses(lambda one: criterion(logits, one), labels, None), criterion(logits, labels))


def test_the_right_answer_is_the_label_with_the_larger_share() -> None:
    labels = torch.tensor([0, 1, 2, 3])
    assert main_labels(labels, Mix(np.array([0.6, 0.5, 0.4, 0.0]), np.zeros(4), None)).tolist() == [0, 1, 3, 2]
    assert partners(labels).tolist() == [1, 0, 3, 2]
    assert functional.one_hot(main_labels(labels, None), 4).trace() == 4
