"""A stored picture that states another size is refused by its header, whoever reads it."""

import io
import tracemalloc
from collections.abc import Callable

import pytest
from PIL import Image

from lmk_data.decoding import check_scans, check_stored, checked_jpeg
from lmk_data.errors import DatasetError
from lmk_data.report.page import thumbnail
from lmk_data.views.similarity import small_picture
from tests.data.decoding.made import claiming, scans


def stored(**options: object) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), (90, 120, 30)).save(buffer, "JPEG", **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def test_an_honest_picture_is_taken_without_its_metadata() -> None:
    assert checked_jpeg(stored(), 64) == stored()
    assert checked_jpeg(stored(comment=b"x" * 900), 64) == stored()


@pytest.mark.parametrize(
    "read",
    [
        lambda jpeg: checked_jpeg(jpeg, 64),
        lambda jpeg: check_stored(jpeg, 64),
        lambda jpeg: small_picture(jpeg, 64),
        lambda jpeg: thumbnail(jpeg, 64, "x.tar"),
    ],
)
def test_a_size_that_is_not_that_of_the_dataset_is_refused_before_it_is_decoded(
    read: Callable[[bytes], object],
) -> None:
    tracemalloc.start()
    try:
        for jpeg in (claiming(stored(progressive=True), 20_000, 20_000), claiming(stored(), 64, 65)):
            with pytest.raises((ValueError, DatasetError), match="pixels instead of 64x64"):
                read(jpeg)
        for jpeg in (scans(500), b"no jpeg", stored()[:100]):
            with pytest.raises((ValueError, DatasetError)):
                read(jpeg)
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


def test_only_many_scans_are_refused() -> None:
    for jpeg in (stored(), stored(subsampling=0, optimize=True, comment=b"x" * 900), stored(progressive=True)):
        check_scans(jpeg)
    apart = stored()[:-2].replace(b"\xff\xda\0\x0c\3", b"\xff\xda\0\x0c\1")  # sequential, its first scan of one colour
    for jpeg in (scans(200), apart + apart[apart.index(b"\xff\xda") :] * 200, b"no jpeg", stored()[:100]):
        with pytest.raises(ValueError, match=r"scans|begins|frame"):
            check_scans(jpeg)
