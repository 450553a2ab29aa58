"""Whether a sequential JPEG has data for all of its pixels: libjpeg makes up what is missing."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

from lmk_data.decoding.jpeg import JPEG_END, JPEG_START

# What Pillow's decoders raise for damaged files. MemoryError and the like are not the file's fault.
DAMAGED = (
    OSError,
    ValueError,
    SyntaxError,
    TypeError,
    LookupError,
    ArithmeticError,
    EOFError,
    AttributeError,
    RuntimeError,
    struct.error,
    zlib.error,
)
_FILLER = b"\xaa\x55" * 2048  # holds no marker, and is not the zeros that libjpeg appends to truncated data


def looks_truncated(image: Image.Image) -> bool:
    """Return whether the last corner of a sequential JPEG is perfectly flat, as libjpeg fills in missing data."""
    if image.format not in ("JPEG", "MPO") or image.info.get("progressive"):
        return False
    width, height = image.size
    if image.getpixel((width - 1, height - 1)) != image.getpixel((max(0, width - 8), max(0, height - 8))):
        return False
    corner = np.asarray(image.crop((max(0, width - 8), max(0, height - 8), width, height)))
    return bool((corner == corner[0, 0]).all())


def has_all_pixels(data: bytes) -> bool:
    """Return whether a sequential JPEG has data for all of its pixels, as far as that can be known.

    libjpeg invents data that is missing before the end marker. Bytes inserted there change the pixels of a truncated
    picture, and are skipped after a complete one. The comparison uses an eighth of the size, which decodes cheaply.
    """
    end = data.rfind(JPEG_END)
    if not data.startswith(JPEG_START) or end < 0:
        return False
    try:
        body = memoryview(data)[:end]
        return _eighth(b"".join((body, JPEG_END))) == _eighth(b"".join((body, _FILLER, JPEG_END)))
    except DAMAGED:
        return False


def _eighth(data: bytes) -> bytes:
    """Return the pixels of a sequential JPEG at an eighth of its size; ValueError for a progressive one."""
    with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
        if image.info.get("progressive"):
            raise ValueError("progressive: missing data cannot be detected")
        image.draft(None, (max(1, image.width // 8), max(1, image.height // 8)))
        return image.tobytes()
