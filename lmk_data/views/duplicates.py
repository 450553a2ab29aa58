"""Exact and near duplicates among the images of a dataset: groups, label conflicts, leakage between splits.

Exact: the same source bytes. Near: perceptual hashes at most 4 bits apart, confirmed on the stored images.
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lmk_data.dataset.format import SPLITS
from lmk_data.dataset.reader import ShardedDataset
from lmk_data.options import DuplicateKind
from lmk_data.system.engine import local_engine
from lmk_data.system.terminal import progress_bar
from lmk_data.views.hashes import near_pairs
from lmk_data.views.similarity import MAX_PAIRS, SmallPictures

_MIN_BITS = 6  # of either value in a hash that is compared: nearly uniform images share the other hashes
_MAX_WAITING = 4_000_000  # candidate pairs before they are compared
_MAX_REJECTED = 4_000_000  # pairs that are remembered as different
_BAR_AFTER_SECONDS = 2.0


@dataclass(frozen=True)
class Duplicates:
    """Every sample that has a duplicate, in groups of at least two.

    `samples`: one row per such sample, ordered by group, split and row: group (int64), split, row (int64, of the
    split's index), label (int32), key.
    """

    kind: DuplicateKind
    samples: pd.DataFrame

    @property
    def num_groups(self) -> int:
        """Number of groups of two or more samples."""
        return int(self.samples["group"].nunique())

    def conflicts(self) -> pd.DataFrame:
        """Return the samples of groups with more than one label."""
        return self.samples[self.samples.groupby("group")["label"].transform("nunique") > 1]

    def leaked(self) -> pd.DataFrame:
        """Return the validation and test samples that have a duplicate in training."""
        return self.samples[self._beside_training()]

    def superfluous(self) -> pd.DataFrame:
        """Return what a clean view leaves out: leaked samples, and all but the first of a group within a split."""
        return self.samples[self._beside_training() | self.samples.duplicated(["group", "split"])]

    def among(self, labels: NDArray[np.integer[Any]]) -> "Duplicates":
        """Return the duplicates among the samples of these labels, integers [M]."""
        kept = self.samples[self.samples["label"].isin(labels)]
        return Duplicates(self.kind, kept[kept.groupby("group")["group"].transform("size") > 1])

    def _beside_training(self) -> "pd.Series[bool]":
        is_train = self.samples["split"] == "train"
        return is_train.groupby(self.samples["group"]).transform("any") & ~is_train


def find_duplicates(
    dataset: ShardedDataset,
    kind: DuplicateKind,
    *,
    labels: Mapping[str, NDArray[np.int32]] | None = None,
    workers: int | None = None,
    quiet: bool = True,
) -> Duplicates:
    """Find the duplicates among all splits of a dataset or a view.

    Raises DatasetError if an image cannot be read.

    Args:
        dataset: the dataset or view.
        kind: which images count as duplicates.
        labels: labels instead of those of the index, int32 [N] for each split; samples below 0 are left out.
        workers: threads that compare pictures for near duplicates; by default one per core.
        quiet: show no progress.
    """
    columns = ["key", "label", "source_sha256", "dhash", "shard", "jpg_offset", "jpg_size"]
    frames = []
    for split in dataset.splits:
        frame = dataset.index(split, columns)
        frame = frame.assign(split=split, row=np.arange(len(frame), dtype=np.int64))
        if labels is not None:
            frame = frame.assign(label=labels[split])[labels[split] >= 0]
        frames.append(frame)
    samples = pd.concat(frames, ignore_index=True)
    group = pd.factorize(samples["source_sha256"])[0].astype(np.int64)
    if kind == "near":
        with (
            progress_bar(0, "near duplicates", "pictures", quiet=quiet, delay_seconds=_BAR_AFTER_SECONDS) as bar,
            ThreadPoolExecutor(local_engine(workers).workers) as pool,
        ):
            group = _join_similar(samples, group, SmallPictures(dataset, samples, pool, bar))
    samples["group"] = group
    grouped = samples.loc[np.bincount(group)[group] > 1, ["group", "split", "row", "label", "key"]]
    order = grouped["split"].map({split: number for number, split in enumerate(SPLITS)})
    grouped = grouped.assign(group=pd.factorize(grouped["group"])[0].astype(np.int64), order=order)
    grouped = grouped.sort_values(["group", "order", "row"], ignore_index=True)
    return Duplicates(kind, grouped.drop(columns="order"))


def is_telling(hashes: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Return which perceptual hashes, uint64 [N], are compared, bool [N]: nearly uniform images share the others."""
    bits = np.bitwise_count(hashes)
    return (bits >= _MIN_BITS) & (bits <= 64 - _MIN_BITS)


def _join_similar(samples: pd.DataFrame, exact: NDArray[np.int64], pictures: SmallPictures) -> NDArray[np.int64]:
    """Join exact groups whose images look alike, and return the group of each row, int64 [N].

    Candidates are found by their hashes and confirmed on the images.
    """
    groups = _Groups(exact)
    firsts = np.flatnonzero(~pd.Series(exact).duplicated())  # one image of each exact group
    hashes = samples["dhash"].to_numpy()[firsts]
    compared = is_telling(hashes)
    firsts, hashes = firsts[compared], hashes[compared]
    order = np.argsort(hashes, kind="stable")
    firsts, hashes = firsts[order], hashes[order]
    candidates = _Candidates(groups, pictures)
    same = np.flatnonzero(hashes[1:] == hashes[:-1])
    candidates.add(firsts[same], firsts[same + 1])
    candidates.add(firsts[np.searchsorted(hashes, hashes)], firsts)
    candidates.compare()
    # Images with the same hash need not look alike, so every group with that hash is represented.
    repeated = pd.DataFrame({"hash": hashes, "root": groups.roots(firsts)}).duplicated().to_numpy()
    firsts, hashes = firsts[~repeated], hashes[~repeated]
    for left, right in near_pairs(hashes):
        candidates.add(firsts[left], firsts[right])
    candidates.compare()
    return groups.labels()


class _Groups:
    """Disjoint sets of rows, joined pair by pair."""

    def __init__(self, group: NDArray[np.int64]) -> None:
        _, first, inverse = np.unique(group, return_index=True, return_inverse=True)
        self._parent = first[inverse].astype(np.int64)

    def __len__(self) -> int:
        return len(self._parent)

    def roots(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the row that represents the set of each row, int64 [N]."""
        root = self._parent[rows]
        while not np.array_equal(above := self._parent[root], root):
            root = above
        self._parent[rows] = root
        return root

    def join(self, left: NDArray[np.int64], right: NDArray[np.int64]) -> None:
        """Join the two sets of each pair of rows."""
        for a, b in zip(left.tolist(), right.tolist(), strict=True):
            low, high = sorted((self._root(a), self._root(b)))
            self._parent[high] = low

    def labels(self) -> NDArray[np.int64]:
        """Return the set of each row, int64 [N], numbered from 0."""
        return np.unique(self.roots(np.arange(len(self))), return_inverse=True)[1].astype(np.int64)

    def _root(self, row: int) -> int:
        while (above := int(self._parent[row])) != row:
            self._parent[row] = self._parent[above]
            row = above
        return row


class _Candidates:
    """Pairs of rows that may look alike: collected, then compared in batches, each pair once."""

    def __init__(self, groups: _Groups, pictures: SmallPictures) -> None:
        self._groups, self._pictures = groups, pictures
        self._waiting: list[NDArray[np.int64]] = []
        self._num_waiting = 0
        self._rejected = np.empty(0, dtype=np.int64)

    def add(self, left: NDArray[np.int64], right: NDArray[np.int64]) -> None:
        """Add pairs; compare all that were added once there are many."""
        self._waiting.append(np.minimum(left, right) * len(self._groups) + np.maximum(left, right))
        self._num_waiting += len(left)
        if self._num_waiting >= _MAX_WAITING:
            self.compare()

    def compare(self) -> None:
        """Join the pairs that look alike; skip pairs that are joined already or were rejected."""
        pairs = np.setdiff1d(np.concatenate([self._rejected[:0], *self._waiting]), self._rejected)
        self._waiting, self._num_waiting = [], 0
        for start in range(0, len(pairs), MAX_PAIRS):
            part = pairs[start : start + MAX_PAIRS]
            left, right = np.divmod(part, len(self._groups))
            apart = self._groups.roots(left) != self._groups.roots(right)
            part, left, right = part[apart], left[apart], right[apart]
            alike = self._pictures.alike(left, right)
            self._groups.join(left[alike], right[alike])
            kept = self._rejected if len(self._rejected) < _MAX_REJECTED else self._rejected[:0]
            self._rejected = np.union1d(kept, part[~alike])
