"""The chunks of a PNG: what its header states, and the PNG without its metadata and further frames."""

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from lmk_data.decoding.exif import MAX_METADATA_BYTES
from lmk_data.decoding.refusal import Refused

PNG_START = b"\x89PNG\r\n\x1a\n"
MAX_CHUNKS = 1_000_000
_GREY, _RGB, _PALETTE = 0, 2, 3
_XMP, _EXIF_TEXT, _EXIF_PROFILE = b"XML:com.adobe.xmp", b"exif", b"Raw profile type exif"
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_NAME = re.compile(rb"[A-Za-z]{4}")


@dataclass(slots=True)
class Png:
    """A PNG without its metadata, and what it stated.

    `transparent` is the transparent grey level or colour of 16 bits a channel, which Pillow does not apply. That of
    fewer bits is in `data`, in the range of the decoded pixels. `largest_bytes` is the size of the largest chunk of
    pixels, which Pillow reads as a whole, twice, if the picture ends before it.
    """

    data: bytes = b""
    transparent: tuple[int, ...] = ()
    exif: bytes = b""
    texts: dict[bytes, bytes] = field(default_factory=dict)
    largest_bytes: int = 0

    @property
    def xmp(self) -> bytes:
        """The XMP packet; empty if there is none."""
        return _text(self.texts.get(_XMP, b""))


class _Chunk:
    """A chunk: its name, its content, and its bytes with length and checksum."""

    def __init__(self, data: bytes, start: int, num_bytes: int) -> None:
        self.name = data[start + 4 : start + 8]
        self.whole = memoryview(data)[start : start + 12 + num_bytes]
        self.content = self.whole[8 : 8 + num_bytes]
        self.is_cut = len(self.whole) < 12 + num_bytes

    def is_sound(self) -> bool:
        return zlib.crc32(self.whole[4:-4]) == int.from_bytes(self.whole[-4:], "big")


def read_png(data: bytes) -> Png:
    """Return what a PNG states, before any of it is decoded; raise Refused if that is damaged.

    A chunk that is not used costs the picture only if its checksum is wrong and it comes before the pixels.
    """
    png = Png()
    kept: list[bytes | memoryview] = [PNG_START]
    depth, kind, has_pixels, is_cut = 0, -1, False, False
    for chunk in _chunks(data):
        if not has_pixels and chunk.name != b"IDAT":
            _check(chunk)
        if chunk.name == b"IDAT":
            has_pixels, is_cut = True, chunk.is_cut
            png.largest_bytes = max(png.largest_bytes, len(chunk.content))
        elif chunk.is_cut:
            break
        if chunk.name == b"IHDR" and len(chunk.content) >= 13:
            depth, kind = chunk.content[8], chunk.content[9]
        if chunk.name == b"tRNS" and kind in (_GREY, _RGB) and not has_pixels:
            levels = _transparent_levels(bytes(chunk.content), 1 if kind == _GREY else 3, depth)
            if depth == 16:
                png.transparent = levels
            else:
                kept.append(_made(b"tRNS", struct.pack(f">{len(levels)}H", *levels)))
        elif chunk.name in (b"IHDR", b"PLTE", b"IDAT") or (chunk.name == b"tRNS" and kind == _PALETTE):
            kept.append(chunk.whole)
        elif chunk.name == b"eXIf":
            png.exif = bytes(chunk.content[:MAX_METADATA_BYTES])
        elif chunk.name in _TEXTS:
            keyword = bytes(chunk.content[:80]).split(b"\0", 1)[0]
            if keyword in (_XMP, _EXIF_TEXT, _EXIF_PROFILE):
                png.texts[keyword] = chunk.name + bytes(chunk.content[len(keyword) + 1 :])
    if not has_pixels:
        raise Refused("truncated", "the data ends before the picture begins")
    png.exif = png.exif or _exif_of(png.texts)
    png.data = b"".join(kept if is_cut else [*kept, _made(b"IEND", b"")])
    return png


def _chunks(data: bytes) -> Iterator[_Chunk]:
    """Yield the chunks up to the end mark or to what is no chunk; the last one may be cut off."""
    position = len(PNG_START)
    for _ in range(MAX_CHUNKS):
        chunk = _Chunk(data, position, int.from_bytes(data[position : position + 4], "big"))
        if chunk.name == b"IEND" or not _NAME.fullmatch(chunk.name):
            return
        yield chunk
        position += len(chunk.whole)
    raise Refused("too-large", f"a PNG of more than {MAX_CHUNKS:,} chunks")


def _check(chunk: _Chunk) -> None:
    """Raise Refused if a chunk before the pixels is damaged, or says that the pixels are of another kind."""
    name = chunk.name.decode()
    if chunk.is_cut:
        raise Refused("truncated", f"the data ends within its chunk {name}")
    if not chunk.is_sound():
        raise Refused("corrupt", f"the checksum of its chunk {name} is wrong")
    if name[0].isupper() and name not in ("IHDR", "PLTE"):
        raise Refused("unsupported-format", f"a PNG of another kind (chunk {name})")


def _transparent_levels(content: bytes, channels: int, depth: int) -> tuple[int, ...]:
    """Return the levels of the transparent colour, of 16 bits as they are, of fewer in the range that Pillow decodes.

    Pillow decodes 2 and 4 bits to 0..255, and 1 bit to any number that is not 0.
    """
    if len(content) < 2 * channels:
        raise Refused("corrupt", "its transparent colour is cut off")
    most = (1 << depth) - 1
    levels = (level & most for level in struct.unpack_from(f">{channels}H", content))
    return tuple(level * 255 // most if depth in (2, 4) else level for level in levels)


def _made(name: bytes, content: bytes) -> bytes:
    """Return a chunk."""
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def _exif_of(texts: dict[bytes, bytes]) -> bytes:
    """Return the EXIF that tools without eXIf write as text; empty if there is none."""
    if profile := _text(texts.get(_EXIF_PROFILE, b"")):
        try:
            return bytes.fromhex(b"".join(profile.split(b"\n")[3:]).decode("latin-1"))
        except ValueError:
            return b""
    return _text(texts.get(_EXIF_TEXT, b""))


def _text(chunk: bytes) -> bytes:
    """Return the text of a chunk, given as its name and what follows the keyword; empty if it is damaged."""
    name, content = chunk[:4], chunk[4:]
    is_packed = name == b"zTXt"
    if name == b"iTXt":
        is_packed, parts = content[:1] == b"\1", content[2:].split(b"\0", 2)
        content = b"\0" + parts[2] if len(parts) == 3 else b""
    elif name == b"tEXt":
        content = b"\0" + content
    if not is_packed:
        return content[1 : 1 + MAX_METADATA_BYTES]
    try:
        return zlib.decompressobj().decompress(content[1:], MAX_METADATA_BYTES)
    except zlib.error:
        return b""
