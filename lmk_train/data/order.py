"""Which samples, in which order: pure functions of (seed, epoch, step, rank), the same on every machine."""

from typing import Any

import numpy as np

from lmk_train.config.training import Sampling
from lmk_train.runtime.world import Rows

WINDOW_SHARDS = 16
WINDOW_SAMPLES = 60_000  # 16 shards of full size have more; a view that holds little of each shard takes more shards
Labels = np.ndarray[tuple[int], np.dtype[np.int64]]
Hashes = np.ndarray[Any, np.dtype[np.uint64]]
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
# What the second number after (seed, epoch) stands for, so that no two uses share a hash.
_SHARDS, _SAMPLES, _AUGMENTATION, _CHOICE, _EXTRA = 1, 2, 3, 5, 6


def counter_hash(*counters: "int | np.ndarray[Any, Any]") -> Hashes:
    """A 64-bit hash of a tuple of counters, broadcast over arrays: uint64 of their common shape.

    SplitMix64's finaliser (Steele, Lea, Flood 2014), applied once per counter: draws need no state, so any sample
    of any epoch can be drawn anywhere, in any order.
    """
    with np.errstate(over="ignore"):
        state: Hashes = np.asarray(np.uint64(0))
        for counter in counters:
            state = _mix(state * np.uint64(3) + _GOLDEN + np.asarray(counter).astype(np.uint64))
    return state


def augmentation_hashes(picks: Rows, seed: int, epoch: int, num: int) -> Hashes:
    """`num` 64-bit hashes of each pick, uint64 [B, num]: functions of (seed, epoch, pick) and of nothing else."""
    return counter_hash(seed, epoch, _AUGMENTATION, picks[:, None], np.arange(num)[None, :])


def epoch_order(
    labels: Labels,
    shard_of_row: "np.ndarray[tuple[int], np.dtype[np.int32]]",
    seed: int,
    epoch: int,
    sampling: Sampling = "uniform",
) -> Rows:
    """The global order of one epoch: picks, int64 [epoch_length(labels, sampling)].

    A pick is `row + N * repetition` for N rows: `pick % N` is the row, and two picks of the same row are told apart,
    so that they are augmented differently. Under uniform sampling an epoch is a permutation of the rows.

    Shards are permuted and cut into windows; samples are permuted within a window, so that disks still see long runs.
    A window has 16 shards, or more where fewer than 60,000 samples would be in them.
    """
    picks = _chosen(labels, seed, epoch, sampling)
    num_rows = len(shard_of_row)
    num_shards = int(shard_of_row.max(initial=-1)) + 1
    place = np.empty(num_shards, dtype=np.int64)
    place[np.argsort(counter_hash(seed, epoch, _SHARDS, np.arange(num_shards)), kind="stable")] = np.arange(num_shards)
    window = (place // window_shards(num_rows, num_shards))[shard_of_row]
    return picks[np.lexsort((counter_hash(seed, epoch, _SAMPLES, picks), window[picks % num_rows]))]


def window_shards(num_rows: int, num_shards: int) -> int:
    """How many shards are open at once in one epoch's order."""
    return max(WINDOW_SHARDS, -(-WINDOW_SAMPLES * num_shards // max(1, num_rows)))


def epoch_length(labels: Labels, sampling: Sampling) -> int:
    """Picks in an epoch: N, and more than N under repeat-factor sampling; the same in every epoch."""
    return int(_picks_of_class(np.bincount(labels), sampling).sum()) if sampling == "repeat-factor" else len(labels)


def num_batches(num_picks: int, batch_size: int, *, drop_last: bool) -> int:
    """Steps of an epoch: training drops the last short batch, evaluation keeps it."""
    return num_picks // batch_size if drop_last else -(-num_picks // batch_size)


def batch_picks(order: Rows, step: int, batch_size: int) -> Rows:
    """The global batch of one step of an epoch, the same for any number of ranks and workers."""
    return order[step * batch_size : (step + 1) * batch_size]


def _chosen(labels: Labels, seed: int, epoch: int, sampling: Sampling) -> Rows:
    """The picks of an epoch, in no order: each class as often as `sampling` says, its rows as evenly as can be."""
    rows = np.arange(len(labels), dtype=np.int64)
    if sampling == "uniform":
        return rows
    held = np.bincount(labels)
    wanted = _picks_of_class(held, sampling)
    if sampling == "class-balanced":
        wanted = _with_remainder(wanted, held, len(labels), seed, epoch)
    by_class = np.lexsort((counter_hash(seed, epoch, _CHOICE, rows), labels))
    place_in_class = rows - np.repeat(held.cumsum() - held, held)
    of_class = labels[by_class]
    whole, rest = np.divmod(wanted, np.maximum(held, 1))
    times = whole[of_class] + (place_in_class < rest[of_class])
    repetition = np.arange(times.sum()) - np.repeat(times.cumsum() - times, times)
    picks: Rows = np.repeat(by_class, times) + repetition * len(labels)
    return picks


def _picks_of_class(held: Labels, sampling: Sampling) -> Labels:
    """Picks of each class in an epoch, of the samples that it has; class-balanced leaves a remainder.

    repeat-factor (Gupta, Dollar, Girshick 2019): a sample comes max(1, sqrt(t / f)) times, f being its class's share
    of the samples; t is the share that every class would have if all were equal, so that no threshold is to be set.
    """
    present = held > 0
    if sampling == "class-balanced":
        equal: Labels = present * (held.sum() // max(1, present.sum()))
        return equal
    mean = held.sum() / max(1, present.sum())
    repeated: Labels = np.rint(held * np.maximum(1, np.sqrt(mean / np.maximum(held, 1)))).astype(np.int64)
    return repeated


def _with_remainder(wanted: Labels, held: Labels, total: int, seed: int, epoch: int) -> Labels:
    """One pick more for as many classes as are needed to reach `total`, other ones each epoch."""
    present = np.flatnonzero(held)
    lucky = np.argsort(counter_hash(seed, epoch, _EXTRA, present), kind="stable")[: total - wanted.sum()]
    more = wanted.copy()
    more[present[lucky]] += 1
    return more


def _mix(state: Hashes) -> Hashes:
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
