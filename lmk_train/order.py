"""Which samples, in which order: pure functions of (seed, epoch, step), the same on every machine."""

from typing import Any

import numpy as np

WINDOW_SHARDS = 16

Rows = np.ndarray[tuple[int], np.dtype[np.int64]]
Hashes = np.ndarray[Any, np.dtype[np.uint64]]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


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


def epoch_order(shard_of_row: "np.ndarray[tuple[int], np.dtype[np.int32]]", seed: int, epoch: int) -> Rows:
    """The global order of one epoch: a permutation of rows 0..N-1, int64 [N].

    Shards are permuted and cut into windows of `WINDOW_SHARDS`; samples are permuted within a window, so that
    disks still see long runs.
    """
    num_rows = len(shard_of_row)
    num_shards = int(shard_of_row.max(initial=-1)) + 1
    place = np.empty(num_shards, dtype=np.int64)
    place[np.argsort(counter_hash(seed, epoch, 1, np.arange(num_shards)), kind="stable")] = np.arange(num_shards)
    window = (place // WINDOW_SHARDS)[shard_of_row]
    return np.lexsort((counter_hash(seed, epoch, 2, np.arange(num_rows)), window))


def num_batches(num_rows: int, batch_size: int, *, drop_last: bool) -> int:
    """Steps of an epoch: training drops the last short batch, evaluation keeps it."""
    return num_rows // batch_size if drop_last else -(-num_rows // batch_size)


def batch_rows(order: Rows, step: int, batch_size: int) -> Rows:
    """The global batch of one step of an epoch, the same for any number of ranks and workers."""
    return order[step * batch_size : (step + 1) * batch_size]


def _mix(state: Hashes) -> Hashes:
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
