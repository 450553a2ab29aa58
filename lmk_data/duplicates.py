"""Exact and near duplicates among the pictures of a dataset: groups, label conflicts, leakage between splits.

Exact: the same source bytes. Near: perceptual hashes at most 4 bits apart, confirmed on the stored pictures.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

import numpy as np
import pandas as pd
from PIL import Image

from lmk_data.dataset import ShardedDataset
from lmk_data.engine import Engine
from lmk_data.errors import DatasetError
from lmk_data.format import SPLITS
from lmk_data.storage import Folder

Kind = Literal["exact", "near"]
Hashes = np.ndarray[tuple[int], np.dtype[np.uint64]]
Ints = np.ndarray[tuple[int], np.dtype[np.int64]]

MAX_DISTANCE = 4
# With 4 bits changed, at least 2 of 6 blocks of bits are as they were: 15 keys of about 21 bits find every pair.
_BLOCKS = 6
_UNCHANGED = _BLOCKS - MAX_DISTANCE
_LEAST_BITS = 6  # of either kind in a hash that says anything: nearly flat pictures share the others
_PAIRS_AT_ONCE = 4_000_000
_FARTHEST = 2_000  # places apart in a bucket of one key: bounds the work where thousands of pictures look alike
_CONFIRM_SIZE = 32
_LEAST_CORRELATION = 0.95
_LARGEST_DIFFERENCE = 24.0  # of the mean colours, in 0..255
_PAIRS_TO_CONFIRM = 50_000
_PICTURES_A_TASK = 4_000


@dataclass(frozen=True)
class Duplicates:
    """Every sample that has a duplicate, in groups of at least two.

    `samples`: one row per such sample, ordered by group, split and row: group (int64), split, row (int64, of the
    split's index), label (int32), key.
    """

    kind: Kind
    samples: pd.DataFrame

    @property
    def num_groups(self) -> int:
        """Groups of two or more samples."""
        return int(self.samples["group"].nunique())

    def conflicts(self) -> pd.DataFrame:
        """The samples of groups that carry more than one label."""
        return self.samples[self.samples.groupby("group")["label"].transform("nunique") > 1]

    def leaked(self) -> pd.DataFrame:
        """The validation and test samples that have a duplicate in training."""
        return self.samples[self._beside_training()]

    def superfluous(self) -> pd.DataFrame:
        """What a clean view leaves out: leaked samples, and within a split all but the first of a group."""
        return self.samples[self._beside_training() | self.samples.duplicated(["group", "split"])]

    def among(self, labels: "np.ndarray[Any, Any]") -> "Duplicates":
        """The duplicates that are left when only samples of these labels are."""
        kept = self.samples[self.samples["label"].isin(labels)]
        return Duplicates(self.kind, kept[kept.groupby("group")["group"].transform("size") > 1])

    def _beside_training(self) -> "pd.Series[bool]":
        is_train = self.samples["split"] == "train"
        return is_train.groupby(self.samples["group"]).transform("any") & ~is_train


def find_duplicates(dataset: ShardedDataset, kind: Kind, engine: Engine) -> Duplicates:
    """Find the duplicates among all splits of a dataset or a view; DatasetError if a picture cannot be read."""
    columns = ["key", "label", "source_sha256", "dhash", "shard", "jpg_offset", "jpg_size"]
    frames = []
    for split in dataset.splits:
        frame = dataset.index(split, columns)
        frames.append(frame.assign(split=split, row=np.arange(len(frame), dtype=np.int64)))
    samples = pd.concat(frames, ignore_index=True)
    group = pd.factorize(samples["source_sha256"])[0].astype(np.int64)
    if kind == "near":
        group = _joined_by_likeness(dataset, samples, group, engine)
    samples["group"] = group
    found = samples.loc[np.bincount(group)[group] > 1, ["group", "split", "row", "label", "key"]]
    order = found["split"].map({split: number for number, split in enumerate(SPLITS)})
    found = found.assign(group=pd.factorize(found["group"])[0].astype(np.int64), order=order)
    found = found.sort_values(["group", "order", "row"], ignore_index=True)
    return Duplicates(kind, found.drop(columns="order"))


def near_pairs(hashes: Hashes, max_distance: int = MAX_DISTANCE) -> Iterator[tuple[Ints, Ints]]:
    """Pairs of positions whose hashes are at most `max_distance` bits apart (0 to 4), in batches.

    `hashes` uint64 [N]. Every pair comes at least once, in either order and perhaps in several batches, but for
    pairs more than 2,000 places apart in a bucket of one partial hash.
    """
    for chosen in combinations(range(_BLOCKS), _UNCHANGED):
        mask = np.uint64(sum(_block_mask(block) for block in chosen))
        order = np.lexsort((hashes, hashes & mask))
        keys = (hashes & mask)[order]
        ends = np.searchsorted(keys, keys, side="right")
        left = np.arange(len(keys))
        for step in range(1, _FARTHEST):
            left = left[left + step < ends[left]]
            if not len(left):
                break
            for start in range(0, len(left), _PAIRS_AT_ONCE):
                part = left[start : start + _PAIRS_AT_ONCE]
                a, b = order[part], order[part + step]
                close = np.bitwise_count(hashes[a] ^ hashes[b]) <= max_distance
                if close.any():
                    yield a[close], b[close]


def look_alike(a: "np.ndarray[Any, Any]", b: "np.ndarray[Any, Any]") -> bool:
    """Whether two small pictures (uint8 [32, 32, 3]) show the same: correlated, and of the same colour on average."""
    x, y = a.astype(np.float32), b.astype(np.float32)
    if np.abs(x.mean(axis=(0, 1)) - y.mean(axis=(0, 1))).max() > _LARGEST_DIFFERENCE:
        return False
    x, y = x - x.mean(axis=(0, 1)), y - y.mean(axis=(0, 1))
    scale = float(np.sqrt((x * x).sum() * (y * y).sum()))
    return scale > 0 and float((x * y).sum()) / scale >= _LEAST_CORRELATION


def _block_mask(block: int) -> int:
    start, end = block * 64 // _BLOCKS, (block + 1) * 64 // _BLOCKS
    return ((1 << end) - 1) ^ ((1 << start) - 1)


def _joined_by_likeness(dataset: ShardedDataset, samples: pd.DataFrame, exact: Ints, engine: Engine) -> Ints:
    """Join exact groups whose pictures look alike: candidates by their hashes, confirmed on the pictures."""
    groups = _Groups(exact)
    firsts = np.flatnonzero(~pd.Series(exact).duplicated())  # one picture of each exact group
    hashes = samples["dhash"].to_numpy()[firsts]
    bits = np.bitwise_count(hashes)
    telling = (bits >= _LEAST_BITS) & (bits <= 64 - _LEAST_BITS)
    firsts, hashes = firsts[telling], hashes[telling]
    order = np.argsort(hashes, kind="stable")
    same = np.flatnonzero(hashes[order][1:] == hashes[order][:-1])
    unique, representative, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    _confirm(dataset, samples, firsts[order[same]], firsts[order[same + 1]], groups, engine)
    _confirm(dataset, samples, firsts[representative[inverse]], firsts, groups, engine)
    for left, right in near_pairs(unique):
        _confirm(dataset, samples, firsts[representative[left]], firsts[representative[right]], groups, engine)
    return groups.labels()


class _Groups:
    """Disjoint sets of rows, joined pair by pair."""

    def __init__(self, group: Ints) -> None:
        _, first, inverse = np.unique(group, return_index=True, return_inverse=True)
        self._parent = first[inverse].astype(np.int64)

    def root(self, row: int) -> int:
        while (above := int(self._parent[row])) != row:
            self._parent[row] = self._parent[above]
            row = above
        return row

    def join(self, a: int, b: int) -> None:
        a, b = sorted((self.root(a), self.root(b)))
        self._parent[b] = a

    def labels(self) -> Ints:
        """The set of each row, int64 [N], numbered from 0."""
        while (above := self._parent[self._parent]).tolist() != self._parent.tolist():
            self._parent = above
        return np.unique(self._parent, return_inverse=True)[1].astype(np.int64)


@dataclass(frozen=True, slots=True)
class _ToShrink:
    number: int
    folder: Folder
    places: list[tuple[str, int, int]]


def _confirm(
    dataset: ShardedDataset, samples: pd.DataFrame, left: Ints, right: Ints, groups: _Groups, engine: Engine
) -> None:
    """Join the pairs that look alike; a pair that is joined already is not looked at."""
    for start in range(0, len(left), _PAIRS_TO_CONFIRM):
        ends = slice(start, start + _PAIRS_TO_CONFIRM)
        pairs = [(a, b) for a, b in zip(left[ends].tolist(), right[ends].tolist(), strict=True) if a != b]
        pairs = [(a, b) for a, b in pairs if groups.root(a) != groups.root(b)]
        if not pairs:
            continue
        rows = np.unique(np.array(pairs))
        table = samples.loc[rows, ["shard", "jpg_offset", "jpg_size"]].sort_values(["shard", "jpg_offset"])
        places = [(str(shard), int(offset), int(size)) for shard, offset, size in table.itertuples(index=False)]
        tasks = [
            _ToShrink(number, dataset.shards_folder, places[first : first + _PICTURES_A_TASK])
            for number, first in enumerate(range(0, len(places), _PICTURES_A_TASK))
        ]
        parts = dict(engine.run(_shrink, tasks))
        pictures = np.concatenate([parts[number] for number in range(len(tasks))])
        place_of = dict(zip(table.index.tolist(), range(len(table)), strict=True))
        for a, b in pairs:
            if groups.root(a) != groups.root(b) and look_alike(pictures[place_of[a]], pictures[place_of[b]]):
                groups.join(a, b)


def _shrink(task: _ToShrink) -> tuple[int, "np.ndarray[Any, np.dtype[np.uint8]]"]:
    """Stored pictures as uint8 [N, 32, 32, 3]; a task of its own."""
    small = np.empty((len(task.places), _CONFIRM_SIZE, _CONFIRM_SIZE, 3), dtype=np.uint8)
    for i, (shard, offset, num_bytes) in enumerate(task.places):
        try:
            data = task.folder.read_range(shard, offset, num_bytes)
            with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
                image.draft("RGB", (2 * _CONFIRM_SIZE, 2 * _CONFIRM_SIZE))
                rgb = image.convert("RGB")
        except (OSError, SyntaxError, ValueError) as error:
            where = f"{task.folder.location(shard)}: the picture at {offset:,}"
            raise DatasetError(f"{where} cannot be read ({error}); run `lmk-shard verify`") from error
        small[i] = np.asarray(rgb.resize((_CONFIRM_SIZE, _CONFIRM_SIZE), Image.Resampling.BOX))
    return task.number, small
