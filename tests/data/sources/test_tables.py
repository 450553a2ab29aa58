"""Tables as people's programs write them, and files that are none."""

import io
import zipfile
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lmk_data.errors import UserError
from lmk_data.sources.labels import read_labels

TEXT = "id,landmark_id\na,1\nb,2\n"


def labels_of(path: Path, data: bytes) -> dict[str, object]:
    path.write_bytes(data)
    return dict(read_labels(str(path)).frame.set_index("id")["landmark_id"].to_dict())


@pytest.mark.parametrize(
    "data",
    [
        TEXT.replace(",", ";").encode(),
        TEXT.replace(",", "\t").encode(),
        TEXT.replace(",", "|").encode(),
        TEXT.encode("utf-16"),
        b"\xfe\xff" + TEXT.encode("utf-16-be"),
        b'"","id","landmark_id"\n"1","a","1"\n"2","b","2"\n',
        b"note,id,note,landmark_id\n\xff,a,,1\n,b,,2\n",
        b" id , landmark_id\n a ,1\nb, 2\n",
    ],
    ids=["semicolons", "tabs", "bars", "utf-16", "utf-16-be", "quoted", "odd columns that are not used", "spaces"],
)
def test_a_csv_of_any_program(tmp_path: Path, data: bytes) -> None:
    if b"\xff," in data:
        with pytest.raises(UserError, match="line 2 is not in the encoding UTF-8"):
            labels_of(tmp_path / "t.csv", data)
        data = data.replace(b"\xff", b"x")
    assert labels_of(tmp_path / "t.csv", data) == {"a": 1, "b": 2}


def zip_of(text: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("train.csv", text)
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (zip_of(TEXT), "is a zip .*; unpack it"),
        (b'[{"id": "a"}]', "is JSON; save it as CSV"),
        (b"ARROW1\0\0", "is an Arrow file"),
        (b"\x89HDF\r\n\x1a\n\0\0", "neither text nor Parquet"),
        (TEXT.encode("utf-16")[:-1], "not a whole text in the encoding UTF-16"),
        ("id,landmark_id\na,1\nb,caf\xe9\n".encode("latin-1"), "line 3 is not in the encoding UTF-8"),
    ],
)
def test_what_is_no_table_is_called_what_it_is(tmp_path: Path, data: bytes, said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        labels_of(tmp_path / "t.csv", data)
    assert str(error.value).removeprefix(str(tmp_path)).isprintable()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('id,landmark_id\na,1\nb,"2\nc,3\nd,4\n', "line 3: a quote is opened and never closed"),
        ('id,landmark_id\na,1\nb,"x ""y""\nc,3\n', "line 3: a quote is opened and never closed"),
        ('id,landmark_id\n"a,1\nb,2\nc,3\n', "line 2: a quote is opened and never closed"),
        ('id,landmark_id\na,"1\nb,2\nc,3"\nd,4\n', "data row 1: its landmark_id spans lines"),
        ('id;landmark_id\na;"1\nb;2\n', "line 2: a quote is opened and never closed"),
    ],
)
def test_a_quote_that_is_not_closed_swallows_no_row(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        labels_of(tmp_path / "t.csv", text.encode())


def test_quotes_that_are_closed(tmp_path: Path) -> None:
    text = 'id,note,landmark_id\na,"two\nlines, ""quoted""",5" pipe\n"b",,"x,""y"""\n'
    assert labels_of(tmp_path / "t.csv", text.encode()) == {"a": '5" pipe', "b": 'x,"y"'}


@pytest.mark.parametrize(
    ("labels", "kept"),
    [
        (pa.array([1.0, 2.0]), [1, 2]),
        (pa.array([1, 2], pa.uint8()), [1, 2]),
        (pa.array([Decimal(1), Decimal(2)]), [1, 2]),
        (pa.array([True, False]), ["True", "False"]),
        (pa.array([b"x", "é".encode()]), ["x", "é"]),
        (pa.array(["x", "y"], pa.string_view()), ["x", "y"]),
        (pa.array(["x", "y"], pa.large_string()).dictionary_encode(), ["x", "y"]),
    ],
)
def test_columns_of_parquet_of_any_plain_type(tmp_path: Path, labels: Any, kept: list[object]) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"id": ["a", "b"], "landmark_id": labels, "unused": [[1.0], [2.0]]}), path)
    assert read_labels(str(path)).frame["landmark_id"].tolist() == kept


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (pa.array([1.5, 2.0]), "the column landmark_id has the type double, and not all its values are whole"),
        (pa.array([[1], [2]]), "the column landmark_id has the type list<.*>; store it as text"),
        (pa.array([1.0, float("nan")]), "data row 2 has no landmark_id"),
        (pa.array([b"x", b"\xff"]), "not a readable table"),
    ],
)
def test_columns_of_parquet_that_are_no_labels(tmp_path: Path, labels: Any, said: str) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"id": ["a", "b"], "landmark_id": labels}), path)
    with pytest.raises(UserError, match=said):
        read_labels(str(path))
