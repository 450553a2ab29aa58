"""Tables that repeat rows: each different row is kept once, where it was, and the memory is that of these alone."""

import gzip
import os
import resource
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmk_data.errors import UserError
from lmk_data.sources import labels, rows, tables
from lmk_data.sources.labels import read_labels
from lmk_data.sources.rows import DifferentRows

CELLS = st.sampled_from(["a", "b", "", None, "ab"])


def added(parts: list[list[tuple[str | None, str | None]]]) -> rows.Rows:
    different = DifferentRows(["id", "label"])
    for part in parts:
        columns = [pa.array([row[i] for row in part], pa.string()) for i in (0, 1)]
        different.add(pa.table([columns[0], columns[1].dictionary_encode()], names=["id", "label"]), lambda part: part)
    return different.rows()


@given(st.lists(st.lists(st.tuples(CELLS, CELLS), max_size=8), max_size=5), st.sampled_from([0, 3, 2_000_000]))
def test_each_row_is_kept_once_where_it_occurs_first(
    parts: list[list[tuple[str | None, str | None]]], search_at: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "_SEARCHED_AGAIN", search_at)
        found = added(parts)
    listed = [row for part in parts for row in part]
    once = list(dict.fromkeys(listed))
    assert list(zip(*(column.to_pylist() for column in found.columns.columns), strict=True)) == once
    assert found.numbers.tolist() == [listed.index(row) + 1 for row in once]
    assert found.counts.tolist() == [listed.count(row) for row in once]
    assert found.num_repeated == len(listed) - len(once)


@pytest.mark.parametrize("kind", [pa.string(), pa.int64()])
@pytest.mark.parametrize("suffix", ["parquet", "csv.gz"])
def test_a_small_table_of_many_rows_is_read_as_its_different_ones(
    tmp_path: Path, kind: pa.DataType, suffix: str
) -> None:
    num_rows, path = 300_000, tmp_path / f"t.{suffix}"
    column = pa.DictionaryArray.from_arrays(
        pa.array(np.zeros(num_rows, np.int32)), pa.array([7], pa.int64()).cast(kind)
    )
    if suffix == "parquet":
        pq.write_table(pa.table({"id": column.cast(kind), "landmark_id": column.cast(kind)}), path)
    else:
        path.write_bytes(gzip.compress(b"id,landmark_id\n" + b"7,7\n" * num_rows))
    assert path.stat().st_size < 10_000
    found = read_labels(str(path))
    assert found.frame[["id", "landmark_id"]].to_numpy().tolist() == [["7", 7]]
    assert found.duplicate_rows == num_rows - 1


@pytest.mark.parametrize(
    ("module", "limit", "most", "said"),
    [
        (rows, "MAX_ROWS", 3, "more than 3 rows"),
        (rows, "MAX_DIFFERENT_ROWS", 2, "more than 2 different rows"),
        (rows, "MAX_TEXT_BYTES", 5, "more than 0 MB of text"),
        (labels, "MAX_BYTES", 20, "larger than 0 MB, the most for a label table"),
        (tables, "MAX_LINE_BYTES", 8, "a line of more than 0 MB|not a readable table"),
        (tables, "MAX_COLUMNS", 1, "more than 1 columns"),
    ],
)
def test_tables_beyond_the_limits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: object, limit: str, most: int, said: str
) -> None:
    (tmp_path / "t.csv").write_text("id,landmark_id\na,1\nb,2\nc,3\nc,3\n")
    monkeypatch.setattr(module, limit, most)
    with pytest.raises(UserError, match=rf"t\.csv: .*({said})"):
        read_labels(str(tmp_path / "t.csv"))


def test_text_that_is_repeated_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "MAX_TEXT_BYTES", 100)
    found = added([[("a", "1"), ("b", "2"), ("c", "3")]] * 50)
    assert found.counts.tolist() == [50, 50, 50]


def test_a_table_that_unpacks_to_more_than_a_table_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "t.csv").write_bytes(gzip.compress(b"id,landmark_id\n" + b"7,7\n" * 1000))
    monkeypatch.setattr(tables, "MAX_BYTES", 2000)
    with pytest.raises(UserError, match=r"t\.csv: unpacks to more than"):
        read_labels(str(tmp_path / "t.csv"))


def test_the_name_of_a_table_need_not_be_utf8(tmp_path: Path) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/t\xff.csv")
    Path(path).write_text("id,landmark_id\na,1\n")
    assert read_labels(path).name == "t\\udcff.csv"


def test_lists_of_ids_that_repeat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t.csv"
    path.write_text("landmark_id,images\n7,a b a\n8,c\n7,a b a\n9,\n8,c\n")
    found = read_labels(str(path))
    assert found.frame[["id", "landmark_id"]].to_numpy().tolist() == [["a", 7], ["b", 7], ["c", 8]]
    assert found.duplicate_rows == 8 - 3
    path.write_text('landmark_id,images\n8,c\n8,c\n7,"a b\nc"\n')
    with pytest.raises(UserError, match="data row 3: its images spans lines"):
        read_labels(str(path))
    monkeypatch.setattr(labels, "MAX_DIFFERENT_ROWS", 100)
    path.write_text(f"landmark_id,images\n7,{'a ' * 200}\n")
    with pytest.raises(UserError, match="lists more than 100 images"):
        read_labels(str(path))


def test_rows_are_named_by_their_numbers_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("id,landmark_id\n" + "a,1\n" * 10 + "b,\n")
    with pytest.raises(UserError, match="data row 11 has no landmark_id"):
        read_labels(str(path))


def test_a_file_of_quotes_takes_little_memory() -> None:
    """The search for a quote that is not closed remembered 60 bytes for each pair of quotes: 120 MB here."""
    data = b'id,landmark_id\n"a' + b'""' * 2_000_000 + b'",1\n'
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tables._check_quotes(data, ",", "t.csv")
    with pytest.raises(UserError, match="never closed"):
        tables._check_quotes(data[:-4], ",", "t.csv")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000
