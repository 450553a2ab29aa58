"""The pieces of pages: escaping, numbers, tables that sort, thumbnails, and figures in the reader's colours."""

import io
import json
import re

import pytest
from PIL import Image

from lmk_data.errors import DatasetError
from lmk_data.report import page

HOSTILE = "<script>alert(1)</script>\"'&"


@pytest.mark.parametrize(
    "piece",
    [
        page.paragraph(HOSTILE),
        page.code(HOSTILE),
        page.key_figures([(HOSTILE, HOSTILE)]),
        page.table([HOSTILE], [[HOSTILE]]),
        page.sortable_table([HOSTILE], [[HOSTILE] * 200]),
        page.picture_rows([page.PictureRow(HOSTILE, HOSTILE, [b"jpeg"])]),
    ],
)
def test_every_piece_escapes_its_texts(piece: str) -> None:
    assert "<script>alert" not in piece
    assert "alert(1)" in piece


def test_tables_align_numbers_and_leave_ids_as_they_are() -> None:
    part = page.table(["id", "images", "share"], [["00123", 12345, page.percent(0.5)]])
    assert '<th>id</th><th class="number">images</th><th class="number">share</th>' in part
    assert '<td>00123</td><td class="number">12,345</td><td class="number">50.00 %</td>' in part
    assert "<th>id</th>" in page.table(["id"], []), "a table without rows"


@pytest.mark.parametrize(
    ("column", "sorts"),
    [
        (["10", "9", "-3"], "num"),
        (["0.001", "7.3e-05", ""], "num"),
        (["10", "tower"], "string"),
        ([3, 1], "num"),
    ],
)
def test_columns_of_numbers_are_sorted_by_value(column: list[object], sorts: str) -> None:
    part = page.sortable_table(["x"], [column])
    (data,) = re.findall(r'<script type="application/json">(.*?)</script>', part)
    assert json.loads(data)["columns"][0]["sorts"] == sorts
    assert json.loads(data)["rows"] == [[value] for value in column]


def test_a_thumbnail_is_a_small_jpeg_and_a_damaged_image_is_named() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (224, 224), "red").save(buffer, "JPEG")
    with Image.open(io.BytesIO(page.thumbnail(buffer.getvalue(), 224, "x.tar"))) as small:
        assert (small.format, small.width) == ("JPEG", 112)
    with pytest.raises(DatasetError, match=r"x\.tar: the image at 5 is damaged .*lmk-shard verify"):
        page.thumbnail(b"no jpeg", 224, "x.tar: the image at 5")
    with pytest.raises(DatasetError, match=r"x\.tar is damaged \(224x224 pixels instead of 64x64\)"):
        page.thumbnail(buffer.getvalue(), 64, "x.tar")


def test_every_text_of_a_figure_has_the_colour_of_the_page() -> None:
    """Also those that matplotlib draws in black by default: annotations, legends, the labels of a colour bar."""
    drawn, axes = page.new_figure()
    drawn.colorbar(axes.imshow([[0, 1]]), label="scale")
    axes.annotate("note", (0, 0))
    axes.plot([0, 1], label="line")
    axes.legend()
    svg = page.figure(drawn, "caption")
    texts = re.findall(r"<text ([^>]*)>([^<]*)</text>", svg)
    assert {"scale", "note", "line"} <= {text for _, text in texts}
    assert all("fill: currentColor" in style for style, _ in texts)
