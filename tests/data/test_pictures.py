"""Pictures of every accepted kind, and files that are none, from tests/data/pictures; its README says how they were
made."""

import io
import warnings
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from lmk_data.dataset.format import Rejection, Resized
from lmk_data.formats import accepted_formats
from lmk_data.options import Recipe
from lmk_data.resize import resize_image

PICTURES = Path(__file__).parent / "pictures"
RECIPE = Recipe(size=64, quality=100, subsampling="4:4:4")
LOSSLESS, LOSSY, FEW_COLOURS = 45, 33, 28  # least PSNR in dB

COLOUR = {
    **dict.fromkeys(["rgb.png", "rgb-16-bit.png", "rgb.bmp", "png-inside.jpg"], LOSSLESS),
    **dict.fromkeys(["sequential.jpg", "optimised.jpg", "progressive.jpg", "full-chroma.jpg", "cmyk.jpg"], LOSSY),
    **dict.fromkeys(["bytes-after-the-end.jpg", "no-end-mark.jpg", "lossy.webp"], LOSSY),
    **{f"orientation-{number}.jpg": LOSSY for number in range(1, 9)},
    **dict.fromkeys(["palette.png", "palette.gif", "palette.bmp", "animated.gif"], FEW_COLOURS),
}
GREY = {"grey.png": LOSSLESS, "grey-16-bit.png": LOSSLESS, "grey.jpg": LOSSY}
RIGHT_HALF_TRANSPARENT = {
    "rgba.png": LOSSLESS,
    "lossless-alpha.webp": LOSSLESS,
    "palette-transparent.png": FEW_COLOURS,
    "transparent.gif": FEW_COLOURS,
}
REJECTED = {
    "cut.jpg": "truncated",
    "cut.png": "truncated",
    "damaged.png": "corrupt",
    "no-tables.jpg": "corrupt",
    "bomb.png": "too-large",
    "web-page.jpg": "not-an-image",
    "empty.jpg": "empty",
    "drawing.svg": "unsupported-format",
}
OF_LIBTIFF = ("rgb.tif", "grey-16-bit.tif")
OTHERS = {
    "grey-alpha.png",
    "one-bit.png",
    "one-pixel.jpg",
    "one-pixel.png",
    "two-rows.png",
    "photo-1.jpg",
    "photo-2.jpg",
}


def resized(name: str, recipe: Recipe = RECIPE) -> Resized | Rejection:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, about bombs and damaged metadata
        return resize_image((PICTURES / name).read_bytes(), recipe)


def pixels_of(result: Resized | Rejection) -> NDArray[np.int64]:
    """The stored picture as int64 [size, size, 3]."""
    assert isinstance(result, Resized), result
    with Image.open(io.BytesIO(result.jpeg)) as image:
        assert (image.format, image.mode) == ("JPEG", "RGB")
        return np.asarray(image).astype(np.int64)


def psnr(a: NDArray[np.int64], b: NDArray[np.int64]) -> float:
    return float(10 * np.log10(255**2 / max(1e-9, ((a - b) ** 2).mean())))


def scene(mode: str = "RGB") -> NDArray[np.int64]:
    """The scene that the pictures show, in the stored size, by Pillow alone."""
    with Image.open(PICTURES / "rgb.png") as image:
        grey_or_not = image.convert(mode).convert("RGB")
        return np.asarray(grey_or_not.resize((64, 64), Image.Resampling.BICUBIC)).astype(np.int64)


def test_every_file_is_in_a_table() -> None:
    named = {*COLOUR, *GREY, *RIGHT_HALF_TRANSPARENT, *REJECTED, *OF_LIBTIFF, *OTHERS, "README.md"}
    assert named == {path.name for path in PICTURES.iterdir()}


@pytest.mark.parametrize("name", COLOUR)
def test_colour_pictures_of_every_format_and_orientation_show_the_scene(name: str) -> None:
    result = resized(name)
    assert psnr(pixels_of(result), scene()) > COLOUR[name]
    assert isinstance(result, Resized)
    assert (result.width, result.height) == (96, 64)


@pytest.mark.parametrize("name", GREY)
def test_grey_is_scaled_to_eight_bits(name: str) -> None:
    assert psnr(pixels_of(resized(name)), scene("L")) > GREY[name]


@pytest.mark.parametrize("name", RIGHT_HALF_TRANSPARENT)
def test_transparency_is_laid_over_white(name: str) -> None:
    pixels = pixels_of(resized(name))
    assert pixels[:, 40:].min() > 245
    assert psnr(pixels[:, :24], scene()[:, :24]) > RIGHT_HALF_TRANSPARENT[name]


def test_odd_modes_and_sizes() -> None:
    grey = pixels_of(resized("grey-alpha.png"))
    assert grey[:, 40:].min() > 245
    assert np.ptp(grey, axis=2).max() <= 2
    assert np.ptp(pixels_of(resized("one-bit.png")), axis=2).max() <= 2
    for name in ("one-pixel.png", "one-pixel.jpg"):
        assert np.abs(pixels_of(resized(name)) - np.array([10, 200, 30])).max() <= 8
    strip = resized("two-rows.png")
    assert isinstance(strip, Resized)
    assert (strip.width, strip.height) == (480, 2)
    padded = pixels_of(resized("two-rows.png", Recipe(size=64, fit="pad")))
    assert padded[:20].min() > 245
    assert padded[44:].min() > 245


@pytest.mark.parametrize("name", REJECTED)
def test_what_is_no_whole_picture_has_its_reason(name: str) -> None:
    result = resized(name)
    assert isinstance(result, Rejection)
    assert result.reason == REJECTED[name]


@pytest.mark.parametrize("name", OF_LIBTIFF)
def test_tiff_is_read_where_pillow_has_libtiff(name: str) -> None:
    result = resized(name)
    if "TIFF" in accepted_formats():
        assert psnr(pixels_of(result), scene("L" if name.startswith("grey") else "RGB")) > LOSSLESS
    else:
        assert isinstance(result, Rejection)
        assert result.reason == "unsupported-format"


@pytest.mark.parametrize("name", ["photo-1.jpg", "photo-2.jpg"])
def test_scaled_decoding_of_a_larger_picture_is_as_good_as_full_decoding(name: str) -> None:
    with Image.open(PICTURES / name) as image:
        full = image.convert("RGB")
    buffer = io.BytesIO()
    full.save(buffer, "BMP")
    small = Recipe(size=32)
    reference = np.asarray(full.resize((32, 32), Image.Resampling.LANCZOS)).astype(np.int64)
    scaled, plain = pixels_of(resized(name, small)), pixels_of(resize_image(buffer.getvalue(), small))
    assert psnr(scaled, reference) > psnr(plain, reference) - 0.25


def test_perceptual_hashes_tell_scenes_apart_and_not_encodings() -> None:
    first, second, same = (resized(name) for name in ("photo-1.jpg", "photo-2.jpg", "progressive.jpg"))
    baseline = resized("sequential.jpg")
    hashes = [result.dhash for result in (first, second, same, baseline) if isinstance(result, Resized)]
    assert (hashes[0] ^ hashes[1]).bit_count() > 10
    assert (hashes[2] ^ hashes[3]).bit_count() <= 2
    assert (hashes[0] ^ hashes[2]).bit_count() <= 10
