"""Read Parquet files that anybody may have written: what one states of itself is checked before its rows are read."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lmk_data.system.parquet_pages import unpacked_bytes

MAX_FOOTER_BYTES = 16 << 20  # what a file states of itself; decoded it takes ten times as much
MAX_COLUMNS = 10_000
BATCH_ROWS = 131_072
_WITH_LENGTH = (
    *(pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view),
    *(pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view),
)
_TAIL_BYTES = 8  # the length of the footer, then the magic bytes


@dataclass(frozen=True, slots=True)
class TableLimits:
    """What a table may take: rows, and bytes in memory of the columns that are read, with every text written out."""

    max_rows: int
    max_bytes: int


def open_parquet(
    source: Any, columns: Sequence[str] | None, limits: TableLimits, *, is_near: bool = True
) -> pq.ParquetFile:
    """Return a Parquet file, whose columns of text or bytes are read as dictionaries; `columns` None reads all.

    The headers of the pages are checked too, except where `is_near` is False: far away, that is to read the file twice.
    A few bytes of a dictionary can stand for any number of long texts, so `text_bytes` is to be compared with the
    limits before such columns are written out. Raises ValueError or ArrowException for a file that is damaged, lacks
    one of the columns, or states that it is over the limits.
    """
    _check_footer(source)
    metadata = pq.ParquetFile(source).metadata
    schema = metadata.schema.to_arrow_schema()
    names = list(schema.names if columns is None else columns)
    if len({*names}) != len(names) or any(schema.names.count(name) > 1 for name in columns or ()):
        raise ValueError("a column occurs twice")
    if missing := [name for name in names if name not in schema.names]:
        raise ValueError(f"no column {missing[0]!r}")
    if not 0 <= metadata.num_rows <= limits.max_rows:
        raise ValueError(f"{metadata.num_rows:,} rows, more than {limits.max_rows:,}")
    if nested := [name for name in names if pa.types.is_nested(schema.field(name).type)]:
        raise ValueError(f"the column {nested[0]!r} has the type {str(schema.field(nested[0]).type)[:80]}")
    width = sum(_width(schema.field(name).type) for name in names)
    chunks = _chunks(metadata, set(names))
    num_bytes = max(sum(chunk.total_uncompressed_size for chunk in chunks), width * metadata.num_rows)
    if is_near and num_bytes <= limits.max_bytes:
        num_bytes = sum(unpacked_bytes(source, chunk, limits.max_bytes) for chunk in chunks)
    if num_bytes > limits.max_bytes:
        raise ValueError(f"{num_bytes:,} bytes or more for {metadata.num_rows:,} rows")
    texts = [field.name for field in schema if _has_length(field.type)]
    return pq.ParquetFile(source, metadata=metadata, read_dictionary=texts)


def read_parquet(source: Any, columns: Sequence[str] | None, limits: TableLimits, *, is_near: bool = True) -> pa.Table:
    """Return columns of a Parquet file as they are; `columns` None reads all. Raises as `open_parquet` does."""
    file = open_parquet(source, columns, limits, is_near=is_near)
    # Threads may hold a file of Python beyond the interpreter's end, see `arrow_reader`.
    is_arrows = isinstance(source, pa.NativeFile)
    table = file.read(columns=None if columns is None else list(columns), use_threads=is_arrows)
    if sum(text_bytes(column) for column in table.columns) > limits.max_bytes:
        raise ValueError(f"texts of more than {limits.max_bytes:,} bytes for {table.num_rows:,} rows")
    schema = file.metadata.schema.to_arrow_schema()
    fields = [schema.field(name) for name in table.column_names]
    columns = [_written_out(column, field.type) for column, field in zip(table.columns, fields, strict=True)]
    return pa.table(columns, schema=pa.schema(fields, table.schema.metadata))


def read_batches(
    source: Any, columns: Sequence[str], limits: TableLimits, *, is_near: bool = True
) -> Iterator[pa.RecordBatch]:
    """Yield columns of a Parquet file in batches of up to 131,072 rows, with texts and bytes still as dictionaries.

    Raises as `open_parquet` does, and ValueError once the texts written out would be over the limits.
    """
    file = open_parquet(source, columns, limits, is_near=is_near)
    num_bytes = 0
    for batch in file.iter_batches(BATCH_ROWS, columns=list(columns), use_threads=isinstance(source, pa.NativeFile)):
        num_bytes += sum(text_bytes(pa.chunked_array([column])) for column in batch.columns)
        if num_bytes > limits.max_bytes:
            raise ValueError(f"texts of more than {limits.max_bytes:,} bytes")
        yield batch


def read_row(
    source: Any, columns: Sequence[str], row: int, limits: TableLimits, *, is_near: bool = True
) -> dict[str, Any]:
    """Return the values of one row of a Parquet file, of which only its row group is read.

    Args:
        source: the open file.
        columns: which values, by name.
        row: number of the row, from 0.
        limits: what the whole file may hold.
        is_near: whether the headers of its pages are checked too, see `open_parquet`.

    Raises as `open_parquet` does, and ValueError for a file that has no such row.
    """
    file = open_parquet(source, columns, limits, is_near=is_near)
    first, number = 0, 0
    while number < file.num_row_groups and row >= first + file.metadata.row_group(number).num_rows:
        first += file.metadata.row_group(number).num_rows
        number += 1
    groups = [number] if number < file.num_row_groups else []
    is_arrows = isinstance(source, pa.NativeFile)
    for batch in file.iter_batches(BATCH_ROWS, row_groups=groups, columns=list(columns), use_threads=is_arrows):
        if row < first + batch.num_rows:
            values: dict[str, Any] = batch.slice(row - first, 1).to_pylist()[0]
            return values
        first += batch.num_rows
    raise ValueError(f"it has no row {row:,}")


def stated_rows(source: Any) -> int:
    """Return how many rows a Parquet file states. Raises ValueError or ArrowException for a damaged file."""
    _check_footer(source)
    return int(pq.ParquetFile(source).metadata.num_rows)


def stated_columns(source: Any) -> list[str]:
    """Return the names of the columns of a Parquet file. Raises ValueError or ArrowException for a damaged file."""
    _check_footer(source)
    names: list[str] = pq.ParquetFile(source).schema_arrow.names
    return names


def text_bytes(column: pa.ChunkedArray) -> int:
    """Return the bytes of a column of dictionary-encoded texts when each is written out; 0 for any other column."""
    total = 0
    for chunk in column.chunks:
        if pa.types.is_dictionary(chunk.type) and _has_length(chunk.type):
            total += pc.sum(pc.binary_length(chunk.dictionary).cast(pa.int64()).take(chunk.indices)).as_py() or 0
    return total


def _written_out(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    """Return a column in the type that its file states."""
    if pa.types.is_dictionary(column.type) and not pa.types.is_dictionary(kind):
        column = column.cast(column.type.value_type)  # dictionaries have no way to views
    return column.cast(kind)


def _check_footer(source: Any) -> None:
    """Raise ValueError if the footer, which is read and decoded at once, is larger than that of any table."""
    source.seek(0, 2)
    size = source.tell()
    source.seek(max(0, size - _TAIL_BYTES))
    num_bytes = int.from_bytes(source.read(_TAIL_BYTES)[:4], "little")
    source.seek(0)
    if MAX_FOOTER_BYTES < num_bytes < size:
        raise ValueError(f"its footer has {num_bytes:,} bytes")


def _chunks(metadata: pq.FileMetaData, names: set[str]) -> list[pq.ColumnChunkMetaData]:
    """Return the parts of some flat columns. Raises ValueError for numbers that contradict each other."""
    if metadata.num_columns > MAX_COLUMNS:
        raise ValueError(f"{metadata.num_columns:,} columns, more than {MAX_COLUMNS:,}")
    chunks: list[pq.ColumnChunkMetaData] = []
    num_rows = 0
    wanted = [i for i in range(metadata.num_columns) if metadata.schema.column(i).path in names]
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        num_rows += group.num_rows
        for i in wanted:
            chunk = group.column(i)
            if group.num_rows < 0 or chunk.num_values != group.num_rows or chunk.total_uncompressed_size < 0:
                raise ValueError(f"its row group {number} contradicts itself")
            chunks.append(chunk)
    if num_rows != metadata.num_rows:
        raise ValueError(f"{metadata.num_rows:,} rows, its row groups have {num_rows:,}")
    return chunks


def _width(kind: pa.DataType) -> int:
    """Return the bytes that each value of a type takes, beside those of its text."""
    if pa.types.is_dictionary(kind) or _has_length(kind):
        return 8
    return int(kind.bit_width + 7) // 8 if not pa.types.is_null(kind) else 0


def _has_length(kind: pa.DataType) -> bool:
    """Return whether the values of a type have bytes of their own: texts and bytes, also those in a dictionary."""
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    return any(is_kind(value) for is_kind in _WITH_LENGTH)
