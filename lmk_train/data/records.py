"""The JPEG of a sample in its shard: read, checked and decoded; imports neither torch nor pyarrow."""

import os
import zlib
from typing import NamedTuple

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from lmk_data.decoding import check_scans


class Record(NamedTuple):
    """Where the JPEG of a sample lies, and its checksum; the shard by its number."""

    shard: int
    offset: int
    num_bytes: int
    crc32: int


class OpenShard:
    """The open file of a shard, closed when the last reference goes."""

    __slots__ = ("_descriptor",)

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open a file. Raises OSError."""
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def read(self, offset: int, num_bytes: int) -> bytes:
        """Return `num_bytes` from `offset`, or fewer at the end of the file."""
        return os.pread(self._descriptor, num_bytes, offset)

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):  # not if opening failed
            os.close(self._descriptor)


def decode_record(data: bytes, record: Record, out: NDArray[np.uint8]) -> None:
    """Decode one picture into `out`, uint8 [H, W, 3]; raise ValueError if it is not the one that was published."""
    if len(data) != record.num_bytes:
        raise ValueError("the shard ends within it")
    if zlib.crc32(data) != record.crc32:
        raise ValueError("damaged: its checksum is another")
    check_scans(data)
    shape = simplejpeg.decode_jpeg(data, "RGB", buffer=out).shape  # raises ValueError for a larger picture
    if shape != out.shape:
        raise ValueError(f"{shape[1]}x{shape[0]} pixels instead of {out.shape[1]}x{out.shape[0]}")
