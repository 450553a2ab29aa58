"""The features of a split in a .npy file: rows are read as they are needed, and nothing is kept.

A memory map would be simpler, but every page near a row that is read counts as memory of the process: 370 MB for a
class of 4,500 pictures.
"""

import math
import os
from pathlib import Path
from weakref import finalize

import numpy as np
from numpy.typing import NDArray

from lmk_data.errors import UserError, one_line
from lmk_data.system.files import open_regular


class FeatureFile:
    """Features float16 [M, D] of a stranger, checked when the file is opened."""

    def __init__(self, path: Path, shape: tuple[int, int], again: str) -> None:
        """Open a file. Raises UserError, which ends with `again`, unless it has this shape, in float16."""
        try:
            file = open_regular(path)
            finalize(self, file.close)
            if np.lib.format.read_magic(file) != (1, 0):
                raise ValueError("another version of the format")
            stated, is_fortran, dtype = np.lib.format.read_array_header_1_0(file)
            if dtype != np.float16 or stated != shape or is_fortran:
                raise ValueError(f"{dtype} {stated} instead of float16 {shape}")
            self._descriptor, self._start, self._dim = file.fileno(), file.tell(), shape[1]
            if os.fstat(self._descriptor).st_size < self._start + 2 * math.prod(shape):
                raise ValueError("it ends before its last row")
        except (OSError, ValueError, TypeError, EOFError) as error:
            raise UserError(f"{path}: not the features of an inspection ({one_line(error)}); {again}") from None

    def rows(self, places: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return some rows, float32 [len(places), D]; a row that cannot be read is NaN."""
        read = np.full((len(places), self._dim), np.nan, dtype=np.float16)
        num_bytes = 2 * self._dim
        for row, place in zip(read, places.tolist(), strict=True):
            data = os.pread(self._descriptor, num_bytes, self._start + place * num_bytes)
            if len(data) == num_bytes:
                row[:] = np.frombuffer(data, np.float16)
        return read.astype(np.float32)
