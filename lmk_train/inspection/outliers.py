"""Which samples belong to no class: they have nothing of what makes classes differ, such as floor plans and portraits.

Distances do not tell them: a picture with few details lies close to everything, and a rare view of a landmark far from
it. But along the directions in which the means of classes differ, they lie near the mean of all samples ("The
Familiarity Hypothesis", Dietterich and Guyer 2022). So samples are compared by their part along the mean of a class, as
a share of the length of that mean: 1 for a sample of the class, 0 for what is no closer to it than to all others. That
is asked of the own class, without the sample itself, and of the class that explains it best among the others; the
larger share counts.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from lmk_train.inspection.blocks import Features, Moments, blocks, moments
from lmk_train.inspection.discriminant import Spectrum
from lmk_train.inspection.thresholds import FALSE_ALARMS, low_confidence

_SHRINKAGE = 0.8
_SMALLEST = 1e-12
_CLASSES = 4096  # whose products are in memory at a time


@dataclass(frozen=True, slots=True)
class OutlierJudgement:
    """`outlier_score` [N], from 0 to 1, the most suspicious highest, and `outlier` [N], whether a sample is flagged."""

    outlier_score: NDArray[np.float32]
    outlier: NDArray[np.bool_]


def judge_outliers(
    features: Features,
    labels: NDArray[np.int32],
    other_label: NDArray[np.int32],
    *,
    false_alarms: float = FALSE_ALARMS,
    device: torch.device | None = None,
) -> OutlierJudgement:
    """Judge whether samples fit any class at all.

    The score is the confidence that a sample has too little of its class, and of the other, to be one of the bulk of
    samples. It is 0 in a class of one, and where classes do not differ.

    Args:
        features: float16 or float32 [N, D].
        labels: int32 [N].
        other_label: the class that explains each sample best among the others, or -1, int32 [N]: of `judge_labels`.
        false_alarms: expected share of fitting samples among those that are flagged.
        device: on which features are compared; the CPU by default.

    Raises:
        UserError: a feature is not finite.
    """
    score = low_confidence(familiarity(features, labels, other_label, device or torch.device("cpu")))
    return OutlierJudgement(score, score >= np.float32(1 - false_alarms))


def familiarity(
    features: Features, labels: NDArray[np.int32], other_label: NDArray[np.int32], device: torch.device
) -> NDArray[np.float32]:
    """Return how much samples have of their class or of the other one, float32 [N]: about 1, or 0 for none.

    NaN in a class of one, and where classes do not differ. In memory: the sums of classes [K, D], three times.
    """
    shares = np.full(len(labels), np.nan, np.float32)
    sizes = np.bincount(labels)
    if (sizes > 1).sum() < 2:
        return shares
    ones = np.ones(len(labels), np.float32)
    space = _Space.of(moments(features, labels, ones, len(sizes), device))
    if space is None:
        return shares
    for rows, block in blocks(features, device):
        label, other = (torch.from_numpy(one[rows].astype(np.int64)).to(device) for one in (labels, other_label))
        shares[rows] = space.shares(block, label, other).cpu().numpy()
    shares[sizes[labels] < 2] = np.nan
    return shares


@dataclass(frozen=True, slots=True)
class _Space:
    """The directions [D, A] in which classes differ, the sums of classes [K, A] and counts [K] from `centre` [D].

    `signal` and `noise` are the mean squared length of the true mean of a sample's class, and of the difference of a
    sample from it.
    """

    axes: torch.Tensor
    centre: torch.Tensor
    sums: torch.Tensor
    counts: torch.Tensor
    signal: float
    noise: float

    @classmethod
    def of(cls, moments_: Moments) -> "_Space | None":
        """Return the space of these moments; None if classes do not differ by more than chance.

        Differences within classes have unit variance in it, after shrinkage, and each direction is weighted by the
        share of the variance along it that is between classes. Directions along which means differ no more than means
        of as many samples of one thing would are left out (parallel analysis: Horn 1965).
        """
        counts, number = moments_.counts, float(moments_.counts.sum())
        num_classes = int((counts > 0).sum())
        if number <= num_classes:
            return None
        spectrum = Spectrum.of(moments_)
        within = spectrum.values * number / (number - num_classes)
        shrunk = (1 - _SHRINKAGE) * within + _SHRINKAGE * within.mean()
        whitening = spectrum.vectors / shrunk.clamp(min=_SMALLEST).sqrt()
        spread = within / shrunk.clamp(min=_SMALLEST)  # variances within classes along whitened axes
        prior = moments_.sums.sum(0) / number
        sums = (moments_.sums - counts[:, None] * prior) @ whitening
        expected = torch.diag(spread * num_classes / number)
        values, vectors = torch.linalg.eigh(_between(torch.split(sums, _CLASSES), counts) - expected)
        chance = torch.linalg.eigvalsh(_between(_by_chance(spread, counts), counts) - expected)[-1]
        kept = values > chance.clamp(min=_SMALLEST)
        if not bool(kept.any()):
            return None
        vectors, values = vectors[:, kept], values[kept]
        noise = (vectors**2 * spread[:, None]).sum(0)
        weights = values / (values + noise)
        axes = vectors * weights.sqrt()
        return cls(
            axes=whitening @ axes,
            centre=moments_.centre + prior,
            sums=sums @ axes,
            counts=counts,
            signal=float((weights * values).sum()),
            noise=float((weights * noise).sum()),
        )

    def shares(self, block: torch.Tensor, labels: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        """Return the larger share of the classes `labels`, without the sample itself, and `others`, [B]."""
        samples = (block - self.centre) @ self.axes
        own = self._share(samples, self.sums[labels] - samples, self.counts[labels] - 1)
        second = others.clamp(min=0)
        other = self._share(samples, self.sums[second], self.counts[second])
        return torch.where(others < 0, own, torch.fmax(own, other))

    def _share(self, samples: torch.Tensor, sums: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        """Return x m / m m for samples x and means m, freed of what chance adds to the length of a mean of few."""
        means = sums / counts.clamp(min=1)[:, None]
        by_chance = 1 + self.noise / self.signal / counts.clamp(min=1)
        return (samples * means).sum(1) / (means**2).sum(1).clamp(min=_SMALLEST) * by_chance


def _by_chance(spread: torch.Tensor, counts: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield sums, in parts [P, D], of `counts` [K] drawn samples with variances `spread` [D] and no classes."""
    generator = torch.Generator().manual_seed(0)
    for part in torch.split(counts, _CLASSES):
        drawn = torch.randn((len(part), len(spread)), generator=generator).to(spread.device)
        yield drawn * (spread * part[:, None]).sqrt()


def _between(parts: Iterable[torch.Tensor], counts: torch.Tensor) -> torch.Tensor:
    """Return the covariance between classes [D, D] of sums, in parts [P, D], of `counts` [K] samples each."""
    products = torch.zeros((), device=counts.device)
    for sums, part in zip(parts, torch.split(counts, _CLASSES), strict=True):
        scaled = sums / part.clamp(min=1).sqrt()[:, None]
        products = products + scaled.T @ scaled
    return products / counts.sum()
