"""The nearest of many unit vectors to some, by cosine, in blocks: nothing of the size of all pairs is held."""

import numpy as np
import torch
from numpy.typing import NDArray

BLOCK_ROWS = 8192


def unit_vectors(features: torch.Tensor) -> torch.Tensor:
    """Return float32 [B, D] divided by their lengths; zeros stay zeros."""
    return torch.nn.functional.normalize(features.float(), dim=1)


def nearest(
    index: NDArray[np.float16], queries: torch.Tensor, number: int, block_rows: int = BLOCK_ROWS
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the largest cosines of each query, float32 [B, k], falling, and the rows of the index, int64 [B, k].

    The index is read once from start to end, so a batch of queries costs little more than one query while it is read
    from disk. Of rows with the same cosine any may come first.

    Args:
        index: unit vectors, float16 [N, D], in memory or memory-mapped; at least one.
        queries: unit vectors, float32 [B, D], on the device that computes.
        number: k, at most N.
        block_rows: of the index that are compared at once.
    """
    best = queries.new_full((len(queries), number), -torch.inf)
    rows = torch.full((len(queries), number), len(index), dtype=torch.int64, device=queries.device)
    for start in range(0, len(index), block_rows):
        block = torch.from_numpy(np.array(index[start : start + block_rows])).to(queries.device)
        cosines = queries @ block.float().T
        found = cosines.topk(min(number, len(block)), dim=1)
        if not bool((found.values[:, 0] > best[:, -1]).any()):
            continue
        best, order = torch.cat([best, found.values], dim=1).sort(dim=1, descending=True, stable=True)
        rows = torch.cat([rows, found.indices + start], dim=1).gather(1, order)[:, :number]
        best = best[:, :number]
    return best, rows
