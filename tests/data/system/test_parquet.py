"""Small Parquet files that state, or stand for, more than fits into memory: refused before their rows are read."""

import contextlib
import io
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lmk_data.system import parquet
from lmk_data.system.parquet import TableLimits, read_parquet, stated_rows

ROWS = 100_000
LIMITS = TableLimits(max_rows=200_000, max_bytes=8 << 20)


def repeated(value: object, kind: pa.DataType) -> pa.Array:
    """Return one value in `ROWS` rows, which Parquet stores once."""
    codes = pa.array(np.zeros(ROWS, dtype=np.int32))
    return pa.DictionaryArray.from_arrays(codes, pa.array([value], kind)).cast(kind)


def file_of(column: pa.Array, **options: object) -> io.BytesIO:
    file = io.BytesIO()
    pq.write_table(pa.table({"a": column}), file, **options)
    return file


@pytest.mark.parametrize(
    ("column", "said"),
    [
        (repeated("x" * 100, pa.string()), "texts of more than"),
        (repeated("x" * 100, pa.large_string()), "texts of more than"),
        (repeated("x" * 100, pa.string()).cast(pa.string_view()), "texts of more than"),
        (repeated(b"x" * 100, pa.binary()), "texts of more than"),
        (repeated(b"x" * 100, pa.binary(100)), "10,000,000 bytes for 100,000 rows"),
        (repeated("x" * 100, pa.string()).dictionary_encode(), "texts of more than"),
        (pa.array([[1] * 1000] * 100), "'a' has the type list"),
        (pa.array([{"b": "x" * 100}] * 100), "'a' has the type struct"),
        (pa.nulls(200_001, pa.int8()), "200,001 rows, more than 200,000"),
        (pa.array([b"x" * (9 << 20)]), "bytes for 1 rows"),
    ],
    ids=[
        "text",
        "large text",
        "views",
        "bytes",
        "fixed bytes",
        "dictionary",
        "lists",
        "structs",
        "rows",
        "one long value",
    ],
)
def test_what_stands_for_more_than_fits(column: pa.Array, said: str) -> None:
    file = file_of(column, compression="zstd")
    assert len(file.getvalue()) < 100_000
    before = pa.total_allocated_bytes()
    tracemalloc.start()
    with pytest.raises(ValueError, match=said):
        read_parquet(file, None, LIMITS)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
    assert pa.total_allocated_bytes() <= before + (1 << 20)


def test_a_column_that_is_not_wanted_may_be_anything() -> None:
    table = pa.table({"a": pa.array(["x", "y"]), "b": pa.array([[1], [2]])})
    file = io.BytesIO()
    pq.write_table(table, file)
    assert read_parquet(file, ["a"], LIMITS) == table.select(["a"])


@pytest.mark.parametrize(
    "kind",
    [
        *(pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.binary_view()),
        pa.dictionary(pa.int32(), pa.string()),
    ],
)
def test_columns_keep_their_types_and_empty_fields(kind: pa.DataType) -> None:
    column = pa.array(["x", None, "y", "x", ""], kind)
    table = read_parquet(file_of(column, row_group_size=2), None, LIMITS)
    assert table.schema.field("a").type == kind
    assert table["a"].to_pylist() == column.to_pylist()


def test_footers_and_columns_beyond_those_of_any_table(monkeypatch: pytest.MonkeyPatch) -> None:
    file = file_of(pa.array(range(1000)), row_group_size=1)
    monkeypatch.setattr(parquet, "MAX_FOOTER_BYTES", 1000)
    for read in (lambda: read_parquet(file, None, LIMITS), lambda: stated_rows(file)):
        with pytest.raises(ValueError, match="its footer has"):
            read()
    monkeypatch.undo()
    assert stated_rows(file) == 1000
    monkeypatch.setattr(parquet, "MAX_COLUMNS", 0)
    with pytest.raises(ValueError, match="1 columns, more than 0"):
        read_parquet(file, None, LIMITS)


def test_row_groups_that_contradict_the_file() -> None:
    """77 rows are stated of the file, of its row group and as values of its column: 154 in Thrift, 0x9a 0x01."""
    data = file_of(pa.array([7] * 77, pa.int64()), use_dictionary=False, write_statistics=False).getvalue()
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    refused = 0
    for place in [i for i in range(footer, len(data)) if data[i : i + 2] == b"\x9a\x01"]:
        changed = data[:place] + b"\x9c\x01" + data[place + 2 :]
        with contextlib.suppress(ValueError):
            read_parquet(io.BytesIO(changed), None, LIMITS)
            continue
        refused += 1
    assert refused == 3
