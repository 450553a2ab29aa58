"""Find rows by their keys: a sorted array of hashes instead of a dict, which takes a tenth of the memory."""

import secrets

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

_WORD = 8  # bytes of a key that are hashed at once
_SPREAD = np.uint64(29)
_MAX_STEPS = 64  # rows with the same hash that are compared; honest keys have one


class KeyIndex:
    """The row of each of N keys, which have the form of the format.

    Hashes begin with a secret, so that no dataset can be made whose keys have the same one.
    """

    def __init__(self, keys: pa.LargeStringArray) -> None:
        self.keys = keys
        self._factors = np.array([secrets.randbits(64) | 1 for _ in range(2)], dtype=np.uint64)
        hashes = self._hashes(keys)
        self._rows = np.argsort(hashes, kind="stable").astype(np.int32)
        self._sorted = hashes[self._rows]

    def repeated(self) -> str | None:
        """Return a key that occurs twice, or None."""
        same = np.flatnonzero(self._sorted[1:] == self._sorted[:-1])
        for i in same.tolist():
            first, second = (self.key(int(row)) for row in self._rows[i : i + 2])
            if first == second:
                return first
        return None

    def key(self, row: int) -> str:
        """Return the key of a row."""
        key: str = self.keys[row].as_py()
        return key

    def row(self, key: str) -> int:
        """Return the row of a key. Raises KeyError if there is none."""
        found = int(self.rows(pa.array([key], pa.large_string()))[0])
        if found < 0:
            raise KeyError(key)
        return found

    def rows(self, keys: pa.Array | pa.ChunkedArray) -> NDArray[np.int32]:
        """Return the row of each of M keys, int32 [M]; -1 for a key that is not here."""
        wanted = large_strings(keys)
        rows = np.full(len(wanted), -1, dtype=np.int32)
        if not len(self._rows) or not len(wanted):
            return rows
        hashes = self._hashes(wanted)
        asked = np.argsort(hashes)  # a search for sorted values stays in the processor's cache
        places = np.searchsorted(self._sorted, hashes[asked])
        for _ in range(_MAX_STEPS):
            inside = places < len(self._sorted)
            asked, places = asked[inside], places[inside]
            same = self._sorted[places] == hashes[asked]
            asked, places = asked[same], places[same]
            if not len(asked):
                break
            found = self._rows[places]
            equal = pc.equal(self.keys.take(pa.array(found)), wanted.take(pa.array(asked))).to_numpy(False)
            rows[asked[equal]] = found[equal]
            asked, places = asked[~equal], places[~equal] + 1
        return rows

    def _hashes(self, keys: pa.LargeStringArray) -> NDArray[np.uint64]:
        """Return a hash of each key, uint64 [N]."""
        offsets = np.frombuffer(keys.buffers()[1], np.int64)[keys.offset : keys.offset + len(keys) + 1]
        text = b"" if keys.buffers()[2] is None else memoryview(keys.buffers()[2])[: offsets[-1]]
        data = np.frombuffer(b"".join((text, bytes(_WORD))), np.uint8)
        words = np.ndarray(len(data) - _WORD + 1, np.dtype("<u8"), data, strides=(1,))
        starts, lengths = offsets[:-1], np.diff(offsets)
        hashes: NDArray[np.uint64] = lengths.astype(np.uint64) + self._factors[0]
        for first in range(0, int(lengths.max(initial=0)), _WORD):
            rows = np.flatnonzero(lengths > first)
            unused = np.uint64(8) * (_WORD - np.minimum(lengths[rows] - first, _WORD)).astype(np.uint64)
            word = words[starts[rows] + first] << unused
            mixed = (hashes[rows] ^ word) * self._factors[1]
            hashes[rows] = mixed ^ (mixed >> _SPREAD)
        return hashes


def large_strings(column: pa.Array | pa.ChunkedArray) -> pa.LargeStringArray:
    """Return texts as one array with offsets of 64 bits; null becomes the empty text, which is no key."""
    if isinstance(column, pa.ChunkedArray):
        chunks = [chunk.cast(pa.large_string()) for chunk in column.chunks]
        column = pa.concat_arrays(chunks) if chunks else pa.array([], pa.large_string())
    return pc.fill_null(column.cast(pa.large_string()), "")
