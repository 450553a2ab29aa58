"""Pairs of perceptual hashes that differ in a few bits, found without comparing all pairs."""

from collections.abc import Iterator
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

MAX_DISTANCE = 4
# With 4 bits changed, at least 2 of 6 blocks of bits are unchanged: 15 keys of about 21 bits find every pair.
_NUM_BLOCKS = 6
_NUM_UNCHANGED = _NUM_BLOCKS - MAX_DISTANCE
_MAX_PAIRS_AT_ONCE = 4_000_000
_MAX_STEP = 2_000  # positions apart in the bucket of one key: bounds the work if thousands of images look alike


def near_pairs(
    hashes: NDArray[np.uint64], max_distance: int = MAX_DISTANCE
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yield batches of pairs of positions, int64 [M] each, whose hashes are at most `max_distance` bits apart (0 to 4).

    `hashes` is uint64 [N]. Every pair is yielded at least once, in either order and possibly in several batches,
    except pairs that are more than 2,000 positions apart in the bucket of one partial hash.
    """
    for chosen in combinations(range(_NUM_BLOCKS), _NUM_UNCHANGED):
        mask = np.uint64(sum(_block_mask(block) for block in chosen))
        order = np.lexsort((hashes, hashes & mask))
        keys = (hashes & mask)[order]
        ends = np.searchsorted(keys, keys, side="right")
        left = np.arange(len(keys))
        for step in range(1, _MAX_STEP):
            left = left[left + step < ends[left]]
            if not len(left):
                break
            for start in range(0, len(left), _MAX_PAIRS_AT_ONCE):
                part = left[start : start + _MAX_PAIRS_AT_ONCE]
                a, b = order[part], order[part + step]
                close = np.bitwise_count(hashes[a] ^ hashes[b]) <= max_distance
                if close.any():
                    yield a[close], b[close]


def _block_mask(block: int) -> int:
    """Return the mask of one of the 6 blocks of bits of a 64-bit hash."""
    start, end = block * 64 // _NUM_BLOCKS, (block + 1) * 64 // _NUM_BLOCKS
    return ((1 << end) - 1) ^ ((1 << start) - 1)
