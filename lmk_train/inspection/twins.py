"""Classes that are the same thing twice: their means are too close for their spread, or they share near duplicates."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lmk_data.system.terminal import progress_bar
from lmk_train.inspection.bulk import bulk_threshold
from lmk_train.inspection.spread import ClassSpread, Floats, squared_distances

_CELLS = 1 << 25  # distances that are in memory at a time
_DEVIATIONS = 2.0
MIN_SHARED_GROUPS, MIN_SHARED_SHARE = 2, 0.1


@dataclass(frozen=True)
class TwinJudgement:
    """The class that each class may be the same thing as; all [K].

    Attributes:
        label: of the other class, int32, -1 where there is no other.
        similarity: cosine of the means of both, float32.
        distance: squared distance of the means, in units of that between different classes: the most that it can be by
            what both classes show, float32.
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

    Two classes may be the same thing if their distance is below what a share `FALSE_ALARMS` of ordinary classes have to
    the class nearest to them, by the bulk of the classes. So they may if they share at least 2 groups of near
    duplicates, which hold a tenth of the smaller class, and are nearer than half of the classes are to their nearest.

    Args:
        spread: of the classes.
        shared: of `shared_duplicates`.
        quiet: no progress bar.
    """
    number = len(spread.counts)
    label, distance = _nearest(spread, quiet=quiet)
    bulk = distance.copy()
    threshold = bulk_threshold(bulk, upper=False)
    duplicates = np.zeros(number, np.int32)
    most = shared.sort_values(["label", "groups", "other"], ascending=[True, False, True]).drop_duplicates("label")
    partners, others = most["label"].to_numpy(np.int64), most["other"].to_numpy(np.int32)
    enough = (most["groups"].to_numpy() >= MIN_SHARED_GROUPS) & (
        most["samples"].to_numpy() >= MIN_SHARED_SHARE * np.minimum(spread.counts[partners], spread.counts[others])
    )
    partners, others = partners[enough], others[enough]
    label[partners], distance[partners] = others, _distances(spread, partners, others)
    known = label >= 0
    groups = shared.set_index(["label", "other"])["groups"]
    pairs = pd.MultiIndex.from_arrays([np.flatnonzero(known), label[known]])
    duplicates[known] = groups.reindex(pairs, fill_value=0).to_numpy()
    is_twin = np.nan_to_num(distance, nan=np.inf) < threshold
    half = float(np.nanmedian(bulk)) if known.any() else 0.0
    is_twin[partners] |= distance[partners] < half
    return TwinJudgement(label, _similarities(spread, label), distance, duplicates, is_twin, threshold)


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
    """Return the nearest other class of each class and its distance; -1 and NaN where there is none."""
    number = len(spread.counts)
    label, distance = np.full(number, -1, np.int32), np.full(number, np.nan, np.float32)
    filled = np.flatnonzero(spread.counts)
    if len(filled) < 3:  # whether two classes are near is known by a third
        return label, distance
    step = max(1, _CELLS // number)
    with progress_bar(len(filled), "nearest classes", "classes", quiet=quiet, delay_seconds=2) as bar:
        for start in range(0, len(filled), step):
            own = filled[start : start + step]
            distances = squared_distances(spread.mean[own], spread.mean)
            distances[:, spread.counts == 0] = np.inf
            distances[np.arange(len(own)), own] = np.inf
            label[own] = distances.argmin(axis=1)
            distance[own] = _distances(spread, own, label[own])
            bar.update(len(own))
    return label, distance


def _distances(spread: ClassSpread, left: NDArray[np.integer], right: NDArray[np.integer]) -> Floats:
    """Return the largest distance that pairs of classes have by what they show, float32 [G], in the usual unit.

    That is the unbiased squared distance and two standard deviations of it, where both were the same thing.
    """
    mean = spread.mean
    parts = np.array_split(np.arange(len(left)), -(-len(left) // 4096) or 1)
    distance = np.empty(len(left), np.float32)
    for part in parts:
        a, b = left[part].astype(np.int64), right[part].astype(np.int64)
        noise = mean.noise[a] + mean.noise[b]
        difference = mean.means[a] - mean.means[b]
        squared = np.einsum("ij,ij->i", difference, difference) - noise
        usual = (spread.usual_distance(mean[a], a) + spread.usual_distance(mean[b], b)) / 2
        deviation = np.sqrt(2 / spread.dimensions) * noise
        distance[part] = (np.maximum(squared, 0) + _DEVIATIONS * deviation) / usual
    return distance


def _similarities(spread: ClassSpread, label: NDArray[np.int32]) -> Floats:
    """Return the cosine between the mean of each class and that of the class `label` [K]; NaN for none."""
    means = spread.mean.means
    lengths = np.maximum(np.linalg.norm(means, axis=1), 1e-12)
    cosines = np.full(len(label), np.nan, np.float32)
    for start in range(0, len(label), 4096):
        own = start + np.flatnonzero(label[start : start + 4096] >= 0)
        other = label[own]
        cosines[own] = np.einsum("ij,ij->i", means[own], means[other]) / (lengths[own] * lengths[other])
    return cosines
