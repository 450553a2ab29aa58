"""Decode one picture to RGB: look at its header, keep to the budgets, then let the libraries decode it."""

import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import simplejpeg
from PIL import AvifImagePlugin, Image, ImageFile, UnidentifiedImageError

from lmk_data.decoding.av1 import av1_pixels
from lmk_data.decoding.completeness import DAMAGED, has_all_pixels, looks_truncated
from lmk_data.decoding.exif import orientation_of
from lmk_data.decoding.gif import read_gif
from lmk_data.decoding.jpeg import JPEG_END, Jpeg, read_jpeg
from lmk_data.decoding.kinds import kind_of, other_kind, why_not_decoded
from lmk_data.decoding.png import read_png
from lmk_data.decoding.refusal import Refused, check_memory
from lmk_data.decoding.samples import num_bytes_as_rgb, to_rgb, whiten
from lmk_data.decoding.tiff import Tiff, read_tiff
from lmk_data.decoding.webp import BYTES_PER_PIXEL, webp_size
from lmk_data.formats import accepted_formats

MAX_RLE_PIXELS = 16_000_000  # of a run-length encoded BMP, which Pillow decodes in Python
_ISO_MEDIA = ("HEIF", "AVIF")
# What is held of a file's bytes at once, measured: the file, a copy without metadata, copies of the library; of a JPEG
# two more, to tell whether it is complete.
_COPIES = {"JPEG": 4, "PNG": 2, "GIF": 2, "BMP": 1, "TIFF": 1, "WEBP": 3, "HEIF": 3, "AVIF": 3}
# Measured: the planes of the decoder and their copies, beside Pillow's image. libavif takes what the data has, whatever
# the header says of its bits; libheif decodes it and refuses it then.
_AVIF_BYTES_PER_PIXEL, _HEIF_BYTES_PER_PIXEL, _DEEP_HEIF_BYTES_PER_PIXEL = 9, 6, 12
_RGB_BYTES = 4  # of a pixel in RGB, as Pillow stores it
_TURNED_BACK = {6: 8, 8: 6}  # the orientations that undo another one than themselves


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the caller does with the pixels.

    `turns` says whether the orientation is applied. `least_size` returns the least width and height for a scaled decode
    of a picture of some width and height, and `repeats_chroma` whether an image of some size may repeat subsampled
    chroma. `resizing_bytes` are the bytes that the caller allocates to resize an image of some size.
    """

    max_pixels: int
    turns: bool
    least_size: Callable[[int, int], tuple[int, int]]
    repeats_chroma: Callable[[int, int], bool]
    resizing_bytes: Callable[[int, int], int]


@dataclass(frozen=True, slots=True)
class Picture:
    """A decoded picture. `rgb` is not turned yet.

    `extent` is the width and height of the part of `rgb` that is the picture, in pixels and fractions of them. `width`
    and `height` are those of the source, in pixels, before it is turned by `orientation`, 1 to 8.
    """

    rgb: Image.Image
    extent: tuple[float, float]
    width: int
    height: int
    orientation: int


@dataclass(frozen=True, slots=True)
class _Source:
    """A file that was looked at: its kind, the data that is decoded, and what it stated."""

    kind: str
    data: bytes
    orientation: int = 1
    held_bytes: int = 0
    transparent: tuple[int, ...] = ()
    jpeg: Jpeg | None = None
    tiff: Tiff | None = None


def decode_picture(data: bytes, wanted: Wanted) -> Picture:
    """Return the first picture of a file as RGB. Raises Refused with the reason; no content raises anything else."""
    kind = kind_of(data)
    if kind is None:
        other = other_kind(data)
        reason = "not-an-image" if other is None else "unsupported-format"
        raise Refused(reason, f"first bytes {data[:12]!r}" if other is None else f"a picture of the format {other}")
    if kind not in accepted_formats():
        raise Refused("unsupported-format", why_not_decoded(kind))
    check_memory(_COPIES[kind] * len(data), f"a {kind} file of {len(data):,} bytes")
    try:
        return _decode(_look_at(kind, data, wanted), wanted)
    except UnidentifiedImageError as error:
        if kind == "TIFF":  # its tags are sound
            raise Refused("unsupported-format", "a TIFF of a kind that Pillow does not read") from error
        raise Refused("corrupt", f"begins as {kind}, but its header is damaged") from error
    except Image.DecompressionBombError as error:
        raise Refused("too-large", first_line(error)) from error
    except DAMAGED as error:
        detail = first_line(error)
        raise Refused(_reason(detail), detail) from error


def _reason(detail: str) -> str:
    """Return the reason of a rejection for the message of a decoder."""
    words = detail.lower()
    return "truncated" if "truncated" in words else "unsupported-format" if "unsupported" in words else "corrupt"


def _look_at(kind: str, data: bytes, wanted: Wanted) -> _Source:
    """Return what a file states, and the file without what is not decoded; raise Refused for what is over a budget."""
    if kind == "JPEG":
        jpeg = read_jpeg(data)
        _check_size(jpeg.width, jpeg.height, wanted)
        check_memory(jpeg.held_bytes + _COPIES[kind] * len(data), _size_text(jpeg.width, jpeg.height))
        return _Source(kind, jpeg.data, orientation_of(jpeg.exif, jpeg.xmp), held_bytes=jpeg.held_bytes, jpeg=jpeg)
    if kind == "PNG":
        png = read_png(data)
        upright, held = orientation_of(png.exif, png.xmp), 2 * png.largest_bytes
        return _Source(kind, png.data, upright, held_bytes=held, transparent=png.transparent)
    if kind == "GIF":
        return _Source(kind, read_gif(data))
    if kind == "TIFF":
        tiff = read_tiff(data)
        return _Source(kind, data, tiff.orientation, held_bytes=tiff.block_bytes, tiff=tiff)
    if kind == "WEBP":
        width, height = webp_size(data)
        _check_size(width, height, wanted)
        check_memory(width * height * BYTES_PER_PIXEL + _COPIES[kind] * len(data), _size_text(width, height))
        return _Source(kind, data, held_bytes=width * height * (BYTES_PER_PIXEL - 4))
    if kind in _ISO_MEDIA:
        _register_iso_media()
    return _Source(kind, data)


@cache
def _register_iso_media() -> None:
    """Let Pillow decode HEIC, and both HEIC and AVIF with one thread: a build has a process per core."""
    import pillow_heif

    AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    pillow_heif.register_heif_opener(decode_threads=1, thumbnails=False, depth_images=False, aux_images=False)


def _decode(source: _Source, wanted: Wanted) -> Picture:
    """Decode; a JPEG that lacks only its end marker is decoded with one."""
    picture = None if source.jpeg is None else _decode_intact_jpeg(source, source.jpeg, wanted)
    if picture is not None:
        return picture
    try:
        with (
            _silent_stderr(source.kind in ("TIFF", *_ISO_MEDIA)),
            Image.open(io.BytesIO(source.data), formats=(source.kind,)) as image,
        ):
            return _decode_opened(image, source, wanted)
    except DAMAGED as error:
        data = source.data
        if source.kind != "JPEG" or "truncated" not in str(error).lower() or data.endswith(JPEG_END):
            raise
        ended = data + JPEG_END
        if not has_all_pixels(ended):
            raise
        return _decode(replace(source, data=ended), wanted)


def _decode_opened(image: Image.Image, source: _Source, wanted: Wanted) -> Picture:
    width, height = image.size
    _check_size(width, height, wanted)
    # Other formats may answer with a thumbnail that the file holds.
    drafted = image.draft(None, wanted.least_size(width, height)) if source.kind == "JPEG" else None
    _check_budget(image, source, wanted)
    orientation = source.orientation if wanted.turns or source.kind == "TIFF" else 1
    if source.kind in ("WEBP", *_ISO_MEDIA) and wanted.turns:
        orientation = orientation_of(image.info.get("exif"), image.info.get("xmp"))
    image.load()
    if source.kind == "TIFF":  # Pillow has turned it
        orientation, (width, height) = 1 if wanted.turns else _TURNED_BACK.get(orientation, orientation), image.size
    if image.mode == "RGB" and source.transparent:
        whiten(image, _low_bytes(source), source.transparent)
    rgb = to_rgb(image, source.transparent, source.tiff)
    if source.kind == "JPEG" and looks_truncated(image) and not has_all_pixels(source.data):
        raise Refused("truncated", "the data of the picture ends before the picture does")
    # A scaled decode rounds its size up. The picture is only this part of it, to a fraction of a pixel.
    extent = rgb.size if drafted is None else drafted[1][2:]
    return Picture(rgb, extent, width, height, orientation)


def _check_size(width: int, height: int, wanted: Wanted) -> None:
    if width < 1 or height < 1:
        raise Refused("corrupt", f"{width}x{height} pixels")
    if width * height > wanted.max_pixels:
        raise Refused("too-large", f"{width}x{height} pixels, more than {wanted.max_pixels:,}")


def _check_budget(image: Image.Image, source: _Source, wanted: Wanted) -> None:
    """Raise Refused if decoding and resizing need more memory than `MAX_DECODED_BYTES`, or too much time."""
    width, height = image.size
    num_bytes = num_bytes_as_rgb(image, source.transparent) + source.held_bytes
    num_bytes += _COPIES[source.kind] * len(source.data)
    if source.kind == "AVIF":
        num_bytes += _AVIF_BYTES_PER_PIXEL * max(width * height, av1_pixels(source.data))
    if source.kind == "HEIF":
        is_deep = image.info.get("bit_depth", 8) > 8 and image.info.get("chroma") != 420
        num_bytes += (_DEEP_HEIF_BYTES_PER_PIXEL if is_deep else _HEIF_BYTES_PER_PIXEL) * width * height
    if source.kind == "TIFF" and source.orientation != 1:
        num_bytes += 4 * width * height  # Pillow turns a copy
    if source.kind == "BMP" and _is_run_length(image):
        if width * height > MAX_RLE_PIXELS:
            raise Refused("too-large", f"a run-length encoded BMP of more than {MAX_RLE_PIXELS:,} pixels")
        num_bytes += 3 * width * height + 512 * width  # a jump of 255 rows is filled before the end is noticed
    check_memory(num_bytes + wanted.resizing_bytes(width, height), _size_text(width, height))


def _size_text(width: int, height: int) -> str:
    return f"{width}x{height} pixels of this kind"


def _is_run_length(image: Image.Image) -> bool:
    return isinstance(image, ImageFile.ImageFile) and any(tile[0] == "bmp_rle" for tile in image.tile)


def _decode_intact_jpeg(source: _Source, jpeg: Jpeg, wanted: Wanted) -> Picture | None:
    """Return an RGB JPEG decoded by one call of libjpeg-turbo; None for other pictures and for any warning.

    This makes the whole work a tenth cheaper than with Pillow. Unlike Pillow it reports libjpeg's warnings, so a
    picture decoded here is complete. The pixels equal Pillow's, with one exception: subsampled chroma is repeated
    instead of interpolated where it has at least as many pixels as the stored picture. That is cheaper, and resizing
    averages it anyway.
    """
    width, height = jpeg.width, jpeg.height
    least_width, least_height = wanted.least_size(width, height)
    is_scaled = width >= 2 * least_width and height >= 2 * least_height  # as `Image.draft` scales
    if jpeg.num_components != 3 or is_scaled:
        return None
    held_bytes = source.held_bytes + _COPIES[source.kind] * len(source.data) + wanted.resizing_bytes(width, height)
    check_memory(_RGB_BYTES * width * height + held_bytes, _size_text(width, height))
    repeats = wanted.repeats_chroma(width, height)
    try:
        buffer = np.empty(_RGB_BYTES * width * height, np.uint8)
        pixels = simplejpeg.decode_jpeg(source.data, "RGBX", fastupsample=repeats, buffer=buffer)
    except ValueError:
        return None
    if pixels.shape != (height, width, _RGB_BYTES):
        return None
    rgb = Image.frombuffer("RGBX", (width, height), pixels, "raw", "RGBX", 0, 1)
    return Picture(rgb, rgb.size, width, height, source.orientation if wanted.turns else 1)


def _low_bytes(source: _Source) -> Image.Image:
    """Return the low bytes of an RGB PNG of 16 bits; Pillow decodes the high ones."""
    with Image.open(io.BytesIO(source.data), formats=("PNG",)) as image:
        image.tile = [tile._replace(args="RGB;16L") for tile in image.tile]
        image.load()
        return image


@contextmanager
def _silent_stderr(is_silent: bool) -> Iterator[None]:
    """Discard what C code prints on stderr: libtiff and libavif report damaged files there, bypassing Python."""
    if not is_silent:
        yield
        return
    sys.stderr.flush()
    stderr, devnull = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(devnull, 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(devnull)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, for the detail of a rejection."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
