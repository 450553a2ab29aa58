"""The orientation that EXIF or XMP states, and tables of tags in EXIF and TIFF, read without trusting their sizes."""

import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

MAX_METADATA_BYTES = 8 << 20  # of a file's EXIF or XMP; what lies behind is not searched
_ORIENTATION = 0x0112
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')
_HEADERS = {b"II*\0": "<", b"MM\0*": ">", b"II\0*": "<", b"MM*\0": ">", b"II+\0": "<", b"MM\0+": ">"}
_VALUE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_FORMATS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 11: "f", 12: "d", 13: "I", 16: "Q"}


class Tag(NamedTuple):
    """A tag of EXIF or TIFF: `length` numbers; `value` is their bytes, shorter than `num_bytes` if the file ends."""

    number: int
    kind: int
    length: int
    num_bytes: int
    value: memoryview


def orientation_of(exif: bytes | None, xmp: bytes | None) -> int:
    """Return the orientation, 1 to 8, that EXIF or, if EXIF says nothing, XMP states; 1 (upright) without a valid one.

    Args:
        exif: EXIF with or without `Exif\\0\\0` in front.
        xmp: an XMP packet.
    """
    stated: int | float | None = None
    if exif:
        try:
            data = exif[:MAX_METADATA_BYTES].removeprefix(b"Exif\0\0")
            for order, tag in tags_of(data):
                if len(tag.value) < tag.num_bytes:
                    break  # as Pillow does: what follows a damaged tag is not believed
                if tag.number == _ORIENTATION:
                    stated = number_of(order, tag) or 1
        except (struct.error, ValueError):
            pass  # damaged metadata, but the picture may be intact
    if stated is None and xmp and (found := _XMP_ORIENTATION.search(xmp[:MAX_METADATA_BYTES])):
        stated = int(found[1])
    return stated if isinstance(stated, int) and 1 <= stated <= 8 else 1


def tags_of(data: bytes, start: int | None = None) -> Iterator[tuple[str, Tag]]:
    """Yield the byte order (`<` or `>`) and each tag of a table of a TIFF, of a BigTIFF or of EXIF.

    Args:
        data: the whole TIFF or EXIF.
        start: offset of the table; by default of the first one.

    Raises ValueError if this is none of them, struct.error if the data ends within the table.
    """
    order = _HEADERS.get(data[:4])
    if order is None:
        raise ValueError("no header of a TIFF")
    is_big = 43 in data[2:4]
    if start is None:
        start = int(struct.unpack_from(order + ("Q" if is_big else "I"), data, 8 if is_big else 4)[0])
    count, table = struct.unpack_from(order + ("Q" if is_big else "H"), data, start)[0], start + (8 if is_big else 2)
    entry = struct.Struct(order + ("HHQ8s" if is_big else "HHI4s"))
    pointer = order + ("Q" if is_big else "I")
    view = memoryview(data)
    for position in range(table, table + count * entry.size, entry.size):
        number, kind, length, inline = entry.unpack_from(data, position)
        if kind not in _VALUE_BYTES:
            continue
        num_bytes = length * _VALUE_BYTES[kind]
        value = memoryview(inline)[:num_bytes]
        if num_bytes > len(inline):
            at = struct.unpack(pointer, inline)[0]
            value = view[at : at + num_bytes]
        yield order, Tag(number, kind, length, num_bytes, value)


def number_of(order: str, tag: Tag) -> int | float | None:
    """Return the value of a tag that is one number; None for any other."""
    if tag.length != 1 or tag.kind not in _FORMATS or len(tag.value) != tag.num_bytes:
        return None
    value: int | float = struct.unpack(order + _FORMATS[tag.kind], tag.value)[0]
    return value
