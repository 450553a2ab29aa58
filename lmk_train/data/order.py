"""Which samples are read in which order: pure functions of (seed, epoch, step, rank), the same on every machine.

What an order is made of is a pick, int64: `row + N * repetition`, where N is the number of rows of the split.
`pack_picks` makes picks and `rows_of` takes their rows; nothing else depends on how they are packed. Two picks of the
same row differ, so that they are augmented differently. If every row is picked once, picks are rows.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmk_train.config.training import Sampling

WINDOW_SHARDS = 16
WINDOW_SAMPLES = 60_000  # 16 full-size shards hold more; a view that has few samples of each shard takes more shards
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
# The second counter after (seed, epoch) is the purpose of a hash, so that no two purposes share one.
_SHARDS, _SAMPLES, _AUGMENTATION, _CHOICE, _EXTRA, _MIXING = 1, 2, 3, 5, 6, 7


def pack_picks(rows: NDArray[np.int64], repetitions: NDArray[np.int64], num_rows: int) -> NDArray[np.int64]:
    """Return the picks, int64 [P], of `rows` for the `repetitions`-th time (0-based), both int64 [P]."""
    return rows + repetitions * num_rows


def rows_of(picks: NDArray[np.int64], num_rows: int) -> NDArray[np.int64]:
    """Return the rows of picks: int64 [P] to int64 [P] below `num_rows`."""
    return picks % max(1, num_rows)


def counter_hash(*counters: int | NDArray[Any]) -> NDArray[np.uint64]:
    """Return a 64-bit hash of a tuple of counters, broadcast over arrays: uint64 of their common shape.

    This is the finaliser of SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA
    2014), applied once per counter. Draws need no state: any sample of any epoch can be drawn anywhere, in any order.
    """
    with np.errstate(over="ignore"):
        state: NDArray[np.uint64] = np.asarray(np.uint64(0))
        for counter in counters:
            state = _mix(state * np.uint64(3) + _GOLDEN + np.asarray(counter).astype(np.uint64))
    return state


def augmentation_hashes(picks: NDArray[np.int64], seed: int, epoch: int, num: int) -> NDArray[np.uint64]:
    """Return `num` 64-bit hashes of each pick, uint64 [B, num]; they depend on (seed, epoch, pick) only."""
    return counter_hash(seed, epoch, _AUGMENTATION, picks[:, None], np.arange(num)[None, :])


def mixing_hashes(picks: NDArray[np.int64], seed: int, epoch: int, num: int) -> NDArray[np.uint64]:
    """Return `num` more hashes of each pick for mixing it with another one, uint64 [B, num]."""
    return counter_hash(seed, epoch, _MIXING, picks[:, None], np.arange(num)[None, :])


def epoch_order(
    labels: NDArray[np.int64],
    shard_of_row: NDArray[np.int32],
    seed: int,
    epoch: int,
    sampling: Sampling = "uniform",
) -> NDArray[np.int64]:
    """Return the global order of one epoch: picks, int64 [epoch_length(labels, sampling)].

    Shards are permuted and cut into windows; picks are permuted within a window, so that disks still see long runs.
    A window has 16 shards, or more if 16 would hold fewer than 60,000 samples. Under uniform sampling the order is a
    permutation of the rows.

    Args:
        labels: the class of each row, int64 [N].
        shard_of_row: the number of the shard that holds each row, int32 [N].
        seed: of the training.
        epoch: counted from 0.
        sampling: how often each sample is picked.
    """
    picks = _picks(labels, seed, epoch, sampling)
    num_rows = len(shard_of_row)
    num_shards = int(shard_of_row.max(initial=-1)) + 1
    place = np.empty(num_shards, dtype=np.int64)
    place[np.argsort(counter_hash(seed, epoch, _SHARDS, np.arange(num_shards)), kind="stable")] = np.arange(num_shards)
    window = (place // window_shards(num_rows, num_shards))[shard_of_row]
    return picks[np.lexsort((counter_hash(seed, epoch, _SAMPLES, picks), window[rows_of(picks, num_rows)]))]


def window_shards(num_rows: int, num_shards: int) -> int:
    """Return how many shards are open at once within the order of an epoch."""
    return max(WINDOW_SHARDS, -(-WINDOW_SAMPLES * num_shards // max(1, num_rows)))


def epoch_length(labels: NDArray[np.int64], sampling: Sampling) -> int:
    """Return the number of picks in any epoch: N, or more than N under repeat-factor sampling."""
    return len(labels) if sampling == "class-balanced" else int(class_picks(np.bincount(labels), sampling).sum())


def num_batches(num_picks: int, batch_size: int, *, drop_last: bool) -> int:
    """Return the steps of an epoch. Training drops the last, short batch; evaluation keeps it."""
    return num_picks // batch_size if drop_last else -(-num_picks // batch_size)


def batch_picks(order: NDArray[np.int64], step: int, batch_size: int) -> NDArray[np.int64]:
    """Return the global batch of one step of an epoch, the same for any number of ranks and workers."""
    return order[step * batch_size : (step + 1) * batch_size]


def _picks(labels: NDArray[np.int64], seed: int, epoch: int, sampling: Sampling) -> NDArray[np.int64]:
    """Return the picks of an epoch, not yet in order: as many of each class as `sampling` says.

    The picks of a class are spread over its rows as evenly as possible.
    """
    rows = np.arange(len(labels), dtype=np.int64)
    if sampling == "uniform":
        return rows
    class_sizes = np.bincount(labels)
    wanted = class_picks(class_sizes, sampling)
    if sampling == "class-balanced":
        wanted = _with_remainder(wanted, class_sizes, seed, epoch)
    by_class = np.lexsort((counter_hash(seed, epoch, _CHOICE, rows), labels))
    place_in_class = rows - np.repeat(class_sizes.cumsum() - class_sizes, class_sizes)
    label = labels[by_class]
    whole, rest = np.divmod(wanted, np.maximum(class_sizes, 1))
    times = whole[label] + (place_in_class < rest[label])
    repetitions = np.arange(times.sum()) - np.repeat(times.cumsum() - times, times)
    return pack_picks(np.repeat(by_class, times), repetitions, len(labels))


def class_picks(class_sizes: NDArray[np.int64], sampling: Sampling) -> NDArray[np.int64]:
    """Return the picks of each class in an epoch, int64 [K]; class-balanced sampling leaves a remainder.

    Under repeat-factor sampling (Gupta, Dollar, Girshick, "LVIS", CVPR 2019) a sample is picked max(1, sqrt(t / f))
    times, where f is the share of its class. The threshold t is the share that each class would have if all had the
    same size, so that no threshold has to be set.
    """
    if sampling == "uniform":
        return class_sizes
    present = class_sizes > 0
    if sampling == "class-balanced":
        equal: NDArray[np.int64] = present * (class_sizes.sum() // max(1, present.sum()))
        return equal
    mean = class_sizes.sum() / max(1, present.sum())
    factors = np.maximum(1, np.sqrt(mean / np.maximum(class_sizes, 1)))
    repeated: NDArray[np.int64] = np.rint(class_sizes * factors).astype(np.int64)
    return repeated


def _with_remainder(
    wanted: NDArray[np.int64], class_sizes: NDArray[np.int64], seed: int, epoch: int
) -> NDArray[np.int64]:
    """Return `wanted` plus one pick for as many classes as an epoch of N picks lacks, other classes in each epoch."""
    present = np.flatnonzero(class_sizes)
    lacking = class_sizes.sum() - wanted.sum()
    chosen = np.argsort(counter_hash(seed, epoch, _EXTRA, present), kind="stable")[:lacking]
    more = wanted.copy()
    more[present[chosen]] += 1
    return more


def _mix(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
