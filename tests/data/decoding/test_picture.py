"""Pixels by what the format states, and pictures that cost more than their size shows."""

import io
import random
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from lmk_data.dataset.format import Rejection, Resized
from lmk_data.formats import accepted_formats
from lmk_data.options import Recipe
from lmk_data.resize import resize_image
from tests.data.decoding.made import chunk, claiming, png, scans, short, tiff

# Pillow's, about large pictures and damaged metadata.
pytestmark = [
    pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning"),
    pytest.mark.filterwarnings("ignore:Truncated File Read:UserWarning"),
]
RECIPE = Recipe(size=32, quality=100, subsampling="4:4:4")
DAMAGED_HEIC = "corrupt" if "HEIF" in accepted_formats() else "unsupported-format"
needs_tiff = pytest.mark.skipif("TIFF" not in accepted_formats(), reason="Pillow was built without libtiff")


def pixels(data: bytes, recipe: Recipe = RECIPE) -> NDArray[np.int64]:
    """The stored picture as int64 [32, 32, 3]."""
    result = resize_image(data, recipe)
    assert isinstance(result, Resized), result
    with Image.open(io.BytesIO(result.jpeg)) as image:
        return np.asarray(image).astype(np.int64)


def halves(data: bytes) -> tuple[int, int]:
    """The mean levels of the left and of the right half."""
    level = pixels(data)
    return round(level[:, :14].mean()), round(level[:, 18:].mean())


def rejected(data: bytes) -> str:
    result = resize_image(data, RECIPE)
    assert isinstance(result, Rejection)
    return result.reason


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def scene() -> Image.Image:
    """A smooth picture, 40x32, without symmetry."""
    source = random.Random(5)
    small = Image.new("RGB", (4, 4))
    small.putdata([tuple(source.randrange(256) for _ in range(3)) for _ in range(16)])
    return small.resize((40, 32))


@pytest.mark.parametrize(
    ("depth", "kind", "row", "transparent"),
    [
        (1, 0, b"\xff\xff\x00\x00", (1,)),
        (2, 0, b"\x55" * 4 + b"\0" * 4, (1,)),
        (4, 0, b"\x55" * 8 + b"\0" * 8, (5,)),
        (8, 0, b"\x50" * 16 + b"\0" * 16, (0x50,)),
        (8, 0, b"\x50" * 16 + b"\0" * 16, (0xFF50,)),  # only the bits of the depth count
        (16, 0, b"\x12\x34" * 16 + b"\0" * 32, (0x1234,)),
        (8, 2, b"\x12\x34\x56" * 16 + b"\0" * 48, (0x12, 0x34, 0x56)),
        (16, 2, b"\x12\x34\x56\x78\x9a\xbc" * 16 + b"\0" * 96, (0x1234, 0x5678, 0x9ABC)),
    ],
)
def test_the_transparent_colour_of_a_png_is_white_at_any_depth(
    depth: int, kind: int, row: bytes, transparent: tuple[int, ...]
) -> None:
    stated = chunk(b"tRNS", struct.pack(f">{len(transparent)}H", *transparent))
    left, right = halves(png((32, 32), depth, kind, row, stated))
    assert left >= 250
    assert right <= 5


def test_16_bits_are_compared_as_16_bits() -> None:
    """A colour that differs in the low bytes only stays."""
    row = b"\x12\x34\x56\x78\x9a\xbc" * 16 + b"\x12\x35\x56\x78\x9a\xbc" * 16
    stated = chunk(b"tRNS", struct.pack(">3H", 0x1234, 0x5678, 0x9ABC))
    left, right = halves(png((32, 32), 16, 2, row, stated))
    assert (left >= 250, abs(right - 86) <= 3) == (True, True)
    grey = png((32, 32), 16, 0, b"\x12\x34" * 16 + b"\x12\x35" * 16, chunk(b"tRNS", b"\x12\x34"))
    assert halves(grey)[1] <= 25


def test_metadata_that_is_not_used_does_not_cost_the_picture() -> None:
    row = b"\x64" * 96
    plain = pixels(png((32, 32), 8, 2, row))
    large = zlib.compress(random.Random(0).randbytes(800_000).hex().encode())
    for odd in (
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + large),
        chunk(b"zTXt", b"Comment\0\0" + large),
        chunk(b"iCCP", b"p\0\0" + large),
        chunk(b"iCCP", b"p\0\7"),
        chunk(b"pHYs", b"\0"),
        chunk(b"sRGB", b""),
        chunk(b"acTL", b"\0") + chunk(b"fcTL", b"\0"),
        chunk(b"tEXt", b"no keyword"),
        chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(1_000_000))) * 100,
    ):
        assert (pixels(png((32, 32), 8, 2, row, odd)) == plain).all()
        assert (pixels(png((32, 32), 8, 2, row, after=odd)) == plain).all()


@pytest.mark.parametrize("where", ["before", "after"])
@pytest.mark.parametrize("kind", ["eXIf", "profile", "xmp"])
def test_a_png_comes_upright_wherever_its_orientation_is(kind: str, where: str) -> None:
    exif = b"MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0"
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    profile = b"\nexif\n      32\n" + (b"Exif\0\0" + exif).hex().encode() + b"\n"
    stated = {
        "eXIf": chunk(b"eXIf", exif),
        "profile": chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(profile)),
        "xmp": chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp),
    }[kind]
    data = saved(scene().transpose(Image.Transpose.ROTATE_90), "PNG")
    at = data.index(b"IDAT") - 4 if where == "before" else data.index(b"IEND") - 4
    result = resize_image(data[:at] + stated + data[at:], RECIPE)
    assert isinstance(result, Resized)
    assert (result.width, result.height) == (40, 32)
    assert np.abs(pixels(data[:at] + stated + data[at:]) - pixels(saved(scene(), "PNG"))).mean() < 2


@pytest.mark.parametrize("order", ["little", "big"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_read_as_pillow_reads_it(orientation: int, order: str) -> None:
    short_one = struct.pack("<HHIHH" if order == "little" else ">HHIHH", 0x112, 3, 1, orientation, 0)
    other = struct.pack("<HHII" if order == "little" else ">HHII", 0x13B, 2, 400, 1 << 30)  # a text that is not there
    mark = b"II*\0\x08\0\0\0\2\0" if order == "little" else b"MM\0*\0\0\0\x08\0\2"
    exif = b"Exif\0\0" + mark + short_one + other + bytes(4)
    data = saved(scene(), "JPEG", exif=exif, quality=95)
    with Image.open(io.BytesIO(data)) as image:
        assert image.getexif().get(0x112) == orientation
    result = resize_image(data, RECIPE)
    assert isinstance(result, Resized)
    assert (result.width, result.height) == ((40, 32) if orientation < 5 else (32, 40))


@needs_tiff
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_tiff_is_turned_once(orientation: int) -> None:
    undo = [None, 0, 3, 1, 5, 2, 6, 4][orientation - 1]  # the transposition that a camera would have stored
    stored = scene() if undo is None else scene().transpose(Image.Transpose(undo))
    exif = Image.Exif()
    exif[0x112] = orientation
    data = saved(stored, "TIFF", exif=exif)
    result = resize_image(data, RECIPE)
    assert isinstance(result, Resized)
    assert (result.width, result.height) == (40, 32)
    upright = pixels(saved(scene(), "PNG"))
    assert np.abs(pixels(data) - upright).mean() < 2
    as_stored = Recipe(size=32, quality=100, subsampling="4:4:4", exif_transpose=False)
    assert np.abs(pixels(data, as_stored) - pixels(saved(stored, "PNG"))).mean() < 2


@needs_tiff
@pytest.mark.parametrize(
    ("kind", "tags", "levels", "expected"),
    [
        ("<u2", {0x102: short(16)}, (0, 32768), (0, 128)),
        ("<u2", {0x102: short(16)}, (0, 200), (0, 1)),  # dark, but not of 8 bits
        ("<u2", {0x102: short(16), 0x106: short(0)}, (0, 32768), (255, 127)),  # 0 is white
        ("<u4", {0x102: short(32)}, (0, 1 << 31), (0, 128)),
        ("<i2", {0x102: short(16), 0x153: short(2)}, (-32768, 0), (0, 128)),
        ("<i1", {0x102: short(8), 0x153: short(2)}, (-128, 0), (0, 128)),
        ("<f4", {0x102: short(32), 0x153: short(3)}, (0.0, 0.5), (0, 128)),
        ("<f4", {0x102: short(32), 0x153: short(3), 0x106: short(0)}, (0.0, 0.5), (255, 127)),
        ("<f4", {0x102: short(32), 0x153: short(3), 0x155: (11, 1, struct.pack("<f", 200))}, (0, 100), (0, 128)),
    ],
)
def test_the_range_of_samples_is_that_of_the_format(
    kind: str, tags: dict[int, tuple[int, int, bytes]], levels: tuple[float, float], expected: tuple[int, int]
) -> None:
    samples = np.repeat(np.array([levels]), 16, axis=1).repeat(32, axis=0).astype(kind)
    found = halves(tiff((32, 32), samples.tobytes(), tags))
    assert np.abs(np.array(found) - np.array(expected)).max() <= 2, found


@needs_tiff
def test_12_bits_are_scaled_from_12_bits() -> None:
    row = b"\xff\xff\xff" * 8 + b"\0\0\0" * 8
    assert halves(tiff((32, 32), row * 32, {0x102: short(12)})) == (255, 0)


@needs_tiff
def test_floats_without_a_range_are_refused_not_clipped() -> None:
    samples = np.full((32, 32), 7.0, "<f4").tobytes()
    assert rejected(tiff((32, 32), samples, {0x102: short(32), 0x153: short(3)})) == "unsupported-format"


@needs_tiff
def test_tags_that_state_more_than_the_file_has_are_refused() -> None:
    """Pillow keeps a copy of the bytes of every tag, and they may be the same bytes."""
    many = {0xC000 + i: (1, 100_000, bytes(100_000)) for i in range(1)} | {0x102: short(8)}
    data = bytearray(tiff((32, 32), bytes(1024), many))
    entry = data.index(struct.pack("<HHI", 0xC000, 1, 100_000))
    table = struct.unpack_from("<I", data, 4)[0]
    count = struct.unpack_from("<H", data, table)[0]
    same = bytes(data[entry + 2 : entry + 12])
    copies = b"".join(struct.pack("<H", 0xC001 + i) + same for i in range(50))
    new = struct.pack("<H", count + 50) + bytes(data[table + 2 : entry + 12]) + copies + bytes(4)
    struct.pack_into("<I", data, 4, len(data))
    assert rejected(bytes(data) + new) == "corrupt"


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(scans(200), id="scans"),
        pytest.param(claiming(saved(Image.new("CMYK", (16, 16)), "JPEG", progressive=True), 9949, 9949), id="cmyk"),
        pytest.param(claiming(saved(scene(), "JPEG", progressive=True, subsampling=0), 9949, 9949), id="progressive"),
        pytest.param(png((9949, 9949), 8, 6, b"")[:-20], id="rgba"),
        pytest.param(png((9949, 9949), 16, 2, b"", chunk(b"tRNS", bytes(6))), id="rgb of 16 bits, transparent"),
        pytest.param(png((1, 99_000_000), 8, 0, b"")[:80], id="one column"),
        pytest.param(
            b"RIFF\x20\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + (9948).to_bytes(3, "little") * 2 + bytes(8), id="webp"
        ),
        pytest.param(
            b"BM" + struct.pack("<IHHI", 2000, 0, 0, 1078)
            + struct.pack("<IiiHHIIiiII", 40, 10000, 9900, 1, 8, 1, 900, 0, 0, 256, 0) + bytes(2000),
            id="run lengths",
        ),
    ],
)  # fmt: skip
def test_what_would_cost_more_than_the_budget_is_refused_before_it_is_decoded(data: bytes) -> None:
    tracemalloc.start()
    try:
        assert rejected(data) == "too-large"
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("kind", "copies"), [("JPEG", 4), ("PNG", 2), ("GIF", 2), ("BMP", 1), ("TIFF", 1), ("WEBP", 3)]
)
def test_the_bytes_of_a_file_count_as_often_as_they_are_held(
    kind: str, copies: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind not in accepted_formats():
        pytest.skip("not decoded here")
    data = saved(scene(), kind)
    monkeypatch.setattr("lmk_data.decoding.refusal.MAX_DECODED_BYTES", 1_000_000)
    assert isinstance(resize_image(data + bytes(900_000 // copies), RECIPE), Resized)
    result = resize_image(data + bytes(1_000_000 // copies), RECIPE)
    assert isinstance(result, Rejection)
    assert (result.reason, f"a {kind} file of " in result.detail) == ("too-large", True)


def test_pixels_that_follow_the_picture_count_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow reads the rest of a chunk of pixels twice, though the picture is complete."""
    data = saved(scene(), "PNG")
    end = data.index(b"IEND") - 4
    monkeypatch.setattr("lmk_data.decoding.refusal.MAX_DECODED_BYTES", 1_000_000)
    assert isinstance(resize_image(data[:end] + chunk(b"IDAT", bytes(60_000)) * 5 + data[end:], RECIPE), Resized)
    assert rejected(data[:end] + chunk(b"IDAT", bytes(300_000)) + data[end:]) == "too-large"


def test_a_progressive_jpeg_of_usual_scans_is_taken() -> None:
    assert isinstance(resize_image(scans(20), RECIPE), Resized)


def test_large_exif_takes_no_time() -> None:
    """A table of 65,535 tags, each of which states the whole EXIF as its value."""
    tags = b"".join(struct.pack(">HHII", 0x9000 + i % 4000, 1, 700_000, 8) for i in range(65_535))
    exif = b"MM\0*\0\0\0\x08\xff\xff" + tags + bytes(4)
    parts = [exif[i : i + 65_000] for i in range(0, len(exif), 65_000)]
    segments = b"".join(b"\xff\xe1" + struct.pack(">H", len(part) + 8) + b"Exif\0\0" + part for part in parts)
    jpeg = saved(scene(), "JPEG", quality=95)
    tracemalloc.start()
    try:
        assert isinstance(resize_image(jpeg[:2] + segments + jpeg[2:], RECIPE), Resized)
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


def test_frames_and_comments_of_a_gif_are_not_read() -> None:
    gif = saved(scene().convert("P"), "GIF")
    start = 13 + (3 << ((gif[10] & 7) + 1))
    comments = b"!\xfe" + (b"\xff" + b"x" * 255) * 4000 + b"\0"
    assert (pixels(gif[:start] + comments + gif[start:]) == pixels(gif)).all()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\xff\x0a\xfb@$\x08" + bytes(40), "unsupported-format"),  # JPEG XL
        (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(40), "unsupported-format"),
        (b"\0\0\0\x18ftyphevc" + bytes(40), DAMAGED_HEIC),
        (b"\0\0\0\x18ftypMSNV\0\0\0\0mif1heic" + bytes(40), DAMAGED_HEIC),
        (b"\0\0\0\x18ftypisom\0\0\0\0isomavc1" + bytes(40), "not-an-image"),  # a film
        (b"P6\n2 2\n255\n" + bytes(12), "unsupported-format"),
        (b"P.S. a letter", "not-an-image"),
        (b"BMW is a brand, and this is a text of some length", "not-an-image"),
        (b"<?xml version='1.0'?><note>no picture</note>", "not-an-image"),
        (b"<?xml version='1.0'?><svg/>", "unsupported-format"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF", "truncated"),
        (b"\xff\xd8\xff\xf7\0\x0b\x08\0\x10\0\x10\1\1\x11\0\xff\xda\0\x08\1\1\0\0\x3f\0", "unsupported-format"),
        (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", bytes(13)) + chunk(b"IDAT", b""), "corrupt"),
        (b"\x89PNG\r\n\x1a\n" + chunk(b"CgBI", bytes(4)) + chunk(b"IHDR", bytes(13)), "unsupported-format"),
        (b"GIF89a" + bytes(20) + b";", "truncated"),
        (b"RIFF\x20\0\0\0WEBPVP8X\x0a\0\0\0" + bytes(30), "corrupt"),
    ],
)
def test_reasons_tell_kinds_from_damage(data: bytes, reason: str) -> None:
    assert rejected(data) == reason


@needs_tiff
def test_a_raw_photo_in_the_form_of_a_tiff_is_not_stored_as_its_preview() -> None:
    grey = {0x102: short(8)}
    below = {0x14A: (4, 1, struct.pack("<I", 8))}
    preview = {0xFE: (4, 1, struct.pack("<I", 1))}
    version = {0xC612: (1, 4, b"\1\4\0\0")}
    plain = tiff((64, 64), bytes(4096), grey)
    assert isinstance(resize_image(plain, Recipe(size=32)), Resized)
    assert isinstance(resize_image(tiff((64, 64), bytes(4096), {**grey, **below}), Recipe(size=32)), Resized)
    for tags in ({**below, **preview}, version):
        assert rejected(tiff((64, 64), bytes(4096), {**grey, **tags})) == "unsupported-format"
    canon = tiff((64, 64), b"CR\2\0" + bytes(4092), grey)
    assert isinstance(resize_image(canon, Recipe(size=32)), Resized), "pixels"
    table = struct.unpack("<I", plain[4:8])[0]
    assert rejected(plain[:4] + b"\x10\0\0\0CR\2\0" + bytes(4) + plain[table:]) == "unsupported-format"


def test_a_jpeg_of_12_bits_is_of_another_kind_and_a_wrong_checksum_is_damage() -> None:
    jpeg, whole = saved(scene(), "JPEG"), saved(scene(), "PNG")
    at = jpeg.index(b"\xff\xc0")
    assert rejected(jpeg[:at] + b"\xff\xc1" + jpeg[at + 2 : at + 4] + b"\x0c" + jpeg[at + 5 :]) == "unsupported-format"
    assert rejected(whole[:33] + struct.pack(">I", 3) + b"tEXta\0b\0\0\0\0" + whole[33:]) == "corrupt"
