"""The features of a split in a .npy file: rows are read as they are needed, and nothing is kept.

A memory map would be simpler, but every page near a row that is read counts as memory of the process: 370 MB for a
class of 4,500 pictures.
"""

import os
from pathlib import Path
from weakref import finalize

import numpy as np
from numpy.typing import NDArray

from lmk_data.browse.tables import one_line
from lmk_data.errors import UserError
from lmk_data.system.files import open_regular


class FeatureFile:
    """Features float16 [M, D] of a stranger, checked when the file is opened."""

    def __init__(self, path: Path, shape: tuple[int, int], again: str) -> None:
        """Open a file. Raises UserError, which ends with `again`, unless it has this shape, in float16."""
        try:
            file = open_regular(path)
            finalize(self, file.close)
            array = np.load(path, mmap_mode="r", allow_pickle=False)
            if array.dtype != np.float16 or array.shape != shape or not array.flags.c_contiguous:
                raise ValueError(f"{array.dtype} {array.shape} instead of float16 {shape}")
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"{path}: not the features of an inspection ({one_line(error)}); {again}") from None
        self._descriptor, self._start, self._dim = file.fileno(), int(array.offset), shape[1]

    def rows(self, places: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return some rows, float32 [len(places), D]; a row that cannot be read is NaN."""
        read = np.full((len(places), self._dim), np.nan, dtype=np.float16)
        num_bytes = 2 * self._dim
        for row, place in zip(read, places.tolist(), strict=True):
            data = os.pread(self._descriptor, num_bytes, self._start + place * num_bytes)
            if len(data) == num_bytes:
                row[:] = np.frombuffer(data, np.float16)
        return read.astype(np.float32)
