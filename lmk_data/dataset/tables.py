"""Read the Parquet tables of a dataset, and refuse what does not fit the format or would not fit into memory."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lmk_data.dataset.format import (
    CLASSES,
    MARKED_SIZE,
    SPLITS,
    classes_schema,
    dropped_classes_schema,
    index_schema,
    rejects_schema,
)
from lmk_data.errors import DatasetError
from lmk_data.system.files import open_regular
from lmk_data.system.parquet import TableLimits, read_batches, read_parquet, read_row
from lmk_data.system.storage import Folder, LocalFolder

if TYPE_CHECKING:  # what reads and writes Parquet alone needs no pandas
    import pandas as pd

# What a small file can state in any number: rows of tables that no shard backs, and the bytes of a table in memory.
MAX_ROWS, MAX_BYTES = 4_000_000, 1 << 30
_BYTES_BESIDE, BYTES_PER_ROW = 64 << 20, 1024  # of an index, whose rows have samples in the shards
_VERIFY_HINT = "run `lmk-shard verify` to see what is damaged"
_SAFE_KEY = r"\A[A-Za-z0-9_-]{1,80}\z"  # with `__` as the only start that is not safe, as in `format.KEY_PATTERN`
_MOST = 2**31 - 1
_MAY_BE_EMPTY = {"name", "detail"}


def read_table(folder: Folder, name: str, columns: list[str] | None = None, max_rows: int | None = None) -> pa.Table:
    """Return columns of a Parquet file, all by default, as they are.

    Raises DatasetError for a file that cannot be read, has other than the wanted columns or more than `max_rows` rows,
    or takes more memory than tables of a dataset do: what it says of itself is checked before its rows are read.
    `max_rows` None means a table that no shard backs, which has at most `MAX_ROWS` and `MAX_BYTES`.
    """
    with _opened(folder, name) as (file, is_local):
        return read_parquet(file, columns, _limits(max_rows), is_near=is_local)


def read_table_batches(folder: Folder, name: str, columns: list[str], max_rows: int) -> Iterator[pa.RecordBatch]:
    """Yield columns of a Parquet file in batches, with texts as dictionaries. Raises as `read_table` does."""
    with _opened(folder, name) as (file, is_local):
        yield from read_batches(file, columns, _limits(max_rows), is_near=is_local)


def read_table_row(folder: Folder, name: str, columns: list[str], row: int, max_rows: int) -> dict[str, Any]:
    """Return the values of `columns` in one row (from 0) of a Parquet file, unchecked; it has at most `max_rows`.

    Raises as `read_table` does.
    """
    with _opened(folder, name) as (file, is_local):
        return read_row(file, columns, row, _limits(max_rows), is_near=is_local)


@contextmanager
def _opened(folder: Folder, name: str) -> Iterator[tuple[Any, bool]]:
    """Yield an open file, and whether it is of this machine. Raises DatasetError for what the block finds wrong."""
    location = folder.location(name)
    try:
        is_local = isinstance(folder, LocalFolder)  # Arrow's own file may be read by threads, see `arrow_reader`
        if is_local:
            open_regular(location).close()  # Arrow would wait for somebody to write into a FIFO
        with pa.OSFile(os.fsencode(location)) if is_local else folder.open(name) as file:
            yield file, is_local
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise DatasetError(f"{location}: cannot be read ({reason}); {_VERIFY_HINT}") from error


def _limits(max_rows: int | None) -> TableLimits:
    if max_rows is None:
        return TableLimits(MAX_ROWS, MAX_BYTES)
    return TableLimits(max_rows, _BYTES_BESIDE + BYTES_PER_ROW * max_rows)


def check_schema(table: pa.Table, wanted: pa.Schema, location: str) -> None:
    """Raise DatasetError unless the columns of a table have the types of the format, and no empty fields."""
    for name in table.column_names:
        column, index = table[name], wanted.get_field_index(name)
        if index >= 0 and not _is_like(column.type, wanted.field(index).type):
            stated = str(column.type)[:80]
            raise DatasetError(
                f"{location}: its column {name} is {stated}, not {wanted.field(index).type}; {_VERIFY_HINT}"
            )
        if index >= 0 and name not in _MAY_BE_EMPTY and column.null_count:
            raise DatasetError(f"{location}: its column {name} has empty fields; {_VERIFY_HINT}")


def _is_like(kind: pa.DataType, wanted: pa.DataType) -> bool:
    """Return whether a type is the wanted one; texts may be stored in several ways, as other tools do."""
    return bool(kind == wanted or (_is_text(kind) and _is_text(wanted)))


def _is_text(kind: pa.DataType) -> bool:
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(value) or pa.types.is_large_string(value))


def landmark_id_of(table: pa.Table) -> pa.DataType:
    """Return the type of the landmark ids of a table: text, unless they are int64."""
    is_number = "landmark_id" in table.column_names and table.schema.field("landmark_id").type == pa.int64()
    return pa.int64() if is_number else pa.string()


@dataclass(frozen=True, slots=True)
class IndexBounds:
    """What the rest of a dataset says of an index: classes, the type of their ids, rows, bytes of the largest shard."""

    num_classes: int
    landmark_id: pa.DataType
    num_rows: int
    shard_bytes: int


def check_index(table: pa.Table, location: str, bounds: IndexBounds) -> None:
    """Raise DatasetError unless the columns of an index that were read have types and values of the format."""
    check_schema(table, index_schema(bounds.landmark_id), location)
    if table.num_rows != bounds.num_rows:
        raise DatasetError(
            f"{location}: {table.num_rows:,} rows, the manifest says {bounds.num_rows:,}; {_VERIFY_HINT}"
        )
    ranges = {
        "label": (0, bounds.num_classes - 1),
        "position": (0, _MOST),
        "jpg_offset": (0, bounds.shard_bytes),
        "jpg_size": (0, bounds.shard_bytes),
        "original_width": (1, _MOST),
        "original_height": (1, _MOST),
        "original_bytes": (1, _MOST),
    }
    for name in table.column_names:
        if name in ranges and not _is_within(table[name], *ranges[name]):
            raise DatasetError(f"{location}: a {name} is out of range; {_VERIFY_HINT}")
    if "key" in table.column_names:
        check_keys([table["key"]], location)


def check_keys(columns: list[pa.ChunkedArray], location: str) -> None:
    """Raise DatasetError for a key that is not of the documented form, or occurs twice."""
    texts = [pc.cast(column, pa.string()) for column in columns]
    keys = pa.chunked_array([chunk for column in texts for chunk in column.chunks], pa.string())
    if not has_safe_keys(keys):
        raise DatasetError(f"{location}: has a key that is not of the documented form; {_VERIFY_HINT}")
    if pc.count_distinct(keys).as_py() != len(keys):
        raise DatasetError(f"{location}: a key occurs twice; {_VERIFY_HINT}")


def has_safe_keys(keys: pa.ChunkedArray) -> bool:
    """Return whether all keys have the documented form: no path, no control character, at most 80 characters."""
    return not unsafe_keys(keys).any()


def unsafe_keys(keys: pa.ChunkedArray) -> NDArray[np.bool_]:
    """Return which keys are not of the documented form, bool [N]."""
    unsafe = pc.or_(pc.invert(pc.match_substring_regex(keys, _SAFE_KEY)), pc.starts_with(keys, "__"))
    return np.asarray(unsafe.to_numpy(), dtype=np.bool_)


def _is_within(column: pa.ChunkedArray, least: int, most: int) -> bool:
    if not len(column):
        return True
    bounds = pc.min_max(column).as_py()
    return bool(least <= bounds["min"] and bounds["max"] <= most)


def read_classes(folder: Folder, num_classes: int) -> "pd.DataFrame":
    """Return classes.parquet of a dataset whose manifest states `num_classes`, checked: one row per label, in order."""
    table, location = read_table(folder, CLASSES), folder.location(CLASSES)
    wanted = classes_schema(landmark_id_of(table), is_marked=MARKED_SIZE in table.column_names)
    if missing := [name for name in wanted.names if name not in table.column_names]:
        raise DatasetError(f"{location}: has no column {missing[0]}; {_VERIFY_HINT}")
    check_schema(table, wanted, location)
    if table.num_rows != num_classes:
        raise DatasetError(f"{location}: {table.num_rows} classes, the manifest says {num_classes}")
    frame: pd.DataFrame = table.to_pandas()
    counts = frame[[*SPLITS, "rejected"]]
    wrong = None
    if not (frame["label"].to_numpy() == range(len(frame))).all():
        wrong = "its labels are not 0, 1, 2 and so on"
    elif frame["landmark_id"].duplicated().any():
        wrong = "a landmark_id occurs twice"
    elif (counts < 0).any(axis=None) or (counts.sum(axis=1) != frame["listed"]).any():
        wrong = "its counts do not add up"
    elif MARKED_SIZE in frame and (frame[MARKED_SIZE] < frame["listed"]).any():
        wrong = f"a class has more images than it states as {MARKED_SIZE}"
    if wrong:
        raise DatasetError(f"{location}: {wrong}; {_VERIFY_HINT}")
    return frame


def read_rest(folder: Folder, name: str, num_classes: int) -> "pd.DataFrame":
    """Return rejects.parquet or dropped_classes.parquet of a dataset whose manifest states `num_classes`, checked."""
    table, location = read_table(folder, name), folder.location(name)
    schema_of = dropped_classes_schema if name.startswith("dropped") else rejects_schema
    wanted = schema_of(landmark_id_of(table))
    if missing := [column for column in wanted.names if column not in table.column_names]:
        raise DatasetError(f"{location}: has no column {missing[0]}; {_VERIFY_HINT}")
    check_schema(table, wanted, location)
    if "label" in table.column_names and not _is_within(table["label"], 0, num_classes - 1):
        raise DatasetError(f"{location}: a label is of no class; {_VERIFY_HINT}")
    frame: pd.DataFrame = table.to_pandas()
    return frame
