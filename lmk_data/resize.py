"""Bytes and a recipe to a resized JPEG, or the reason why not; pure, and the only decoder of strangers' pictures."""

import io
import os
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import metadata

import numpy as np
import PIL
import simplejpeg
from PIL import Image, UnidentifiedImageError, features

from lmk_data.dataset.format import Encoder, Fit, Recipe, Rejection, Resized
from lmk_data.errors import UserError
from lmk_data.formats import accepted_formats

_REVISION = 1  # a change of this module that stores other pixels for the same recipe raises it
_CODECS = {"jpg": "jpeg", "zlib": "png", "webp": "webp", "libtiff": "tiff"}
_ORIENTATION = 0x0112
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SUBSAMPLING = {"4:4:4": 0, "4:2:0": 2}
# First bytes of formats that are pictures, but not among those that are accepted.
_OTHER_PICTURES = (
    b"II*\0",
    b"MM\0*",
    b"\0\0\1\0",
    b"8BPS",
    b"\0\0\0\x0cjP  ",
    b"qoif",
    b"<svg",
    b"<?xml",
    b"\xff\x4f\xff\x51",
)
_OTHER_BRANDS = (b"avif", b"avis", b"heic", b"heix", b"mif1", b"msf1", b"crx ")
# At 2, scaled decoding cost 0.02 to 0.18 dB on 1 to 2 Mpx photos; at 3, 0.02 and less.
_DECODED_PER_STORED_PIXEL = 3
_WHITE = (255, 255, 255)
_JPEG_START, _JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
_FILLER = b"\xaa\x55" * 2048  # no marker, and not the zeros that libjpeg makes up at the end of its data
# What Pillow's decoders raise for damaged files; MemoryError and the like are not the file's fault.
_DAMAGED = (OSError, ValueError, SyntaxError, TypeError, IndexError, KeyError, struct.error, OverflowError)


@cache
def encoder() -> Encoder:
    """What decodes and encodes here: this module, pillow-simd or Pillow, its libjpeg-turbo and codecs, simplejpeg."""
    version = str(PIL.__version__)
    simd = _installed_version("pillow-simd") == version
    codecs = [name for feature, name in _CODECS.items() if features.check(feature)]
    return Encoder(
        revision=_REVISION,
        distribution="pillow-simd" if simd else "pillow",
        version=version,
        libjpeg_turbo=str(features.version("libjpeg_turbo") or "none"),
        simplejpeg=str(_installed_version("simplejpeg")),
        codecs=tuple(sorted([*codecs, "bmp", "gif"])),
    )


def check_recipe(recipe: Recipe) -> None:
    """Raise UserError for a recipe that cannot be carried out."""
    if not 8 <= recipe.size <= 4096:
        raise UserError(f"--size {recipe.size}: must be from 8 to 4096 pixels")
    if not 1 <= recipe.quality <= 100:
        raise UserError(f"--quality {recipe.quality}: must be from 1 to 100")


def resize_image(data: bytes, recipe: Recipe) -> Resized | Rejection:
    """Decode a picture, bring it upright and to RGB (alpha over white), resize it and encode it as JPEG.

    Only the first frame counts. A JPEG much larger than needed is decoded at a fraction of its size, never below
    three times the target; one that lacks nothing but its end mark is whole. Nothing a stranger's file holds
    raises: it is rejected with a reason.
    """
    if not data:
        return Rejection("empty", "0 bytes")
    try:
        with Image.open(io.BytesIO(data), formats=accepted_formats()) as image:
            return _resize_opened(image, data, recipe)
    except UnidentifiedImageError:
        return _unidentified(data)
    except Image.DecompressionBombError as error:
        return Rejection("too-large", _first_line(error))
    except _DAMAGED as error:
        detail = _first_line(error)
        if "truncated" not in detail.lower():
            return Rejection("corrupt", detail)
        if not data.endswith(_JPEG_END) and _holds_all_its_pixels(data + _JPEG_END):
            return resize_image(data + _JPEG_END, recipe)
        return Rejection("truncated", detail)


def _resize_opened(image: Image.Image, data: bytes, recipe: Recipe) -> Resized | Rejection:
    width, height = image.size
    if width < 1 or height < 1:
        return Rejection("corrupt", f"{width}x{height} pixels")
    if width * height > recipe.max_pixels:
        return Rejection("too-large", f"{width}x{height} pixels, more than {recipe.max_pixels:,}")
    orientation = _orientation(image) if recipe.exif_transpose else 1
    drafted = image.draft(None, _least_decoded_size(width, height, recipe))
    rgb = _decode_sound_jpeg(image, data, recipe) if image.size == (width, height) else None
    if rgb is None:
        rgb = _to_rgb(image)
        if _looks_cut(image) and not _holds_all_its_pixels(data):
            return Rejection("truncated", "the data of the picture ends before the picture does")
    # A scaled decode rounds its size up: only this part of it is the picture, to a fraction of a pixel.
    decoded = rgb.size if drafted is None else drafted[1][2:]
    square = _fit(rgb, decoded, recipe)
    if orientation in _TRANSPOSE:
        square = square.transpose(_TRANSPOSE[orientation])
    if orientation >= 5:
        width, height = height, width
    buffer = io.BytesIO()
    subsampling = _SUBSAMPLING[recipe.subsampling]
    square.save(buffer, "JPEG", quality=recipe.quality, subsampling=subsampling, comment=b"")
    return Resized(buffer.getvalue(), width, height, _dhash(square))


def _decode_sound_jpeg(image: Image.Image, data: bytes, recipe: Recipe) -> Image.Image | None:
    """The pixels of an RGB JPEG by one call of libjpeg-turbo; None for other pictures and where it warns of anything.

    A tenth of the whole work cheaper than Pillow; and unlike Pillow it passes on libjpeg's warnings, so that a picture
    which went through here lacks nothing. The pixels are Pillow's, but that halved chroma is repeated, not
    interpolated, where it has no fewer pixels than what is stored: that is cheaper, and resizing averages it anyway.
    """
    if image.format not in ("JPEG", "MPO") or image.mode != "RGB":
        return None
    width, height = image.size
    least_width, least_height = _scaled(width, height, 2 * recipe.size, recipe.fit)
    repeats = width >= least_width and height >= least_height
    try:
        buffer = np.empty(4 * width * height, np.uint8)
        pixels = simplejpeg.decode_jpeg(data, "RGBX", fastupsample=repeats, buffer=buffer)
    except ValueError:
        return None
    if pixels.shape != (height, width, 4):
        return None
    return Image.frombuffer("RGBX", (width, height), pixels, "raw", "RGBX", 0, 1)


def _looks_cut(image: Image.Image) -> bool:
    """Whether the last corner of a sequential JPEG is perfectly flat: so libjpeg fills what a short file lacks."""
    if image.format not in ("JPEG", "MPO") or image.info.get("progressive"):
        return False
    width, height = image.size
    if image.getpixel((width - 1, height - 1)) != image.getpixel((max(0, width - 8), max(0, height - 8))):
        return False
    corner = np.asarray(image.crop((max(0, width - 8), max(0, height - 8), width, height)))
    return bool((corner == corner[0, 0]).all())


def _holds_all_its_pixels(data: bytes) -> bool:
    """Whether a sequential JPEG has data for all of its picture, as far as can be told.

    libjpeg makes up what is missing before the end mark; then other bytes there give other pixels, while after a
    whole picture they are skipped. Compared at an eighth of the size, which the decoder gives cheaply.
    """
    end = data.rfind(_JPEG_END)
    if not data.startswith(_JPEG_START) or end < 0:
        return False
    try:
        return _eighth(data[:end] + _JPEG_END) == _eighth(data[:end] + _FILLER + _JPEG_END)
    except _DAMAGED:
        return False


def _eighth(data: bytes) -> bytes:
    """The pixels of a sequential JPEG at an eighth of its size; ValueError for a progressive one."""
    with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
        if image.info.get("progressive"):
            raise ValueError("progressive: what is missing cannot be told")
        image.draft(None, (max(1, image.width // 8), max(1, image.height // 8)))
        return image.tobytes()


def _least_decoded_size(width: int, height: int, recipe: Recipe) -> tuple[int, int]:
    """The size below which a scaled JPEG decode must not go, in both directions."""
    return _scaled(width, height, _DECODED_PER_STORED_PIXEL * recipe.size, recipe.fit)


def _scaled(width: int, height: int, side: int, fit: Fit) -> tuple[int, int]:
    """Width and height of a picture that is scaled, by the rule `fit`, to a square of this side before it is cut."""
    if fit == "squash":
        return side, side
    scale = side / (min(width, height) if fit == "crop" else max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) where there is none or it makes no sense."""
    if not image.info.keys() & {"exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"} and image.format != "TIFF":
        return 1
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except _DAMAGED:
        return 1  # damaged metadata of a picture that may be fine
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _to_rgb(image: Image.Image) -> Image.Image:
    """Any mode to RGB: 16 bits scaled, transparency over white."""
    if image.format == "TIFF":
        with _silent_stderr():
            image.load()
    else:
        image.load()
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return _scale_to_eight_bits(image).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        alpha = image.convert("RGBA")
        white = Image.new("RGB", alpha.size, _WHITE)
        white.paste(alpha, mask=alpha.getchannel("A"))
        return white
    return image.convert("RGB")


def _scale_to_eight_bits(image: Image.Image) -> Image.Image:
    """16-bit (or wider) grey to 8 bits by its range, not by clipping."""
    values = np.asarray(image).astype(np.float32)
    scale = 255 / 65535 if values.max(initial=0) > 255 or image.mode.startswith("I;16") else 1.0
    return Image.fromarray(np.clip(values * scale + 0.5, 0, 255).astype(np.uint8))


def _fit(image: Image.Image, decoded: tuple[float, float], recipe: Recipe) -> Image.Image:
    """An RGB image, of which the picture is `decoded` wide and high, brought to the square.

    Squashed, cropped around the centre, or padded with white.
    """
    size, (width, height) = recipe.size, decoded
    if recipe.fit == "squash":
        return image.resize((size, size), Image.Resampling.BICUBIC, box=(0, 0, width, height))
    if recipe.fit == "crop":
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        return image.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
    scale = size / max(width, height)
    inner = max(1, round(width * scale)), max(1, round(height * scale))
    square = Image.new("RGB", (size, size), _WHITE)
    upright = image.resize(inner, Image.Resampling.BICUBIC, box=(0, 0, width, height))
    square.paste(upright, ((size - inner[0]) // 2, (size - inner[1]) // 2))
    return square


def _dhash(image: Image.Image) -> int:
    """Perceptual hash of a picture, 64 bits: the sign of each horizontal step of its 9x8 thumbnail in grey."""
    grey = np.asarray(image.resize((9, 8), Image.Resampling.BOX).convert("L"))
    return int.from_bytes(np.packbits(grey[:, 1:] > grey[:, :-1]).tobytes(), "big")


def _unidentified(data: bytes) -> Rejection:
    head = data[:16]
    if head.lstrip().startswith(_OTHER_PICTURES) or (head[4:8] == b"ftyp" and head[8:12] in _OTHER_BRANDS):
        return Rejection("unsupported-format", f"first bytes {head[:12]!r}")
    return Rejection("not-an-image", f"first bytes {head[:12]!r}")


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Hold back what C code prints on stderr: libtiff reports damaged files there, past Python."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _installed_version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
