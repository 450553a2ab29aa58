"""Classes that are the same thing twice: much nearer to each other than to others, or with shared near duplicates."""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lmk_data.system.terminal import progress_bar
from lmk_train.inspection.bulk import FALSE_ALARMS
from lmk_train.inspection.spread import ClassSpread, Floats, squared_distances

_CELLS = 1 << 25  # distances that are in memory at a time
_PAIRS = 4096  # of means that are in memory at a time
_DEVIATIONS = 2.0
_SMALLEST = 1e-6
MIN_CLASSES = 5
MIN_SHARED_GROUPS, MIN_SHARED_SHARE = 2, 0.1


@dataclass(frozen=True)
class TwinJudgement:
    """The class that each class may be the same thing as; all [K].

    Attributes:
        label: of the other class, int32, -1 where there is no other.
        similarity: cosine of the means of both, float32.
        distance: squared distance of the means, the most that it can be by what both classes show, as a share of the
            squared distance to the third nearest class, float32; NaN where there are not so many.
        duplicates: groups of near duplicates that both share, int32.
        twin: whether both may be the same thing.
        threshold: of `distance`.
    """

    label: NDArray[np.int32]
    similarity: Floats
    distance: Floats
    duplicates: NDArray[np.int32]
    twin: NDArray[np.bool_]
    threshold: float


def judge_twins(spread: ClassSpread, shared: pd.DataFrame, *, quiet: bool = True) -> TwinJudgement:
    """Find the class that is nearest to each class, or shares most near duplicates with it.

    Two classes may be the same thing if one is much nearer to the other than to its third nearest class: below what a
    share `FALSE_ALARMS` of classes in order have (see `_threshold`). So they may if they share at least 2 groups of
    near duplicates, which hold a tenth of the smaller class, and are nearer than the third nearest.

    Args:
        spread: of the classes.
        shared: of `shared_duplicates`.
        quiet: no progress bar.
    """
    label, third = _nearest(spread, quiet=quiet)
    known = np.flatnonzero(label >= 0)
    distance = np.full(len(label), np.nan, np.float32)
    distance[known] = _distances(spread, known, label[known]) / third[known]
    threshold = _threshold(distance[known])
    most = shared.sort_values(["label", "groups", "other"], ascending=[True, False, True]).drop_duplicates("label")
    own, others = most["label"].to_numpy(np.int64), most["other"].to_numpy(np.int32)
    smaller = np.minimum(spread.counts[own], spread.counts[others])
    enough = (most["groups"] >= MIN_SHARED_GROUPS) & (most["samples"] >= MIN_SHARED_SHARE * smaller)
    own, others = own[enough], others[enough]
    label[own] = others
    distance[own] = _distances(spread, own, others) / third[own]
    is_twin = np.nan_to_num(distance, nan=np.inf) < threshold
    is_twin[own] |= distance[own] < 1
    duplicates = np.zeros(len(label), np.int32)
    known = np.flatnonzero(label >= 0)
    pairs = pd.MultiIndex.from_arrays([known, label[known]])
    duplicates[known] = shared.set_index(["label", "other"])["groups"].reindex(pairs, fill_value=0).to_numpy()
    return TwinJudgement(label, _similarities(spread, label), distance, duplicates, is_twin, threshold)


def _threshold(distances: Floats) -> float:
    """Return the distance, as a share of that to the third nearest class, that few classes in order fall below.

    Of points without pairs, spread in m dimensions, the m-th power of this ratio (of distances, not squared) is the
    smaller of two uniform numbers; m follows from the median of the ratios, and from m the value that a share
    `FALSE_ALARMS` fall below. After Facco et al., "Estimating the intrinsic dimension of datasets by a minimal
    neighborhood information", Scientific Reports 2017, which takes the second nearest: a thing may be there thrice.
    """
    usable = distances[np.isfinite(distances) & (distances > 0)]
    if len(usable) < MIN_CLASSES:
        return 0.0
    median = min(float(np.median(usable)), 0.99)
    return float(_smaller_of_two(FALSE_ALARMS) ** (np.log(median) / np.log(_smaller_of_two(0.5))))


def _smaller_of_two(probability: float) -> float:
    """Return the quantile of the smaller of two uniform numbers."""
    return 1 - math.sqrt(1 - probability)


def shared_duplicates(duplicates: pd.DataFrame) -> pd.DataFrame:
    """Return how many groups of near duplicates two classes share: label, other, groups, samples (of `label` in them).

    Each pair is there twice, once from each side. `duplicates` has the columns group and label, a row per sample.
    """
    sizes = duplicates.groupby(["group", "label"], as_index=False).size()
    sizes = sizes[
        sizes.groupby("group")["label"].transform("size").between(2, 16)
    ]  # a banner is in hundreds of classes
    pairs = sizes.merge(sizes, on="group", suffixes=("", "_other"))
    pairs = pairs[pairs["label"] != pairs["label_other"]].rename(columns={"label_other": "other"})
    return pairs.groupby(["label", "other"], as_index=False).agg(groups=("group", "size"), samples=("size", "sum"))


def _nearest(spread: ClassSpread, *, quiet: bool) -> tuple[NDArray[np.int32], Floats]:
    """Return the nearest class of each class, int32 [K], and the squared distance to the third nearest, float32 [K].

    -1 and NaN where there are too few classes.
    """
    number = len(spread.counts)
    label, third = np.full(number, -1, np.int32), np.full(number, np.nan, np.float32)
    filled = np.flatnonzero(spread.counts)
    if len(filled) < MIN_CLASSES:
        return label, third
    step = max(1, _CELLS // number)
    with progress_bar(len(filled), "nearest classes", "classes", quiet=quiet, delay_seconds=2) as bar:
        for start in range(0, len(filled), step):
            own = filled[start : start + step]
            distances = squared_distances(spread.mean[own], spread.mean)
            distances[:, spread.counts == 0] = np.inf
            distances[np.arange(len(own)), own] = np.inf
            label[own] = distances.argmin(axis=1)
            third[own] = np.maximum(np.partition(distances, 2, axis=1)[:, 2], _SMALLEST)
            bar.update(len(own))
    return label, third


def _distances(spread: ClassSpread, left: NDArray[np.integer], right: NDArray[np.integer]) -> Floats:
    """Return the largest squared distance that pairs of classes have by what they show, float32 [G].

    That is the unbiased squared distance and two standard deviations of it, where both were the same thing.
    """
    mean, distance = spread.mean, np.empty(len(left), np.float32)
    for start in range(0, len(left), _PAIRS):
        part = slice(start, start + _PAIRS)
        difference = mean.means[left[part]] - mean.means[right[part]]
        noise = mean.noise[left[part]] + mean.noise[right[part]]
        squared = np.einsum("ij,ij->i", difference, difference) - noise
        distance[part] = np.maximum(squared, 0) + _DEVIATIONS * np.sqrt(2 / spread.dimensions) * noise
    return distance


def _similarities(spread: ClassSpread, label: NDArray[np.int32]) -> Floats:
    """Return the cosine between the mean of each class and that of the class `label` [K]; NaN for none."""
    means = spread.mean.means
    lengths = np.maximum(np.linalg.norm(means, axis=1), 1e-12)
    cosines = np.full(len(label), np.nan, np.float32)
    for start in range(0, len(label), _PAIRS):
        own = start + np.flatnonzero(label[start : start + _PAIRS] >= 0)
        other = label[own]
        cosines[own] = np.einsum("ij,ij->i", means[own], means[other]) / (lengths[own] * lengths[other])
    return cosines
