"""Small Parquet files that state, or stand for, more than fits into memory: refused before their rows are read."""

import contextlib
import io
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lmk_data.system import parquet
from lmk_data.system.parquet import TableLimits, read_batches, read_parquet, read_row, stated_rows

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
        (repeated(b"x" * 100, pa.binary(100)), "10,000,000 bytes or more for 100,000 rows"),
        (repeated("x" * 100, pa.string()).dictionary_encode(), "texts of more than"),
        (pa.array([[1] * 1000] * 100), "'a' has the type list"),
        (pa.array([{"b": "x" * 100}] * 100), "'a' has the type struct"),
        (pa.nulls(200_001, pa.int8()), "200,001 rows, more than 200,000"),
        (pa.array([b"x" * (9 << 20)]), "bytes or more for 1 rows"),
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
    with pytest.raises(ValueError, match=said.partition(" for ")[0]):
        list(read_batches(file, ["a"], LIMITS))
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
    assert pa.total_allocated_bytes() <= before + (1 << 20)


def test_rows_are_read_in_batches_and_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "BATCH_ROWS", 2)
    texts = ["x", "y", "x", "", "z", "x", "y"]
    file = file_of(pa.array(texts), row_group_size=3)
    batches = list(read_batches(file, ["a"], LIMITS))
    assert [text for batch in batches for text in batch.column("a").to_pylist()] == texts
    assert max(len(batch) for batch in batches) == 2
    assert [read_row(file, ["a"], row, LIMITS) for row in range(len(texts))] == [{"a": text} for text in texts]
    with pytest.raises(ValueError, match="no row 7"):
        read_row(file, ["a"], 7, LIMITS)


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


def test_pages_that_unpack_to_more_than_the_footer_states() -> None:
    """The footer is changed to state 1,000 bytes; the headers of the pages still state all of them."""
    file = file_of(pa.array([bytes([i]) * (1 << 20) for i in range(12)]), compression="zstd", use_dictionary=False)
    stated = pq.ParquetFile(file).metadata.row_group(0).column(0).total_uncompressed_size
    assert stated > LIMITS.max_bytes
    data, length = file.getvalue(), len(varint(2 * stated))
    lie = varint(2 * 1000)
    lie = bytes(byte | 0x80 for byte in lie) + b"\x80" * (length - len(lie) - 1) + b"\0"
    changed = io.BytesIO(data.replace(varint(2 * stated), lie))
    assert pq.ParquetFile(changed).metadata.row_group(0).column(0).total_uncompressed_size == 1000
    with pytest.raises(ValueError, match="bytes or more for 12 rows"):
        read_parquet(changed, None, LIMITS)


def varint(value: int) -> bytes:
    """Return a number as Thrift's compact protocol writes it: 7 bits a byte, the lowest first."""
    return bytes([value & 0x7F | 0x80]) + varint(value >> 7) if value > 0x7F else bytes([value])


@pytest.mark.parametrize(
    "options", [{}, {"data_page_version": "2.0"}, {"write_page_checksum": True}, {"compression": "none"}]
)
def test_headers_of_pages_are_read_as_they_are_written(options: dict[str, object]) -> None:
    texts = [f"text {i}" for i in range(5000)]
    table = pa.table({"a": texts, "b": pa.array([None, 1.5] * 2500), "c": pa.array(texts).dictionary_encode()})
    file = io.BytesIO()
    pq.write_table(table, file, data_page_size=1000, row_group_size=2000, write_page_index=True, **options)
    metadata = pq.ParquetFile(file).metadata
    for group in range(metadata.num_row_groups):
        for column in range(metadata.num_columns):
            chunk = metadata.row_group(group).column(column)
            assert 0 < parquet.unpacked_bytes(file, chunk, 1 << 30) <= chunk.total_uncompressed_size
    assert read_parquet(file, None, LIMITS) == table


@pytest.mark.parametrize(
    "damage", [b"", b"\xff" * 100, b"\x1c" * 100, b"\x15\0\x15\x80\x80", b"\x19\xfc" + b"\xff" * 9]
)
def test_damaged_headers_of_pages_are_one_error(damage: bytes) -> None:
    file = file_of(pa.array(range(100)), use_dictionary=False)
    chunk = pq.ParquetFile(file).metadata.row_group(0).column(0)
    data = bytearray(file.getvalue())
    data[chunk.data_page_offset : chunk.data_page_offset + 100] = damage.ljust(100, b"\0")
    with pytest.raises(ValueError, match="page"):
        parquet.unpacked_bytes(io.BytesIO(data), chunk, 1 << 30)


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
