"""Pictures made byte by byte, as no library would write them."""

import io
import struct
import zlib

from PIL import Image

PNG_START = b"\x89PNG\r\n\x1a\n"


def chunk(name: bytes, content: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(size: tuple[int, int], depth: int, kind: int, row: bytes, *chunks: bytes, after: bytes = b"") -> bytes:
    """A PNG whose rows are all the same; `chunks` come before the pixels, `after` behind them."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, depth, kind, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress((b"\0" + row) * size[1]))
    return PNG_START + header + b"".join(chunks) + pixels + after + chunk(b"IEND", b"")


def tiff(size: tuple[int, int], samples: bytes, tags: dict[int, tuple[int, int, bytes]], order: str = "<") -> bytes:
    """An uncompressed TIFF of one strip. `tags` are kind, count and value by number, beside or instead of the usual."""
    long, short = order + "I", order + "H"
    first = 8
    entries = {
        0x100: (4, 1, struct.pack(long, size[0])),
        0x101: (4, 1, struct.pack(long, size[1])),
        0x103: (3, 1, struct.pack(short, 1)),
        0x106: (3, 1, struct.pack(short, 1)),
        0x111: (4, 1, struct.pack(long, first)),
        0x115: (3, 1, struct.pack(short, 1)),
        0x116: (4, 1, struct.pack(long, size[1])),
        0x117: (4, 1, struct.pack(long, len(samples))),
        **tags,
    }
    table_at = first + len(samples)
    values_at = table_at + 2 + 12 * len(entries) + 4
    table, values = struct.pack(short, len(entries)), b""
    for number in sorted(entries):
        kind, count, value = entries[number]
        inline = value.ljust(4, b"\0") if len(value) <= 4 else struct.pack(long, values_at + len(values))
        values += value if len(value) > 4 else b""
        table += struct.pack(order + "HHI", number, kind, count) + inline
    mark = b"II*\0" if order == "<" else b"MM\0*"
    return mark + struct.pack(long, table_at) + samples + table + bytes(4) + values


def short(value: int, order: str = "<") -> tuple[int, int, bytes]:
    """A tag of a TIFF with one number of 16 bits."""
    return 3, 1, struct.pack(order + "H", value)


def scans(number: int, side: int = 64) -> bytes:
    """A progressive JPEG with so many scans more, each of them empty."""
    buffer = io.BytesIO()
    Image.new("L", (side, side), 99).save(buffer, "JPEG", progressive=True)
    data = buffer.getvalue()
    table = b"\xff\xc4" + struct.pack(">H", 20) + b"\x10" + bytes([0, 1] + [0] * 14) + b"\xe0"
    scan = b"\xff\xda" + struct.pack(">H", 8) + b"\x01\x01\x00\x01\x3f\x00" + b"\x3f\xff\x00"
    return data[:-2] + table + scan * number + b"\xff\xd9"


def claiming(jpeg: bytes, width: int, height: int) -> bytes:
    """A JPEG whose frame states another size."""
    at = next(jpeg.index(mark) for mark in (b"\xff\xc0", b"\xff\xc2") if mark in jpeg)
    return jpeg[: at + 5] + struct.pack(">HH", height, width) + jpeg[at + 9 :]
