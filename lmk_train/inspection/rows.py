"""Features of many samples as rows that are read from disk in parts, and the samples that an inspection judges."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class FeatureRows(Protocol):
    """Features float16 [N, D], in memory or on disk."""

    @property
    def shape(self) -> tuple[int, ...]:
        """N and D."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any, /) -> Any:
        """Return these rows, float16 [B, D]; rows are a slice or integers [B]."""


@dataclass(frozen=True)
class Samples:
    """The samples of an inspection: features float16 [N, D], L2-normalised, and labels int32 [N] in 0..K-1."""

    features: FeatureRows
    labels: NDArray[np.int32]
    num_classes: int

    def __len__(self) -> int:
        return len(self.labels)


class SplitFeatures:
    """The features of several splits, one below the other, as one float16 array [N, D] on disk.

    It is read as an array is: a slice or an array of rows gives float16 [B, D] in memory.
    """

    def __init__(self, parts: Sequence[NDArray[np.float16]]) -> None:
        """Join the features of splits, float16 [n, D] each, memory-mapped."""
        self._parts = list(parts)
        self._starts = np.cumsum([0, *map(len, parts)])
        self.shape: tuple[int, int] = (int(self._starts[-1]), int(parts[0].shape[1]))
        self.dtype: np.dtype[Any] = np.dtype(np.float16)
        self.ndim = 2

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | NDArray[np.integer[Any]]) -> NDArray[np.float16]:
        """Return these rows, float16 [B, D]."""
        if isinstance(rows, slice):
            start, stop, step = rows.indices(len(self))
            if step != 1:
                return self[np.arange(start, stop, step)]
            bounds = zip(self._starts[:-1].tolist(), self._starts[1:].tolist(), self._parts, strict=True)
            return np.concatenate(
                [part[max(start, low) - low : max(min(stop, high), low) - low] for low, high, part in bounds]
            )
        wanted = np.asarray(rows)
        out = np.empty((len(wanted), self.shape[1]), np.float16)
        part_of_row = np.searchsorted(self._starts, wanted, side="right") - 1
        for number in np.unique(part_of_row).tolist():
            own = part_of_row == number
            out[own] = self._parts[number][wanted[own] - self._starts[number]]
        return out
