import gzip
from pathlib import Path

import pandas as pd
import pytest

from lmk_data.errors import UserError
from lmk_data.formats import all_extensions
from lmk_data.sources.labels import read_categories, read_labels


def write(path: Path, text: str) -> str:
    path.write_bytes(text.encode())
    return str(path)


def test_known_layouts_read_the_same(tmp_path: Path) -> None:
    expected = {"aa": 7, "bb": 7, "cc": 12}
    tables = {
        "glr2020": "id,landmark_id\naa,7\nbb,7\ncc,12\n",
        "gldv2": 'id,url,landmark_id\naa,"http://x/a,b.jpg",7\nbb,http://y,7\ncc,,12\n',
        "gldv2-clean": "landmark_id,images\n7,aa bb\n12, cc \n",
        "custom": "\ufefffilename,class,other\r\naa.jpg,7,x\r\nbb.JPEG,7,y\r\ncc.png,12,z\r\n",
    }
    for layout, text in tables.items():
        columns = {"id_column": "filename", "label_column": "class"} if layout == "custom" else {}
        labels = read_labels(write(tmp_path / f"{layout}.csv", text), **columns)
        assert labels.layout == layout
        assert labels.frame.set_index("id")["landmark_id"].to_dict() == expected
        zipped = tmp_path / f"{layout}.csv.gz"
        zipped.write_bytes(gzip.compress(text.encode()))
        pd.testing.assert_frame_equal(read_labels(str(zipped), **columns).frame, labels.frame)


def test_parquet_reads_like_csv(tmp_path: Path) -> None:
    frame = pd.DataFrame({"id": ["aa", "bb"], "landmark_id": [7, 12], "embedding": [[1.0], [2.0]]})
    frame.to_parquet(tmp_path / "labels.parquet")
    assert read_labels(str(tmp_path / "labels.parquet")).frame["landmark_id"].tolist() == [7, 12]


def test_categories_of_pandas_are_labels(tmp_path: Path) -> None:
    frame = pd.DataFrame({"id": ["aa", "bb"], "landmark_id": pd.Categorical(["tower", "gate"])})
    frame.to_parquet(tmp_path / "labels.parquet")
    assert read_labels(str(tmp_path / "labels.parquet")).frame["landmark_id"].tolist() == ["tower", "gate"]


@pytest.mark.parametrize("extension", all_extensions())
def test_ids_lose_the_extension_of_every_accepted_format(tmp_path: Path, extension: str) -> None:
    labels = read_labels(write(tmp_path / "t.csv", f"id,landmark_id\na.{extension},7\nb.{extension.upper()},7\n"))
    assert labels.frame["id"].tolist() == ["a", "b"]


def test_ids_that_only_their_extensions_tell_apart_keep_them(tmp_path: Path) -> None:
    labels = read_labels(write(tmp_path / "t.csv", "id,landmark_id\n1.jpg,7\n1.png,8\n2.jpg,7\n2.jpg,7\n"))
    assert labels.frame.set_index("id")["landmark_id"].to_dict() == {"1.jpg": 7, "1.png": 8, "2": 7}
    assert (labels.num_images, labels.conflicting, labels.duplicate_rows) == (3, 0, 1)


def test_which_columns_were_chosen_is_part_of_what_a_table_is(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "name,smiling,tall\na,0,1\nb,1,0\n")
    one, other = (read_labels(path, id_column="name", label_column=column).source for column in ("smiling", "tall"))
    assert {name for name in one if one[name] != other[name]} == {"label_column"}


def test_repeated_rows_count_once_and_contradictions_leave(tmp_path: Path) -> None:
    labels = read_labels(write(tmp_path / "t.csv", "id,landmark_id\na,1\na,1\nb,1\nb,2\nc,2\n"))
    assert labels.frame["id"].tolist() == ["a", "c"]
    assert (labels.num_images, labels.conflicting, labels.duplicate_rows, labels.num_classes) == (3, 1, 1, 2)


@pytest.mark.parametrize(
    ("values", "kept"), [(["1", "-3"], [1, -3]), (["1", "03"], ["1", "03"]), (["1", "x"], ["1", "x"])]
)
def test_labels_are_integers_only_if_nothing_is_lost(tmp_path: Path, values: list[str], kept: list[object]) -> None:
    text = "id,landmark_id\n" + "".join(f"i{n},{v}\n" for n, v in enumerate(values))
    assert read_labels(write(tmp_path / "t.csv", text)).frame["landmark_id"].tolist() == kept


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name,label\nx,1\n", "no column id; found name, label; name them with --id-column"),
        ("id,landmark_id\n", "lists no image"),
        ("", "not a readable table"),
        ("id,landmark_id\na,1\nb,2,3\n", "not a readable table"),
        ("id,landmark_id\na,1\nb,\n", "data row 2 has no landmark_id; fill it in or drop the row"),
        ("id,landmark_id\n,1\nb,2\n", "data row 1 has no id; fill it in or drop the row"),
        ("id,landmark_id,id\na,1,2\n", "has several columns id; rename all but one"),
        ("id,landmark_id\na,1\na,2\n", "every id has several labels; are --id-column"),
    ],
)
def test_unusable_tables_are_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        read_labels(write(tmp_path / "t.csv", text))


@pytest.mark.parametrize("other", [" 1", "1 ", "1\u00a0", "\ufeff1"])
def test_labels_that_differ_in_spaces_are_one_class(
    tmp_path: Path, other: str, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = read_labels(write(tmp_path / "t.csv", f"id,landmark_id\na,1\nb,{other}\nc,2\n"))
    assert labels.frame["landmark_id"].tolist() == [1, 1, 2]
    said = capsys.readouterr().err
    assert "labels that differ only in the spaces around them or in their Unicode form are one: " in said
    assert ascii(other) in said


def test_text_is_compared_in_one_unicode_form(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = read_labels(write(tmp_path / "t.csv", "id,landmark_id\ncafe\u0301,cafe\u0301\ncaf\u00e9,caf\u00e9\nb,x\n"))
    assert labels.frame.set_index("id")["landmark_id"].to_dict() == {"caf\u00e9": "caf\u00e9", "b": "x"}
    assert labels.duplicate_rows == 1
    said = capsys.readouterr().err
    assert "labels that differ" in said
    assert "ids that differ" in said


def test_honest_text_needs_no_note(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    read_labels(write(tmp_path / "t.csv", "id,landmark_id\na, x\nb, x\n"))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("typed", ["./c0/p1.jpg", "c0//p1.jpg", "c0\\p1.jpg", ".\\c0\\p1.jpg", "c0/./p1.jpg"])
def test_ids_that_are_paths_have_one_spelling(tmp_path: Path, typed: str) -> None:
    frame = read_labels(write(tmp_path / "t.csv", f"id,landmark_id\n{typed},1\n")).frame
    assert frame[["id", "file"]].to_numpy().tolist() == [["c0/p1", "c0/p1.jpg"]]


def test_categories_become_plain_names(tmp_path: Path) -> None:
    text = "landmark_id,category\n7,http://commons.wikimedia.org/wiki/Category:Hawa_Mahal\n9,Plain\n"
    text += "1,snake_case_name\n2,http://commons.wikimedia.org/wiki/Category:Caf%C3%A9_Central\n 3 ,Category:x_y\n"
    names = {"7": "Hawa Mahal", "9": "Plain", "1": "snake_case_name", "2": "Caf\u00e9 Central", "3": "x y"}
    assert read_categories(write(tmp_path / "c.csv", text)).to_dict() == names
