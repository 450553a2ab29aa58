"""Class means of features without the sample that is judged, and how well samples fit their class and the others."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from lmk_data.errors import UserError

ROWS = 8192  # rows of features that are in memory at a time, as float32
_CELLS = 1 << 25  # similarities that are in memory at a time


@dataclass(frozen=True, slots=True)
class Fit:
    """How well samples fit classes, as cosines; all [N].

    `own` is to the mean of the other samples of the same class, NaN where there is none. `other_label` is the class
    that fits best among the others and `other` its cosine; -1 and NaN where no other class has a sample.
    """

    own: NDArray[np.float32]
    other_label: NDArray[np.int32]
    other: NDArray[np.float32]


def blocks(features: NDArray[np.float16]) -> Iterator[tuple[slice, torch.Tensor]]:
    """Yield (rows, features of these rows as float32 [B, D]) in order.

    Raises:
        UserError: a feature is not finite.
    """
    for start in range(0, len(features), ROWS):
        rows = slice(start, min(start + ROWS, len(features)))
        block = torch.from_numpy(np.array(features[rows], dtype=np.float32))
        if not bool(torch.isfinite(block).all()):
            row = start + int(torch.nonzero(~torch.isfinite(block).all(1))[0, 0])
            raise UserError(f"features: row {row} is not finite; compute the features again with weights that work")
        yield rows, block


def fit_to_classes(features: NDArray[np.float16], labels: NDArray[np.int32], num_classes: int) -> Fit:
    """Compare samples, features [N, D] and labels [N], with the means of all classes, without the samples themselves.

    Memory is that of the class means, float32 [K, D], and of blocks.
    """
    sums = torch.zeros((num_classes, features.shape[1]))
    counts = np.bincount(labels, minlength=num_classes)
    for rows, block in blocks(features):
        sums.index_add_(0, torch.from_numpy(labels[rows].astype(np.int64)), block)
    means = torch.nn.functional.normalize(sums)
    own = np.full(len(labels), np.nan, dtype=np.float32)
    other = np.full(len(labels), np.nan, dtype=np.float32)
    other_label = np.full(len(labels), -1, dtype=np.int32)
    empty = torch.from_numpy(counts == 0)
    for rows, raw in blocks(features):
        block = torch.nn.functional.normalize(raw)
        targets = torch.from_numpy(labels[rows].astype(np.int64))
        rest = torch.nn.functional.normalize(sums[targets] - block)
        own[rows] = np.where(counts[labels[rows]] > 1, (rest * block).sum(1).numpy(), np.nan)
        if int((counts > 0).sum()) > 1:
            for start in range(0, len(block), step := max(1, _CELLS // num_classes)):
                part = slice(start, start + step)
                similarities = (block[part] @ means.T).masked_fill_(empty, -2)
                best = similarities.scatter_(1, targets[part, None], -2).max(1)
                into = slice(rows.start + start, min(rows.start + start + step, rows.stop))
                other[into], other_label[into] = best.values.numpy(), best.indices.numpy()
    return Fit(own, other_label, other)
