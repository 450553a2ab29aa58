"""The frames inside an AVIF, whatever its boxes state."""

import contextlib
import io
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lmk_data.dataset.format import Rejection, Resized
from lmk_data.decoding import refusal
from lmk_data.decoding.av1 import _frame_size, av1_pixels
from lmk_data.decoding.refusal import Refused
from lmk_data.formats import accepted_formats
from lmk_data.options import Recipe
from lmk_data.resize import resize_image

needs_avif = pytest.mark.skipif("AVIF" not in accepted_formats(), reason="AVIF is not decoded here")


def saved(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "AVIF", speed=10, **options)
    return buffer.getvalue()


def noise(size: tuple[int, int], channels: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 255, (size[1], size[0], channels), dtype=np.uint8)
    return Image.fromarray(pixels)


@needs_avif
@pytest.mark.parametrize("size", [(64, 48), (17, 33), (300, 200)])
@pytest.mark.parametrize("channels", [3, 4])
def test_an_honest_avif_has_the_pixels_that_it_states(size: tuple[int, int], channels: int) -> None:
    assert av1_pixels(saved(noise(size, channels))) == size[0] * size[1]


@needs_avif
def test_an_animated_avif_has_those_of_one_frame() -> None:
    frames = [Image.new("RGB", (120, 80), (40 * i, 0, 0)) for i in range(4)]
    assert av1_pixels(saved(frames[0], save_all=True, append_images=frames[1:])) == 120 * 80


@needs_avif
def test_an_avif_that_states_fewer_pixels_than_it_has_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data, sizes = saved(noise((600, 400), 3)), (struct.pack(">II", 600, 400), struct.pack(">II", 8, 8))
    assert data.count(sizes[0]) == 1
    lying = data.replace(*sizes)
    assert av1_pixels(lying) == 600 * 400
    monkeypatch.setattr(refusal, "MAX_DECODED_BYTES", 2_000_000)
    result = resize_image(lying, Recipe(size=8))
    assert isinstance(result, Rejection)
    assert result.reason == "too-large"
    assert isinstance(resize_image(saved(noise((8, 8), 3)), Recipe(size=8)), Resized)


def box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", 8 + len(content)) + kind + content


def avif(extents: list[tuple[int, int]], data: bytes) -> bytes:
    """An AVIF of one item in `idat`, in parts."""
    places = b"".join(struct.pack(">II", *extent) for extent in extents)
    iloc = box(b"iloc", b"\1\0\0\0\x44\0" + struct.pack(">HHHHH", 1, 1, 1, 0, len(extents)) + places)
    iinf = box(b"iinf", bytes(4) + struct.pack(">H", 1) + box(b"infe", b"\2\0\0\0\0\1\0\0av01"))
    return box(b"ftyp", b"avif") + box(b"meta", bytes(4) + iinf + iloc + box(b"idat", data))


def bits(*fields: tuple[int, int]) -> bytes:
    """Numbers of so many bits, one behind the other."""
    text = "".join(f"{value:0{number}b}" for value, number in fields)
    return int(text.ljust(-(-len(text) // 8) * 8, "0"), 2).to_bytes(-(-len(text) // 8))


SIZE = ((11, 4), (10, 4), (3999, 12), (1999, 11))  # bits of width and height, then 4000 x 2000, each less one
STILL = bits((0, 3), (1, 1), (1, 1), (4, 5), *SIZE)


@pytest.mark.parametrize(
    "header",
    [
        STILL,
        bits((0, 5), (0, 1), (0, 1), (0, 5), (0, 12), (4, 5), *SIZE),
        bits((0, 5), (0, 1), (0, 1), (1, 5), (0, 12), (9, 5), (1, 1), (0, 12), (4, 5), *SIZE),
        # Timing with ticks of one length (uvlc: two zeros, a one, two bits), a decoder model, and delays.
        bits(
            *((0, 5), (1, 1), (7, 32), (9, 32), (1, 1), (0, 2), (1, 1), (2, 2)),
            *((1, 1), (9, 5), (3, 32), (4, 5), (4, 5), (1, 1), (0, 5), (0, 12), (4, 5)),
            *((1, 1), (0, 10), (0, 10), (0, 1), (1, 1), (3, 4), *SIZE),
        ),
    ],
)
def test_the_size_behind_every_optional_field_of_a_sequence_header(header: bytes) -> None:
    assert _frame_size(header) == (4000, 2000)


def test_a_header_in_parts_and_behind_other_units() -> None:
    units = b"\x12\0" + b"\x0a" + bytes([len(STILL)]) + STILL + b"\x32\1\0"
    assert av1_pixels(avif([(0, len(units))], units)) == 8_000_000
    assert av1_pixels(avif([(0, 4), (4, 3), (7, 0)], units)) == 8_000_000
    assert av1_pixels(avif([(0, 0)], b"\x12\0")) == 0
    assert av1_pixels(b"") == 0


def test_what_would_take_time_without_end_is_refused() -> None:
    with pytest.raises(Refused, match="overlap"):
        av1_pixels(avif([(0, 0)] * 60_000, bytes(100_000)))
    with pytest.raises(Refused, match="more than 100,000 parts"):
        av1_pixels(box(b"free", b"") * 100_001)
    with pytest.raises(Refused, match="more than 100,000 parts"):
        av1_pixels(avif([(0, 0)], b"\x12\0" * 100_001))


@given(st.binary(max_size=300), st.integers(0, 200), st.binary(max_size=6))
def test_any_bytes_have_an_answer(data: bytes, place: int, other: bytes) -> None:
    whole = avif([(0, 4), (4, 0)], b"\x0a" + bytes([len(STILL)]) + STILL + data)
    for one in (data, box(b"meta", data), whole[:place] + other + whole[place + len(other) :]):
        with contextlib.suppress(Refused):
            assert av1_pixels(one) >= 0
