"""The headers of the pages of a Parquet file: they state what each page unpacks to, where the footer may state less."""

from typing import Any

import pyarrow.parquet as pq

_UNCOMPRESSED, _COMPRESSED = 2, 3  # fields of a page header
_HEADER_BYTES = 1 << 16  # at most, with the statistics of a page
_TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _LIST, _SET, _STRUCT = 1, 2, 3, 7, 8, 9, 10, 12
_MAX_DEPTH = 8


def unpacked_bytes(source: Any, chunk: pq.ColumnChunkMetaData, max_bytes: int) -> int:
    """Return to how many bytes the pages of a column chunk unpack, by their headers; stop beyond `max_bytes`.

    Raises ValueError for headers that are none.
    """
    starts = (chunk.dictionary_page_offset, chunk.data_page_offset)
    position = min(start for start in starts if start)
    end, total = position + chunk.total_compressed_size, 0
    while position < end and total <= max_bytes:
        source.seek(position)
        header = _Header(source.read(min(_HEADER_BYTES, end - position)))
        fields = header.struct()
        unpacked, packed = fields.get(_UNCOMPRESSED, -1), fields.get(_COMPRESSED, -1)
        if min(unpacked, packed) < 0:
            raise ValueError("a page without a size")
        total += unpacked
        position += header.position + packed
    return total


class _Header:
    """Thrift's compact protocol, of which numbers are read and everything else is skipped."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.position = 0

    def struct(self, depth: int = 0) -> dict[int, int]:
        """Return the fields of a struct that are whole numbers."""
        fields: dict[int, int] = {}
        number = 0
        while head := self._byte():
            number = number + (head >> 4) if head >> 4 else self._zigzag()
            value = self._value(head & 15, depth)
            if value is not None:
                fields[number] = value
        return fields

    def _value(self, kind: int, depth: int, in_list: bool = False) -> int | None:
        """Return a value if it is a whole number, None for one of another kind, which is skipped."""
        if depth > _MAX_DEPTH:
            raise ValueError("a page header that is nested too deep")
        if kind in (_TRUE, _FALSE):
            self.position += in_list
        elif kind == _BYTE:
            self.position += 1
        elif kind < _DOUBLE:
            return self._zigzag()
        elif kind == _DOUBLE:
            self.position += 8
        elif kind == _BINARY:
            num_bytes = self._varint()
            self.position += num_bytes
        elif kind in (_LIST, _SET):
            self._skip_list(depth)
        elif kind == _STRUCT:
            self.struct(depth + 1)
        else:
            raise ValueError("a page header of an unknown kind")
        return None

    def _skip_list(self, depth: int) -> None:
        head = self._byte()
        size = head >> 4 if head >> 4 < 15 else self._varint()
        for _ in range(min(size, len(self._data))):
            self._value(head & 15, depth + 1, in_list=True)

    def _byte(self) -> int:
        if self.position >= len(self._data):
            raise ValueError("a page header without end")
        self.position += 1
        return self._data[self.position - 1]

    def _varint(self) -> int:
        value = shift = 0
        while (byte := self._byte()) & 0x80:
            value |= (byte & 0x7F) << shift
            shift += 7
            if shift > 63:
                raise ValueError("a page header with a number of too many bytes")
        return value | byte << shift

    def _zigzag(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)
