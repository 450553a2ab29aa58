"""Exact and near duplicates among the pictures of a dataset: groups, label conflicts, leakage between splits.

Exact duplicates have the same source bytes. Near duplicates have perceptual hashes at most 4 bits apart, and are
confirmed on the stored pictures.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from lmk_data.dataset.format import SPLITS
from lmk_data.dataset.reader import ShardedDataset
from lmk_data.errors import DatasetError
from lmk_data.options import DuplicateKind
from lmk_data.system.engine import local_engine
from lmk_data.system.terminal import progress_bar

if TYPE_CHECKING:
    from tqdm import tqdm

MAX_DISTANCE = 4
# With 4 bits changed, at least 2 of 6 blocks of bits are unchanged: 15 keys of about 21 bits find every pair.
_BLOCKS = 6
_UNCHANGED = _BLOCKS - MAX_DISTANCE
_LEAST_BITS = 6  # of either kind in a useful hash: nearly flat pictures share the other hashes
_PAIRS_AT_ONCE = 4_000_000
_FARTHEST = 2_000  # positions apart in the bucket of a key: bounds the work where thousands of pictures look alike
_CONFIRM_SIZE = 32
_LEAST_CORRELATION = 0.95
_LARGEST_DIFFERENCE = 24.0  # of the mean colours, in 0..255
_PAIRS_WAITING = 4_000_000  # candidates before they are compared
_PAIRS_COMPARED = 65_536
_PICTURES_KEPT = 2 * _PAIRS_COMPARED  # at 32x32: 400 MB
_REJECTED_KEPT = 4_000_000
_PICTURES_A_TASK, _PAIRS_A_TASK = 128, 256
_BAR_AFTER_SECONDS = 2.0


@dataclass(frozen=True)
class Duplicates:
    """All samples that have a duplicate, in groups of at least two.

    `samples`: one row per sample, ordered by group, split and row: group (int64), split, row (int64, in the index of
    the split), label (int32), key.
    """

    kind: DuplicateKind
    samples: pd.DataFrame

    @property
    def num_groups(self) -> int:
        """The number of groups."""
        return int(self.samples["group"].nunique())

    def conflicts(self) -> pd.DataFrame:
        """Return the samples of groups with more than one label."""
        return self.samples[self.samples.groupby("group")["label"].transform("nunique") > 1]

    def leaked(self) -> pd.DataFrame:
        """Return the validation and test samples that have a duplicate in training."""
        return self.samples[self._beside_training()]

    def superfluous(self) -> pd.DataFrame:
        """Return the samples that a clean view leaves out: leaked ones, and per split all but the first of a group."""
        return self.samples[self._beside_training() | self.samples.duplicated(["group", "split"])]

    def among(self, labels: NDArray[np.integer[Any]]) -> "Duplicates":
        """Return the duplicates among the samples of these labels."""
        kept = self.samples[self.samples["label"].isin(labels)]
        return Duplicates(self.kind, kept[kept.groupby("group")["group"].transform("size") > 1])

    def _beside_training(self) -> "pd.Series[bool]":
        is_train = self.samples["split"] == "train"
        return is_train.groupby(self.samples["group"]).transform("any") & ~is_train


def find_duplicates(
    dataset: ShardedDataset, kind: DuplicateKind, *, workers: int | None = None, quiet: bool = True
) -> Duplicates:
    """Return the duplicates in all splits of a dataset or a view. Raises DatasetError if a picture cannot be read.

    `workers` threads, by default one per core, compare pictures for near duplicates.
    """
    columns = ["key", "label", "source_sha256", "dhash", "shard", "jpg_offset", "jpg_size"]
    frames = []
    for split in dataset.splits:
        frame = dataset.index(split, columns)
        frames.append(frame.assign(split=split, row=np.arange(len(frame), dtype=np.int64)))
    samples = pd.concat(frames, ignore_index=True)
    group = pd.factorize(samples["source_sha256"])[0].astype(np.int64)
    if kind == "near":
        with (
            progress_bar(0, "near duplicates", "pictures", quiet=quiet, delay_seconds=_BAR_AFTER_SECONDS) as bar,
            ThreadPoolExecutor(local_engine(workers).workers) as pool,
        ):
            group = _joined_by_likeness(samples, group, _SmallPictures(dataset, samples, pool, bar))
    samples["group"] = group
    found = samples.loc[np.bincount(group)[group] > 1, ["group", "split", "row", "label", "key"]]
    order = found["split"].map({split: number for number, split in enumerate(SPLITS)})
    found = found.assign(group=pd.factorize(found["group"])[0].astype(np.int64), order=order)
    found = found.sort_values(["group", "order", "row"], ignore_index=True)
    return Duplicates(kind, found.drop(columns="order"))


def near_pairs(
    hashes: NDArray[np.uint64], max_distance: int = MAX_DISTANCE
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yield pairs of positions whose hashes (uint64 [N]) are at most `max_distance` bits apart (0 to 4), in batches.

    Every pair appears at least once, in either order and perhaps in several batches, except pairs that are more than
    2,000 positions apart in the bucket of a partial hash.
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


def small_picture(jpeg: bytes) -> NDArray[np.uint8]:
    """Return a stored picture at the size used to compare, uint8 [32, 32, 3]. Raises ValueError if it is damaged."""
    least = 3 * _CONFIRM_SIZE // 2  # of 224 pixels a quarter, for which the decoder has vector code
    rgb = simplejpeg.decode_jpeg(jpeg, "RGB", min_height=least, min_width=least, min_factor=1)
    size = (_CONFIRM_SIZE, _CONFIRM_SIZE)
    return np.asarray(Image.fromarray(rgb).resize(size, Image.Resampling.BOX))


def look_alike(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return which pairs of small pictures (uint8 [..., 32, 32, 3]) look alike: correlated, of similar mean colour."""
    x, y = _channels(a), _channels(b)
    x_mean, y_mean = x.mean(axis=-1, keepdims=True), y.mean(axis=-1, keepdims=True)
    same_colour = np.abs(x_mean - y_mean).max(axis=(-2, -1)) <= _LARGEST_DIFFERENCE
    x -= x_mean
    y -= y_mean
    products = (np.einsum("...cp,...cp->...", *pair) for pair in ((x, x), (y, y), (x, y)))
    x_square, y_square, covariance = products
    scale = np.sqrt(x_square * y_square)
    alike: NDArray[np.bool_] = same_colour & (scale > 0) & (covariance >= _LEAST_CORRELATION * scale)
    return alike


def _channels(pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return pictures [..., 32, 32, 3] as float32 [..., 3, 1024]: sums over adjacent numbers are fast."""
    pixels = pictures.reshape(*pictures.shape[:-3], -1, pictures.shape[-1])
    return pixels.swapaxes(-1, -2).astype(np.float32, order="C")


def _block_mask(block: int) -> int:
    start, end = block * 64 // _BLOCKS, (block + 1) * 64 // _BLOCKS
    return ((1 << end) - 1) ^ ((1 << start) - 1)


def _joined_by_likeness(
    samples: pd.DataFrame, exact: NDArray[np.int64], pictures: "_SmallPictures"
) -> NDArray[np.int64]:
    """Return the group of each sample after joining exact groups whose pictures look alike, int64 [N].

    Candidates have similar hashes, and are confirmed on the pictures.
    """
    groups = _Groups(exact)
    firsts = np.flatnonzero(~pd.Series(exact).duplicated())  # one picture of each exact group
    hashes = samples["dhash"].to_numpy()[firsts]
    bits = np.bitwise_count(hashes)
    telling = (bits >= _LEAST_BITS) & (bits <= 64 - _LEAST_BITS)
    firsts, hashes = firsts[telling], hashes[telling]
    order = np.argsort(hashes, kind="stable")
    firsts, hashes = firsts[order], hashes[order]
    candidates = _Candidates(groups, pictures)
    same = np.flatnonzero(hashes[1:] == hashes[:-1])
    candidates.add(firsts[same], firsts[same + 1])
    candidates.add(firsts[np.searchsorted(hashes, hashes)], firsts)
    candidates.compare()
    # Pictures of one hash need not look alike, so each group that has a hash is represented.
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
        """Return one row that represents the set of each of these rows, int64 [N]."""
        root = self._parent[rows]
        while not np.array_equal(above := self._parent[root], root):
            root = above
        self._parent[rows] = root
        return root

    def join(self, left: NDArray[np.int64], right: NDArray[np.int64]) -> None:
        """Join the sets of each pair."""
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
    """Pairs of rows that may look alike: collected, then compared many at a time, each pair once."""

    def __init__(self, groups: _Groups, pictures: "_SmallPictures") -> None:
        self._groups, self._pictures = groups, pictures
        self._waiting: list[NDArray[np.int64]] = []
        self._num_waiting = 0
        self._rejected = np.empty(0, dtype=np.int64)

    def add(self, left: NDArray[np.int64], right: NDArray[np.int64]) -> None:
        """Collect pairs, and compare them once there are many."""
        self._waiting.append(np.minimum(left, right) * len(self._groups) + np.maximum(left, right))
        self._num_waiting += len(left)
        if self._num_waiting >= _PAIRS_WAITING:
            self.compare()

    def compare(self) -> None:
        """Join the pairs that look alike; skip pairs that are already joined or were rejected."""
        pairs = np.setdiff1d(np.concatenate([self._rejected[:0], *self._waiting]), self._rejected)
        self._waiting, self._num_waiting = [], 0
        for start in range(0, len(pairs), _PAIRS_COMPARED):
            part = pairs[start : start + _PAIRS_COMPARED]
            left, right = np.divmod(part, len(self._groups))
            apart = self._groups.roots(left) != self._groups.roots(right)
            part, left, right = part[apart], left[apart], right[apart]
            alike = self._pictures.alike(left, right)
            self._groups.join(left[alike], right[alike])
            kept = self._rejected if len(self._rejected) < _REJECTED_KEPT else self._rejected[:0]
            self._rejected = np.union1d(kept, part[~alike])


class _SmallPictures:
    """Stored pictures at 32x32, read by threads, and read only once as long as they fit in memory."""

    def __init__(
        self, dataset: ShardedDataset, samples: pd.DataFrame, pool: ThreadPoolExecutor, bar: "tqdm[Any]"
    ) -> None:
        self._dataset, self._samples, self._pool, self._bar = dataset, samples, pool, bar
        self._place = np.full(len(samples), -1, dtype=np.int64)
        self._small = np.empty((min(_PICTURES_KEPT, len(samples)), _CONFIRM_SIZE, _CONFIRM_SIZE, 3), dtype=np.uint8)
        self._num_kept = 0

    def alike(self, left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which of at most `_PAIRS_COMPARED` pairs of rows look alike, bool [N]."""
        self._read(np.union1d(left, right))
        a, b = self._place[left], self._place[right]
        starts = range(0, len(left), _PAIRS_A_TASK)
        parts = self._pool.map(
            lambda i: look_alike(self._small[a[i : i + _PAIRS_A_TASK]], self._small[b[i : i + _PAIRS_A_TASK]]), starts
        )
        return np.concatenate([np.empty(0, dtype=np.bool_), *parts])

    def _read(self, rows: NDArray[np.int64]) -> None:
        """Read the rows that are not in memory; if they do not fit, forget all others."""
        missing = rows[self._place[rows] < 0]
        if self._num_kept + len(missing) > len(self._small):
            self._place[:] = -1
            self._num_kept, missing = 0, rows
        table = self._samples.loc[missing, ["shard", "jpg_offset", "jpg_size"]].sort_values(["shard", "jpg_offset"])
        self._bar.total = (self._bar.total or 0) + len(table)
        places = list(table.itertuples(index=False, name=None))
        tasks = [places[start : start + _PICTURES_A_TASK] for start in range(0, len(places), _PICTURES_A_TASK)]
        for task, small in zip(tasks, self._pool.map(self._shrink, tasks), strict=True):
            self._small[self._num_kept : self._num_kept + len(task)] = small
            self._num_kept += len(task)
            self._bar.update(len(task))
        self._place[table.index.to_numpy()] = np.arange(self._num_kept - len(table), self._num_kept)

    def _shrink(self, places: list[tuple[str, int, int]]) -> NDArray[np.uint8]:
        """Return stored pictures (shard, offset, bytes) as uint8 [N, 32, 32, 3]."""
        small = np.empty((len(places), _CONFIRM_SIZE, _CONFIRM_SIZE, 3), dtype=np.uint8)
        for i, (shard, offset, num_bytes) in enumerate(places):
            data = self._dataset.read_bytes(shard, offset, num_bytes)
            try:
                small[i] = small_picture(data)
            except ValueError as error:
                where = f"{self._dataset.shards_folder.location(shard)}: the picture at {offset:,}"
                raise DatasetError(f"{where} cannot be read ({error}); run `lmk-shard verify`") from error
        return small
