"""Classes that are several things: their parts are as far apart as different classes are."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lmk_data.system.terminal import progress_bar
from lmk_train.inspection.bulk import bulk_threshold
from lmk_train.inspection.rows import FeatureRows, Samples
from lmk_train.inspection.spread import ClassSpread, Floats, MeanOf, class_rows, residuals

USUAL = 1.0  # separation of parts that are as far apart as different classes usually are
MIN_PART = 3  # samples, and at least a tenth of the class
MAX_PARTS = 8
_MAX_SAMPLES = 512  # of a class, at equal steps
_COMPANIONS = 3
_COMPONENTS = 16
_ITERATIONS = 20
_CLASSES_AT_ONCE = 1024
_CHANCE_SIZES, _CHANCE_DRAWS = (6, 9, 14, 24, 48, 96), 48
_CHANCE_RESIDUALS = 4096
_SEED = 20_20


@dataclass(frozen=True)
class PartsJudgement:
    """How far the two most different parts of each class are apart.

    Attributes:
        separation: squared distance between the parts, in units of that between different classes, float32 [K]; NaN
            for a class that is too small.
        threshold: from which a class of this size counts as several things, float32 [K].
        parts: the rows of each part of a class that is several things, by its label, the largest part first; without
            samples that do not count.
        bulk: the part of the threshold that comes from the bulk of the classes.
    """

    separation: Floats
    threshold: Floats
    parts: dict[int, list[NDArray[np.int64]]]
    bulk: float

    @property
    def clusters(self) -> NDArray[np.int32]:
        """The number of parts of each class, [K]."""
        number = np.ones(len(self.separation), np.int32)
        for label, parts in self.parts.items():
            number[label] = len(parts)
        return number

    @property
    def several(self) -> NDArray[np.bool_]:
        """Whether each class is several things, [K]."""
        above: NDArray[np.bool_] = np.nan_to_num(self.separation, nan=0.0) > self.threshold
        return above


def judge_parts(
    samples: Samples, spread: ClassSpread, other_similarity: Floats, *, quiet: bool = True
) -> PartsJudgement:
    """Split every class in two and compare the distance of the halves with that of different classes.

    The distance is free of the noise of small halves, so that it does not depend on the size of a class: about 1 for
    two things in one class. The threshold is the larger of two: what a share `FALSE_ALARMS` of the classes that are one
    thing exceeds, by the bulk of the classes, but at most 1; and what the same share of classes exceeds that are made
    up at this size out of residuals of many classes.

    Args:
        samples: of the classes.
        spread: of the classes.
        other_similarity: of each sample to the class that fits best among the others, [N]; NaN for none.
        quiet: no progress bar.
    """
    counts, others = spread.counts, np.nan_to_num(other_similarity, nan=-1.0)
    separation = np.full(len(counts), np.nan, np.float32)
    rows_of_class = list(class_rows(samples.labels, len(counts)))
    with progress_bar(len(counts), "parts of classes", "classes", quiet=quiet, delay_seconds=2) as bar:
        for start in range(0, len(counts), _CLASSES_AT_ONCE):
            own = np.arange(start, min(start + _CLASSES_AT_ONCE, len(counts)))
            blocks = (_counted(samples.features, rows_of_class[label], others)[1] for label in own)
            separation[own] = _separations(blocks, own, spread)
            bar.update(len(own))
    bulk = bulk_threshold(separation)
    threshold = np.maximum(min(bulk, USUAL), _by_chance(samples, spread)).astype(np.float32)
    parts = {}
    for label in np.flatnonzero(np.nan_to_num(separation, nan=0.0) > threshold).tolist():
        rows, block = _counted(samples.features, rows_of_class[label], others)
        parts[label] = [rows[part] for part in _split_further(block, label, spread, float(threshold[label]))]
    return PartsJudgement(separation, threshold, parts, min(bulk, USUAL))


def _split_further(block: Floats, label: int, spread: ClassSpread, threshold: float) -> list[NDArray[np.int64]]:
    """Return the places of each part of a class, the largest first: what is farther apart than the threshold is split.

    `block` has the samples of the class, float32 [n, D].
    """
    waiting, parts, own = [np.arange(len(block))], list[NDArray[np.int64]](), np.array([label])
    while waiting:
        part = waiting.pop(0)
        first = split_in_two(block[part]) if len(waiting) + len(parts) + 1 < MAX_PARTS else None
        if first is not None and _separations([block[part]], own, spread)[0] > threshold:
            waiting += [part[first], part[~first]]
        else:
            parts.append(part)
    return sorted(parts, key=len, reverse=True)


def _counted(
    features: FeatureRows, rows: NDArray[np.int64], other_similarity: Floats
) -> tuple[NDArray[np.int64], Floats]:
    """Return the rows of a class that count and their features, float32 [n, D]: at most 512, at equal steps.

    A sample counts unless another class fits it better than the mean of the three samples that are nearest to it in its
    own class do. So single wrong labels do not count, and a thing that is in the class a few times does.
    """
    if len(rows) > _MAX_SAMPLES:
        rows = rows[np.linspace(0, len(rows) - 1, _MAX_SAMPLES).astype(np.int64)]
    block: Floats = features[rows].astype(np.float32)
    if len(rows) <= _COMPANIONS:
        return rows, block
    cosines = block @ block.T
    np.fill_diagonal(cosines, -np.inf)
    nearest = np.argpartition(cosines, -_COMPANIONS, axis=1)[:, -_COMPANIONS:]
    companions = block[nearest].mean(axis=1)
    fit = np.einsum("ij,ij->i", block, companions) / np.maximum(np.linalg.norm(companions, axis=1), 1e-12)
    counts = fit >= other_similarity[rows]
    return rows[counts], block[counts]


def _separations(blocks: Iterable[Floats], own: NDArray[np.int64], spread: ClassSpread) -> Floats:
    """Return the separation of the halves of groups of samples, of the classes `own`; NaN for small groups."""
    halves = [None if part is None else _means(block, part) for block, part in _split_all(blocks)]
    separation = np.full(len(own), np.nan, np.float32)
    places = [place for place, means in enumerate(halves) if means is not None]
    if not places:
        return separation
    first, second = (_stacked([means[side] for means in halves if means is not None]) for side in (0, 1))
    usual = (spread.usual_distance(first, own[places]) + spread.usual_distance(second, own[places])) / 2
    separation[places] = np.maximum(_paired_distances(first, second), 0) / usual
    return separation


def _split_all(samples: Iterable[Floats]) -> Iterator[tuple[Floats, NDArray[np.bool_] | None]]:
    for block in samples:
        yield block, split_in_two(block)


def split_in_two(samples: Floats) -> NDArray[np.bool_] | None:
    """Return which of the samples, float32 [n, D], are in the first of two clusters; None if there are no two.

    Two-means in the leading principal components, from several starts along them (Ding and He, "K-means clustering via
    principal component analysis", ICML 2004); both clusters have at least `MIN_PART` samples and a tenth.
    """
    number = len(samples)
    smallest = max(MIN_PART, number // 10)
    if number < 2 * smallest:
        return None
    centred = samples - samples.mean(axis=0)
    values, vectors = np.linalg.eigh(centred @ centred.T)
    points = vectors[:, ::-1][:, :_COMPONENTS] * np.sqrt(np.maximum(values[::-1][:_COMPONENTS], 0))
    order = np.argsort(points[:, 0], kind="stable")
    starts = [points[:, axis] > 0 for axis in range(min(3, points.shape[1]))]
    starts += [np.isin(np.arange(number), order[: number * quarter // 4]) for quarter in (1, 3)]
    best: NDArray[np.bool_] | None = None
    most = 0.0
    for start in starts:
        part = _two_means(points, start)
        size = int(part.sum())
        if min(size, number - size) < smallest:
            continue
        between = float(np.square(points[part].sum(axis=0)).sum()) * number / (size * (number - size))
        if between > most:
            best, most = part, between
    return best


def _two_means(points: Floats, part: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the clusters that two-means reaches from a first guess; points float32 [n, C]."""
    for _ in range(_ITERATIONS):
        if part.all() or not part.any():
            break
        first, second = points[part].mean(axis=0), points[~part].mean(axis=0)
        moved = points @ (first - second) > (first @ first - second @ second) / 2
        if np.array_equal(moved, part):
            break
        part = moved
    return part


def _by_chance(samples: Samples, spread: ClassSpread) -> NDArray[np.float64]:
    """Return the separation that a share `FALSE_ALARMS` of classes exceeds which are one thing, [K], by their size.

    They are made up of residuals of many classes, which have no parts in common.
    """
    pool = residuals(samples, spread.mean.means, _CHANCE_RESIDUALS)
    if len(pool) < 2 * MIN_PART or len(spread.references) < 2:
        return np.zeros(len(spread.counts))
    generator = np.random.default_rng(_SEED)
    usual = float(np.median(spread.usual_distance(spread.mean[spread.references], spread.references)))
    sizes, levels = [], []
    for size in (size for size in _CHANCE_SIZES if size <= len(pool)):
        drawn = (pool[generator.choice(len(pool), size, replace=False)] for _ in range(_CHANCE_DRAWS))
        halves = [_means(block, part) for block, part in _split_all(drawn) if part is not None]
        if halves:
            first, second = (_stacked([means[side] for means in halves]) for side in (0, 1))
            sizes.append(np.log(size))
            levels.append(bulk_threshold(np.maximum(_paired_distances(first, second), 0) / usual))
    return np.interp(np.log(np.maximum(spread.counts, 1)), sizes, levels) if sizes else np.zeros(len(spread.counts))


def _means(samples: Floats, part: NDArray[np.bool_]) -> tuple[MeanOf, MeanOf]:
    """Return the means of both halves of samples, float32 [n, D]; halves spread as much as they do on average."""
    halves = samples[part], samples[~part]
    means = [half.mean(axis=0) for half in halves]
    inside = sum(float(np.square(half - mean).sum()) for half, mean in zip(halves, means, strict=True))
    spread = inside / (len(samples) - 2)
    first, second = (
        MeanOf(mean[None], np.array([spread / len(half)], np.float32)) for half, mean in zip(halves, means, strict=True)
    )
    return first, second


def _stacked(groups: list[MeanOf]) -> MeanOf:
    return MeanOf(np.concatenate([one.means for one in groups]), np.concatenate([one.noise for one in groups]))


def _paired_distances(first: MeanOf, second: MeanOf) -> Floats:
    """Return the squared distance between the true means of each pair, float32 [G]."""
    difference = first.means - second.means
    distances: Floats = np.einsum("ij,ij->i", difference, difference) - first.noise - second.noise
    return distances
