import csv
import io
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lmk_data.dataset.format import REJECT_REASONS, Rejection, Resized
from lmk_data.formats import accepted_formats
from lmk_data.options import Fit, Recipe
from lmk_data.resize import encoder, resize_image

RECIPE = Recipe()


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def decoded(result: Resized | Rejection, size: int = 224) -> "np.ndarray[tuple[int, ...], np.dtype[np.int64]]":
    """The stored picture as int64 [size, size, 3]."""
    assert isinstance(result, Resized), result
    image = Image.open(io.BytesIO(result.jpeg))
    assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (size, size))
    return np.asarray(image).astype(np.int64)


def psnr(
    a: "np.ndarray[tuple[int, ...], np.dtype[np.int64]]", b: "np.ndarray[tuple[int, ...], np.dtype[np.int64]]"
) -> float:
    return float(10 * np.log10(255**2 / max(1e-9, ((a - b) ** 2).mean())))


def quadrants() -> Image.Image:
    """Red, green, blue and white quarters, wider than high."""
    image = Image.new("RGB", (300, 200), (255, 255, 255))
    for box, color in (((0, 0), (220, 0, 0)), ((150, 0), (0, 220, 0)), ((0, 100), (0, 0, 220))):
        image.paste(color, (*box, box[0] + 150, box[1] + 100))
    return image


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_come_upright(orientation: int) -> None:
    undo = [None, 0, 3, 1, 5, 2, 6, 4][orientation - 1]  # the transposition that a camera would have stored
    upright = quadrants()
    stored = upright if undo is None else upright.transpose(Image.Transpose(undo))
    exif = Image.Exif()
    exif[0x0112] = orientation
    result = resize_image(encoded(stored, "JPEG", quality=95, exif=exif.tobytes()), RECIPE)
    assert isinstance(result, Resized)
    assert (result.width, result.height) == (300, 200)
    assert psnr(decoded(result), decoded(resize_image(encoded(upright, "JPEG", quality=95), RECIPE))) > 30


def test_any_mode_becomes_rgb_over_white() -> None:
    transparent = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    half = Image.new("RGBA", (64, 64), (0, 0, 0, 128))
    grey16 = Image.fromarray(np.full((64, 64), 32768, dtype=np.uint16))
    palette = Image.new("P", (64, 64), 0)
    palette.putpalette([10, 200, 30] + [0] * 765)
    for image, kind, expected in (
        (transparent, "PNG", (255, 255, 255)),
        (half, "PNG", (127, 127, 127)),
        (transparent.convert("LA"), "PNG", (255, 255, 255)),
        (grey16, "PNG", (128, 128, 128)),
        (palette, "GIF", (10, 200, 30)),
        (Image.new("1", (64, 64), 1), "PNG", (255, 255, 255)),
        (Image.new("L", (64, 64), 77), "JPEG", (77, 77, 77)),
        (Image.new("CMYK", (64, 64), (0, 0, 0, 0)), "JPEG", (255, 255, 255)),
        (Image.new("RGB", (64, 64), (9, 99, 199)), "WEBP", (9, 99, 199)),
        (Image.new("RGB", (64, 64), (9, 99, 199)), "BMP", (9, 99, 199)),
    ):
        pixels = decoded(resize_image(encoded(image, kind), RECIPE))
        assert np.abs(pixels - np.array(expected)).max() <= 4, (kind, image.mode)


def test_fits() -> None:
    data = encoded(quadrants(), "PNG")
    squashed, cropped, padded = (decoded(resize_image(data, Recipe(fit=fit))) for fit in ("squash", "crop", "pad"))
    assert psnr(squashed, np.asarray(quadrants().resize((224, 224), Image.Resampling.BICUBIC)).astype(np.int64)) > 30
    box = quadrants().crop((50, 0, 250, 200)).resize((224, 224), Image.Resampling.BICUBIC)
    assert psnr(cropped, np.asarray(box).astype(np.int64)) > 30
    assert (padded[:30] > 250).all()
    assert (padded[-30:] > 250).all()
    assert (padded[60, 20] - np.array([220, 0, 0]) < 10).all()


@pytest.mark.parametrize("fit", ["squash", "crop", "pad"])
def test_scaled_decoding_keeps_the_quality_of_full_decoding(shared: Path, fit: Fit) -> None:
    """Against full decoding, at a size where every photo is decoded scaled; most sides do not divide by the scale."""
    size = 64
    small = Recipe(size=size, fit=fit, exif_transpose=False)
    lost = []
    for path in sorted((shared / "photos").rglob("*.jpg")):
        with Image.open(path) as image:
            full = image.convert("RGB")
        if min(full.size) < 2 * 3 * size:
            continue
        scaled, plain = resize_image(path.read_bytes(), small), resize_image(encoded(full, "BMP"), small)
        if fit == "squash":
            reference = np.asarray(full.resize((size, size), Image.Resampling.LANCZOS)).astype(np.int64)
            lost.append(psnr(decoded(plain, size), reference) - psnr(decoded(scaled, size), reference))
        else:
            lost.append(38 - psnr(decoded(scaled, size), decoded(plain, size)))
    assert len(lost) > 20
    assert np.mean(lost) < 0.1
    assert max(lost) < 0.25 or fit != "squash"


@pytest.mark.parametrize("fit", ["squash", "crop", "pad"])
@pytest.mark.parametrize("longest", [250, 330, 500, 640])
def test_decoding_in_one_call_keeps_the_quality_of_full_decoding(shared: Path, fit: Fit, longest: int) -> None:
    """With halved chroma, interpolated or not; against the same pixels without a JPEG around them."""
    recipe = Recipe(size=128, fit=fit, exif_transpose=False)
    lost = []
    for path in sorted((shared / "photos" / "wikimedia").glob("*.jpg")):
        with Image.open(path) as image:
            image.thumbnail((longest, longest))
            jpeg = encoded(image.convert("RGB"), "JPEG", quality=90, subsampling=2)
        with Image.open(io.BytesIO(jpeg)) as image:
            full = image.convert("RGB")
        reference = decoded(resize_image(encoded(full, "BMP"), Recipe(size=128, fit=fit, quality=100)), 128)
        plain, ours = (decoded(resize_image(data, recipe), 128) for data in (encoded(full, "BMP"), jpeg))
        lost.append(psnr(plain, reference) - psnr(ours, reference))
    assert len(lost) > 15
    assert np.mean(lost) < 0.1
    assert max(lost) < 0.25


def test_same_bytes_twice() -> None:
    data = encoded(quadrants(), "PNG")
    assert resize_image(data, RECIPE) == resize_image(data, RECIPE)


def test_hostile_files_end_where_they_belong(shared: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Every file of the collection is a picture or has a reason, silently; docs/sharding.md explains `different`."""
    folder = shared / "nasty"
    with open(folder / "MANIFEST.tsv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert len(rows) > 90
    different = {"real/pillow/ultrahdr.jpg": "truncated"}
    if "AVIF" not in accepted_formats():
        different["real/pillow/hopper.avif"] = "unsupported-format"
    wrong = []
    for row in rows:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = resize_image((folder / row["file"]).read_bytes(), RECIPE)
        if isinstance(result, Rejection):
            assert result.reason in REJECT_REASONS
            is_tiff = row["file"].endswith((".tif", ".tiff")) or "tiff" in row["file"]
            missing_codec = is_tiff and "TIFF" not in accepted_formats()
            is_fine = missing_codec or different.get(row["file"]) == result.reason
            if row["expected"].startswith("ok") and not is_fine:
                wrong.append((row["file"], result))
        else:
            decoded(result)
            if row["expected"].startswith("bad"):
                wrong.append((row["file"], result.width))
    assert not wrong
    assert capfd.readouterr() == ("", "")


def test_hostile_files_take_little_memory(shared: Path) -> None:
    """A bomb is refused by its header: the peak of a process that meets all of them stays small."""
    program = (
        "import re, sys, warnings; from pathlib import Path; from lmk_data.options import Recipe\n"
        "from lmk_data.resize import resize_image\n"
        "warnings.simplefilter('ignore')\n"
        "files = [p for p in sorted(Path(sys.argv[1]).rglob('*')) if p.is_file()]\n"
        "for path in files: resize_image(path.read_bytes(), Recipe())\n"
        "print(len(files), re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1])"
    )
    words = [sys.executable, "-c", program, str(shared / "nasty")]
    said = subprocess.run(words, capture_output=True, text=True, check=True)
    num_files, kibibytes = map(int, said.stdout.split())
    assert num_files > 100
    assert kibibytes < 500 << 10
    assert not said.stderr


def test_a_missing_end_mark_costs_nothing_and_missing_pixels_do() -> None:
    whole = encoded(quadrants(), "JPEG", quality=95)
    assert whole.endswith(b"\xff\xd9")
    assert resize_image(whole[:-2], RECIPE) == resize_image(whole, RECIPE)
    for cut in (whole[: len(whole) // 2], whole[: len(whole) // 2] + b"\xff\xd9"):
        result = resize_image(cut, RECIPE)
        assert isinstance(result, Rejection)
        assert result.reason == "truncated"
    flat = encoded(Image.new("RGB", (300, 200), (90, 120, 30)), "JPEG")
    assert isinstance(resize_image(flat, RECIPE), Resized), "a flat picture is whole"
    assert isinstance(resize_image(encoded(quadrants(), "JPEG", progressive=True), RECIPE), Resized)


def test_orientation_that_makes_no_sense_is_upright() -> None:
    for value in (0, 9, 255, 65535):
        exif = Image.Exif()
        exif[0x0112] = value
        result = resize_image(encoded(quadrants(), "JPEG", exif=exif.tobytes()), RECIPE)
        assert isinstance(result, Resized)
        assert (result.width, result.height) == (300, 200)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_files_are_values_not_exceptions(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["JPEG", "PNG", "GIF", "BMP", "WEBP"]))
    image = bytearray(encoded(quadrants().resize((40, 30)), kind))
    for _ in range(data.draw(st.integers(0, 6))):
        image[data.draw(st.integers(0, len(image) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(image)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = resize_image(bytes(image[:cut]), RECIPE)
    assert isinstance(result, Resized) or result.reason in REJECT_REASONS


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"\xff", "not-an-image"),
        (b"<html>404</html>", "not-an-image"),
        (b"version https://git-lfs.github.com/spec/v1\n", "not-an-image"),
        (b"\0\0\0 ftypjxl " + bytes(20), "unsupported-format"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "unsupported-format"),
    ],
)
def test_what_is_no_picture_has_its_reason(data: bytes, reason: str) -> None:
    result = resize_image(data, RECIPE)
    assert isinstance(result, Rejection)
    assert result.reason == reason


def test_truncated_and_oversized_pictures_are_refused() -> None:
    data = encoded(quadrants(), "JPEG", quality=95)
    result = resize_image(data[: len(data) // 2], RECIPE)
    assert isinstance(result, Rejection)
    assert result.reason == "truncated"
    bomb = resize_image(data, Recipe(max_pixels=59_999))
    assert isinstance(bomb, Rejection)
    assert bomb.reason == "too-large"


def test_encoder_names_what_runs() -> None:
    found = encoder()
    assert found.distribution in ("pillow", "pillow-simd")
    assert {"jpeg", "png", "webp"} <= set(found.codecs)
    assert (found.distribution == "pillow-simd") == (".post" in found.version)


def test_dhash_is_stable_and_tells_pictures_apart(shared: Path) -> None:
    paths = sorted((shared / "photos" / "wikimedia").glob("*.jpg"))[:2]
    results = [resize_image(path.read_bytes(), RECIPE) for path in paths]
    again = []
    for path in paths:
        with Image.open(path) as image:
            again.append(resize_image(encoded(image.convert("RGB"), "JPEG", quality=70), RECIPE))
    hashes = [r.dhash for r in results if isinstance(r, Resized)]
    other = [r.dhash for r in again if isinstance(r, Resized)]
    assert all((a ^ b).bit_count() <= 4 for a, b in zip(hashes, other, strict=True))
    assert (hashes[0] ^ hashes[1]).bit_count() > 10
