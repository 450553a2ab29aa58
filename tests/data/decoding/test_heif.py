"""HEIC and AVIF with the extra `heif`, and the message without it."""

import io

import numpy as np
import pytest
from PIL import Image

from lmk_data.dataset.format import Rejection, Resized
from lmk_data.formats import accepted_formats
from lmk_data.options import Recipe
from lmk_data.resize import encoder, resize_image

RECIPE = Recipe(size=64, quality=100, subsampling="4:4:4")


def saved(image: Image.Image, kind: str) -> bytes:
    """A picture of one of the kinds; skips where they cannot be written."""
    if kind not in accepted_formats():
        pytest.skip(f"{kind} is not decoded here")
    pytest.importorskip("pillow_heif").register_heif_opener()
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"exif": image.info["exif"]} if kind == "AVIF" and "exif" in image.info else {}))
    return buffer.getvalue()


@pytest.mark.skipif("HEIF" in accepted_formats(), reason="the extra is installed")
@pytest.mark.parametrize("brand", [b"heic", b"heix", b"hevc", b"mif1", b"avif", b"avis"])
def test_without_the_extra_the_message_names_it(brand: bytes) -> None:
    result = resize_image(b"\0\0\0\x18ftyp" + brand + bytes(40), RECIPE)
    assert isinstance(result, Rejection)
    assert result.reason == "unsupported-format"
    assert "needs the extra `heif`" in result.detail
    assert "pip install '.[heif]'" in result.detail
    assert not {"heif", "avif"} & set(encoder().codecs)


@pytest.mark.parametrize("kind", ["HEIF", "AVIF"])
def test_with_the_extra_they_are_pictures(kind: str) -> None:
    halves = Image.new("RGB", (300, 200), (220, 0, 0))
    halves.paste((0, 0, 220), (150, 0, 300, 200))
    exif = Image.Exif()
    exif[0x112] = 6
    turned = halves.transpose(Image.Transpose.ROTATE_90)
    turned.info["exif"] = exif.tobytes()
    for image in (halves, turned):
        result = resize_image(saved(image, kind), RECIPE)
        assert isinstance(result, Resized)
        assert (result.width, result.height) == (300, 200)
        with Image.open(io.BytesIO(result.jpeg)) as stored:
            pixels = np.asarray(stored).astype(np.int64)
        assert np.abs(pixels[:, :28] - np.array((220, 0, 0))).mean() < 8
        assert np.abs(pixels[:, 36:] - np.array((0, 0, 220))).mean() < 8
    assert kind.lower() in encoder().codecs


@pytest.mark.parametrize("kind", ["HEIF", "AVIF"])
def test_their_transparency_is_white_and_damage_has_a_reason(kind: str) -> None:
    data = saved(Image.new("RGBA", (64, 64), (0, 0, 0, 0)), kind)
    result = resize_image(data, RECIPE)
    assert isinstance(result, Resized)
    with Image.open(io.BytesIO(result.jpeg)) as stored:
        assert np.asarray(stored).min() > 245
    for cut in (data[:30], data[:200], data[:-10]):
        damaged = resize_image(cut, RECIPE)
        assert isinstance(damaged, Rejection)
        assert damaged.reason in ("corrupt", "truncated")


def test_full_chroma_of_many_bits_needs_twice_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    heif = pytest.importorskip("pillow_heif")
    pixels = heif.from_bytes(mode="RGB;16", size=(400, 300), data=b"\x10\x20" * 360_000)
    monkeypatch.setattr("lmk_data.decoding.refusal.MAX_DECODED_BYTES", 1_700_000)
    for chroma, is_taken in ((420, True), (444, False)):
        buffer = io.BytesIO()
        pixels.save(buffer, chroma=chroma)
        assert isinstance(resize_image(buffer.getvalue(), RECIPE), Resized) == is_taken
