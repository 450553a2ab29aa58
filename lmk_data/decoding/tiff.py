"""The tags of a TIFF: checked before a library reads them, and the range of its samples."""

import struct
from dataclasses import dataclass

from lmk_data.decoding.exif import Tag, number_of, tags_of
from lmk_data.decoding.refusal import Refused

_WIDTH, _HEIGHT, _BITS, _PHOTOMETRIC, _ORIENTATION, _CHANNELS = 0x100, 0x101, 0x102, 0x106, 0x112, 0x115
_ROWS_IN_STRIP, _TILE_WIDTH, _TILE_HEIGHT, _SAMPLE_FORMAT = 0x116, 0x142, 0x143, 0x153
_LEAST, _MOST = 0x154, 0x155
_CR2 = b"\x10\0\0\0CR\2\0"  # Canon's raw photos: the first table comes after this mark
_KIND, _TABLES_BELOW, _DNG_VERSION = 0xFE, 0x14A, 0xC612  # of a picture that stands for a larger one; where that is
_TABLES = (0x8769, 0x8825, 0xA005)  # tags that point to tables, which Pillow loads too: EXIF, GPS, interoperability
_UNSIGNED, _SIGNED, _FLOAT = 1, 2, 3


@dataclass(frozen=True, slots=True)
class Tiff:
    """What a TIFF states of its pixels.

    `darkest` and `brightest` are the samples that are black and white. `block_bytes` are the bytes of its largest strip
    or tile, which is decoded as a whole.
    """

    orientation: int
    darkest: float
    brightest: float
    is_float: bool
    block_bytes: int


def read_tiff(data: bytes) -> Tiff:
    """Return what a TIFF states, before a library reads its tags; raise Refused if that is damaged.

    Tags may not state more bytes than the file has: Pillow keeps a copy of the bytes of each.
    """
    try:
        tags, order = _checked_tags(data), "<" if data.startswith(b"II") else ">"
        for number in _TABLES:
            if number in tags and (start := number_of(order, tags[number])) is not None:
                _checked_tags(data, int(start))
    except (struct.error, ValueError, OverflowError) as error:
        raise Refused("corrupt", "its table of tags is damaged") from error

    def first(number: int, default: int) -> int | float:
        if number not in tags or not tags[number].length:
            return default
        tag = tags[number]._replace(length=1, num_bytes=tags[number].num_bytes // tags[number].length)
        value = number_of(order, tag._replace(value=tag.value[: tag.num_bytes]))
        return default if value is None else value

    is_preview = int(first(_KIND, 0)) & 1 and _TABLES_BELOW in tags
    if data[4:12] == _CR2 or _DNG_VERSION in tags or is_preview:
        raise Refused("unsupported-format", "a raw photo; its first picture is a preview")
    width, height = int(first(_WIDTH, 0)), int(first(_HEIGHT, 0))
    bits, kind = min(max(1, int(first(_BITS, 1))), 64), int(first(_SAMPLE_FORMAT, _UNSIGNED))
    least, most = _range(bits, kind)
    if kind == _FLOAT:
        least, most = float(first(_LEAST, 0)), float(first(_MOST, 1))
    if first(_PHOTOMETRIC, 0) == 0:
        least, most = most, least
    columns = int(first(_TILE_WIDTH, width))
    rows = int(first(_TILE_HEIGHT, min(height, int(first(_ROWS_IN_STRIP, height)))))
    block_bytes = columns * rows * bits * int(first(_CHANNELS, 1)) // 8
    orientation = int(first(_ORIENTATION, 1))
    return Tiff(orientation, least, most, kind == _FLOAT, block_bytes)


def _checked_tags(data: bytes, start: int | None = None) -> dict[int, Tag]:
    """Return the tags of a table by their numbers; raise Refused if they state more bytes than the file has."""
    tags: dict[int, Tag] = {}
    num_bytes = 0
    for _, tag in tags_of(data, start):
        num_bytes += tag.num_bytes if len(tag.value) == tag.num_bytes else 0
        if num_bytes > len(data):
            raise Refused("corrupt", "its tags state more bytes than the file has")
        tags[tag.number] = tag
    return tags


def _range(bits: int, kind: int) -> tuple[float, float]:
    """Return the least and the largest sample of whole numbers."""
    if kind == _SIGNED:
        return -float(1 << (bits - 1)), float((1 << (bits - 1)) - 1)
    return 0.0, float((1 << bits) - 1)
