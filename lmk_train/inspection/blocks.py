"""Read the features of a dataset in blocks, and the sums that one pass over them gives."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from lmk_data.errors import UserError

Features = NDArray[np.float16] | NDArray[np.float32]
_ROWS = 4096  # rows that are in memory at a time, as float32


@dataclass(frozen=True, slots=True)
class Moments:
    """Weighted sums over samples with `centre` [D] subtracted: of weights [K], features [K, D] and products [D, D]."""

    centre: torch.Tensor
    counts: torch.Tensor
    sums: torch.Tensor
    products: torch.Tensor


def blocks(features: Features, device: torch.device) -> Iterator[tuple[slice, torch.Tensor]]:
    """Yield (rows, the features of these rows as float32 [B, D] on the device) in order.

    Raises:
        UserError: a feature is not finite.
    """
    for start in range(0, len(features), _ROWS):
        rows = slice(start, min(start + _ROWS, len(features)))
        block = torch.from_numpy(np.array(features[rows], dtype=np.float32)).to(device)
        if not bool(torch.isfinite(block).all()):
            row = start + int(torch.nonzero(~torch.isfinite(block).all(1))[0, 0])
            raise UserError(f"features: row {row} is not finite; compute the features again with weights that work")
        yield rows, block


def moments(
    features: Features, labels: NDArray[np.int32], weights: NDArray[np.float32], num_classes: int, device: torch.device
) -> Moments:
    """Return the moments of features, in one pass.

    Args:
        features: [N, D].
        labels: int32 [N] in 0..K-1.
        weights: how much each sample counts, float32 [N].
        num_classes: K.
        device: where the sums are computed.

    Raises:
        UserError: a feature is not finite.
    """
    dim = features.shape[1]
    centre = torch.zeros(dim, device=device)
    counts = torch.zeros(num_classes, device=device)
    sums = torch.zeros((num_classes, dim), device=device)
    products = torch.zeros((dim, dim), dtype=torch.float64, device=device)
    for rows, block in blocks(features, device):
        if rows.start == 0:
            centre = block.mean(0)  # close to the mean of all, which keeps the products precise
        centred, weight = block - centre, torch.from_numpy(weights[rows]).to(device)
        weighted, label = centred * weight[:, None], torch.from_numpy(labels[rows].astype(np.int64)).to(device)
        counts.index_add_(0, label, weight)
        sums.index_add_(0, label, weighted)
        products += weighted.T @ centred
    return Moments(centre, counts, sums, products)


def class_sums(features: Features, labels: NDArray[np.int32], num_classes: int, device: torch.device) -> torch.Tensor:
    """Return the sums of the features [N, D] of each class, float32 [K, D]."""
    sums = torch.zeros((num_classes, features.shape[1]), device=device)
    for rows, block in blocks(features, device):
        sums.index_add_(0, torch.from_numpy(labels[rows].astype(np.int64)).to(device), block)
    return sums
