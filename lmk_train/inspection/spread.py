"""Means and spreads of classes, and squared distances between means without the part that chance adds to them."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lmk_train.inspection.rows import Samples

_ROWS = 8192  # rows of features that are in memory at a time, as float32
_MAX_REFERENCES = 2048
_PRIOR_SAMPLES = 4  # of the spread of a small class, as many samples count from the average class
_SAMPLED_RESIDUALS = 2048

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class MeanOf:
    """Means of groups of samples, float32 [G, D], and the noise in each: its expected squared error, float32 [G]."""

    means: Floats
    noise: Floats

    def __getitem__(self, groups: NDArray[np.integer] | slice) -> "MeanOf":
        return MeanOf(self.means[groups], self.noise[groups])


@dataclass(frozen=True)
class ClassSpread:
    """What the K classes of a dataset look like.

    Attributes:
        counts: samples of each class, int64 [K].
        mean: of each class; zeros for a class without samples.
        references: labels of classes that stand for all others, int64 [R].
        dimensions: the effective number of dimensions in which samples spread around their means.
    """

    counts: NDArray[np.int64]
    mean: MeanOf
    references: NDArray[np.int64]
    dimensions: float

    def usual_distance(self, groups: MeanOf, own: NDArray[np.int64]) -> Floats:
        """Return the median squared distance of group means [G] to other classes than `own` [G], float32 [G].

        NaN where there is no other class.
        """
        distances = squared_distances(groups, self.mean[self.references])
        distances[self.references[None, :] == own[:, None]] = np.nan
        usual = np.full(len(distances), np.nan, np.float32)
        known = ~np.isnan(distances).all(axis=1)
        usual[known] = np.nanmedian(distances[known], axis=1)
        return np.maximum(usual, np.float32(1e-6))


def class_spread(samples: Samples) -> ClassSpread:
    """Measure the classes of samples; memory is that of the means, float32 [K, D], and of blocks."""
    features, labels, num_classes = samples.features, samples.labels, samples.num_classes
    counts = np.bincount(labels, minlength=num_classes)
    sums = np.zeros((num_classes, features.shape[1]), np.float32)
    squares = np.zeros(num_classes)
    for start in range(0, len(features), _ROWS):
        block, own = features[start : start + _ROWS].astype(np.float32), labels[start : start + _ROWS]
        order = np.argsort(own, kind="stable")
        first = np.flatnonzero(np.diff(own[order], prepend=-1))
        sums[own[order][first]] += np.add.reduceat(block[order], first, axis=0)
        squares += np.bincount(own, weights=np.einsum("ij,ij->i", block, block), minlength=num_classes)
    sizes = np.maximum(counts, 1)
    means: Floats = np.divide(sums, sizes[:, None], dtype=np.float32)
    inside: NDArray[np.float64] = np.maximum(
        squares - counts * np.einsum("ij,ij->i", means, means, dtype=np.float64), 0
    )
    average = inside.sum() / max(1, int((counts - 1).clip(0).sum()))
    spread = (inside + _PRIOR_SAMPLES * average) / ((counts - 1).clip(0) + _PRIOR_SAMPLES)
    filled = np.flatnonzero(counts)
    chosen = filled[np.linspace(0, len(filled) - 1, min(len(filled), _MAX_REFERENCES)).astype(np.int64)]
    mean = MeanOf(means, np.asarray(np.divide(spread, sizes), dtype=np.float32))
    dimensions = _dimensions(residuals(samples, mean.means, _SAMPLED_RESIDUALS))
    return ClassSpread(counts, mean, chosen, dimensions)


def squared_distances(left: MeanOf, right: MeanOf) -> Floats:
    """Return squared distances between true means, float32 [L, R]: those between means, less the noise of both.

    Unbiased, so that means of few samples are not farther apart than means of many; may be below zero.
    """
    lengths = np.einsum("ij,ij->i", left.means, left.means) - left.noise
    others = np.einsum("ij,ij->i", right.means, right.means) - right.noise
    distances = left.means @ right.means.T
    distances *= -2
    distances += lengths[:, None]
    distances += others[None, :]
    return distances


def residuals(samples: Samples, means: Floats, number: int) -> Floats:
    """Return how samples of many classes differ from their class means, float32 [at most `number`, D].

    Samples are taken at equal steps from the classes of at least two, scaled so that small classes spread as others do.
    """
    labels = samples.labels
    counts = np.bincount(labels, minlength=samples.num_classes)
    rows = np.flatnonzero(counts[labels] > 1)
    if not len(rows):
        return np.zeros((0, samples.features.shape[1]), np.float32)
    rows = rows[np.linspace(0, len(rows) - 1, min(len(rows), number)).astype(np.int64)]
    own = labels[rows]
    scale = np.sqrt(counts[own] / (counts[own] - 1)).astype(np.float32)
    difference: Floats = (samples.features[rows].astype(np.float32) - means[own]) * scale[:, None]
    return difference


def _dimensions(differences: Floats) -> float:
    """Return (tr S)^2 / tr S^2 of the covariance S of residuals [M, D], from the products of different ones."""
    if len(differences) < 3:
        return 1.0
    products = differences @ differences.T
    lengths = np.diagonal(products).copy()
    np.fill_diagonal(products, 0)
    squared = float(np.square(products, dtype=np.float64).sum()) / (len(products) * (len(products) - 1))
    return max(1.0, float(lengths.mean(dtype=np.float64)) ** 2 / max(squared, 1e-12))


def class_rows(labels: NDArray[np.int32], num_classes: int) -> Iterator[NDArray[np.int64]]:
    """Yield the rows of each class in order of labels."""
    order = np.argsort(labels, kind="stable")
    bounds = np.searchsorted(labels[order], np.arange(num_classes + 1))
    for label in range(num_classes):
        yield order[bounds[label] : bounds[label + 1]]
