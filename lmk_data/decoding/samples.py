"""Convert a decoded image of any mode to RGB of 8 bits, in bands of rows, by the range that its format states."""

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lmk_data.decoding.refusal import Refused
from lmk_data.decoding.tiff import Tiff

_WHITE = (255, 255, 255)
_BAND_PIXELS = 1 << 20
_WITH_ALPHA = ("RGBA", "LA", "PA", "La", "RGBa")
_WIDE = re.compile("I|F|I;16.*")  # modes of grey with more than 8 bits


def num_bytes_as_rgb(image: Image.Image, transparent: tuple[int, ...]) -> int:
    """Return the bytes that an image takes while it is decoded and converted by `to_rgb`."""
    if _WIDE.fullmatch(image.mode):
        each = 5  # at first 2 or 4 and 1, then 1 and 4
    elif image.mode == "RGB" and not transparent and "transparency" not in image.info:
        each = 4
    else:
        each = (1 if image.mode in ("1", "L", "P") else 4) + 4
    return image.width * image.height * each


def to_rgb(image: Image.Image, transparent: tuple[int, ...] = (), tiff: Tiff | None = None) -> Image.Image:
    """Return a loaded image as RGB: transparency is composited over white. The image is closed if it has 16 bits.

    Args:
        image: the loaded image.
        transparent: grey level of 16 bits that is transparent.
        tiff: what a TIFF states of its samples.
    """
    if _WIDE.fullmatch(image.mode) or (tiff is not None and tiff.darkest < 0 and image.mode == "L"):
        return _wide_to_grey(image, transparent, tiff).convert("RGB")
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode == "LAB":
        raise Refused("unsupported-format", "colours of the kind LAB")
    rgb = Image.new("RGB", image.size, _WHITE)
    for box in _bands(image.size):
        band = image.crop(box)
        if image.mode in _WITH_ALPHA or "transparency" in image.info:
            alpha = band.convert("RGBA")
            rgb.paste(alpha, box, alpha.getchannel("A"))
        else:
            rgb.paste(band.convert("RGB"), box)
    return rgb


def whiten(high: Image.Image, low: Image.Image, transparent: tuple[int, ...]) -> None:
    """Make the pixels of a colour white, in place.

    Args:
        high: RGB image of the high bytes of 16 bits a channel.
        low: RGB image of their low bytes.
        transparent: the colour, three numbers of 16 bits.
    """
    above, below = np.array(transparent) >> 8, np.array(transparent) & 255
    for box in _bands(high.size):
        is_high = np.asarray(high.crop(box)) == above
        mask = (is_high & (np.asarray(low.crop(box)) == below)).all(axis=-1)
        if mask.any():
            high.paste(_WHITE, box, Image.fromarray((mask * 255).astype(np.uint8)))


def _wide_to_grey(image: Image.Image, transparent: tuple[int, ...], tiff: Tiff | None) -> Image.Image:
    """Return grey of 16 or 32 bits as grey of 8 bits, scaled by the range of its format, and close it."""
    grey = Image.new("L", image.size, 255)
    for box in _bands(image.size):
        samples = np.asarray(image.crop(box))
        levels = _levels(samples, tiff)
        if transparent:
            levels[samples == transparent[0]] = 255
        grey.paste(Image.fromarray(levels), box)
    image.close()
    return grey


def _levels(samples: NDArray[Any], tiff: Tiff | None) -> NDArray[np.uint8]:
    """Return samples as 0 to 255, uint8; raise Refused for floats outside of the range that the file states."""
    darkest, brightest = (0.0, 65535.0) if tiff is None else (tiff.darkest, tiff.brightest)
    least, most = min(darkest, brightest), max(darkest, brightest)
    if samples.dtype == np.int32 and most > 2**31 - 1:
        samples = samples.view(np.uint32)
    if least < 0 and samples.dtype == np.uint8:
        samples = samples.view(np.int8)
    values: NDArray[Any] = samples.astype(np.float64 if samples.dtype.itemsize == 4 else np.float32)
    if tiff is not None and tiff.is_float:
        values = np.nan_to_num(values)
        if values.min(initial=least) < least or values.max(initial=most) > most:
            raise Refused("unsupported-format", f"samples outside of {least:g} to {most:g}, the range of its floats")
    if not most > least:
        raise Refused("corrupt", "a range of samples without an extent")
    scaled = (values - darkest) * (255 / (brightest - darkest))
    levels: NDArray[np.uint8] = np.clip(scaled + 0.5, 0, 255).astype(np.uint8)
    return levels


def _bands(size: tuple[int, int]) -> Iterator[tuple[int, int, int, int]]:
    """Yield boxes of whole rows that cover an image from top to bottom."""
    width, height = size
    rows = max(1, _BAND_PIXELS // width)
    for top in range(0, height, rows):
        yield 0, top, width, min(top + rows, height)
