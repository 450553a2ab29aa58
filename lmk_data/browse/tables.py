"""Read the tables of a run or an inspection: bounded, with the columns that were declared, every value in its range."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lmk_data.browse.keys import KeyIndex
from lmk_data.dataset.evaluation import LIMITS
from lmk_data.errors import UserError, one_line
from lmk_data.system.files import open_regular
from lmk_data.system.parquet import read_batches, read_row

Kind = Literal["text", "whole", "real", "flag", "id", "runs"]
MOST = 2**31 - 1
_MAX_RUNS = 100


@dataclass(frozen=True, slots=True)
class Column:
    """The kind of a column, the range of its numbers, and whether it may be null.

    It is read as: `text` and `id` (a text or a whole number) LargeStringArray [N], `whole` int32 [N] with -1 for null,
    `real` float32 [N] with NaN for null, `flag` bool [N], `runs` (few texts, equal ones together) as a list of text and
    number of rows.
    """

    kind: Kind
    least: float = 0
    most: float = MOST
    nullable: bool = False


@dataclass(frozen=True, slots=True)
class Declared:
    """A table as it is declared: its columns, what it is, and what makes it again."""

    columns: Mapping[str, Column]
    what: str
    again: str


def read_columns(path: Path, declared: Declared) -> dict[str, Any]:
    """Return the declared columns of a Parquet file of a stranger, each as `Column` says.

    Raises UserError for a file that is missing or is not as declared.
    """
    texts = [name for name, column in declared.columns.items() if column.kind == "text"]
    others = [name for name in declared.columns if name not in texts]
    read: dict[str, Any] = {}
    with _opened(path, declared) as source:
        for names in (texts, others):  # Arrow holds a dictionary of all texts of a row group while it reads them
            parts: dict[str, list[Any]] = {name: [] for name in names}
            for batch in read_batches(source, names, LIMITS) if names else ():
                for name in names:
                    parts[name].append(_checked(name, batch.column(name), declared.columns[name]))
            read |= {name: _JOIN[declared.columns[name].kind](parts.pop(name)) for name in names}
            pa.default_memory_pool().release_unused()
    if len({len(column) for name, column in read.items() if declared.columns[name].kind != "runs"}) > 1:
        raise UserError(f"{path}: it changed while it was read; {declared.again}")
    return read


def read_place(path: Path, declared: Declared, place: int) -> dict[str, Any]:
    """Return one row of a Parquet file of a stranger, checked. Raises as `read_columns` does."""
    with _opened(path, declared) as source:
        row = read_row(source, list(declared.columns), place, LIMITS)
        for name, column in declared.columns.items():
            _checked(name, pa.array([row[name]]), column)
    return row


def check_labels(path: Path, read: Mapping[str, Any], again: str) -> None:
    """Raise UserError unless the labels of a table of classes are 0, 1, 2 and so on, and no landmark occurs twice."""
    if not np.array_equal(read["label"], np.arange(len(read["label"]))):
        raise UserError(f"{path}: its labels are not 0, 1, 2 and so on; {again}")
    if pc.count_distinct(read["landmark_id"]).as_py() != len(read["label"]):
        raise UserError(f"{path}: a landmark_id occurs twice; {again}")


def rows_of_keys(keys: KeyIndex, texts: pa.LargeStringArray, start: int = 0) -> NDArray[np.int32]:
    """Return the row of each key of a file, int32 [M], -1 for other keys.

    Files usually have all keys in the order of the dataset, from the row `start`: comparing is faster than searching.
    """
    if start + len(texts) <= len(keys.keys) and keys.keys.slice(start, len(texts)).equals(texts):
        return np.arange(start, start + len(texts), dtype=np.int32)
    return keys.rows(texts)


def labels_by_id(ids: pa.LargeStringArray, known: pa.LargeStringArray) -> NDArray[np.int32]:
    """Return the place in `known` of each landmark id, int32 [K]; -1 for an id that is not there.

    Ids are compared as text, since a single id that is no number turns all ids of its dataset into text.
    """
    labels: NDArray[np.int32] = pc.fill_null(pc.index_in(ids, value_set=known), -1).to_numpy()
    return labels


@contextmanager
def _opened(path: Path, declared: Declared) -> Iterator[pa.NativeFile]:
    """Yield an open file. Raises UserError for what the block finds wrong with it."""
    try:
        open_regular(path).close()  # Arrow would wait for somebody to write into a FIFO
        with pa.OSFile(os.fsencode(path)) as source:
            yield source
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; {declared.again}") from None
    except (pa.ArrowException, OSError, ValueError, KeyError, MemoryError) as error:
        raise UserError(f"{path}: not {declared.what} ({one_line(error)}); {declared.again}") from None


def _checked(name: str, values: pa.Array, column: Column) -> Any:
    """Return a part of a column in the form of its kind. Raises ValueError for what is not as declared."""
    kind = values.type.value_type if pa.types.is_dictionary(values.type) else values.type
    if not _IS[column.kind](kind):
        raise ValueError(f"its column {name} is {str(kind)[:40]}")
    if values.null_count and not column.nullable:
        raise ValueError(f"{name} has empty places")
    read = _READ[column.kind](values)
    if column.kind == "whole" and values.null_count < len(values):
        bounds = pc.min_max(values).as_py()
        if not column.least <= bounds["min"] <= bounds["max"] <= column.most:
            raise ValueError(f"a {name} is out of range")
    if column.kind == "real" and not (np.isnan(read) | ((read >= column.least) & (read <= column.most))).all():
        raise ValueError(f"a {name} is out of range")
    return read


def _text(values: pa.Array) -> pa.LargeStringArray:
    return pc.fill_null(values.cast(pa.large_string()), "")


def _runs(values: pa.Array) -> list[tuple[str, int]]:
    """Return equal texts that are together, and how many there are. Raises ValueError for many different ones."""
    encoded = values if pa.types.is_dictionary(values.type) else values.dictionary_encode()
    codes = encoded.indices.to_numpy()
    starts = np.flatnonzero(np.diff(codes, prepend=-1))
    if len(starts) > _MAX_RUNS:
        raise ValueError("its rows are not in order")
    ends = [*starts[1:].tolist(), len(codes)]
    texts = [encoded.dictionary[int(codes[start])].as_py() for start in starts]
    return [(text, end - start) for text, start, end in zip(texts, starts.tolist(), ends, strict=True)]


def _joined_runs(parts: list[list[tuple[str, int]]]) -> list[tuple[str, int]]:
    joined: list[tuple[str, int]] = []
    for text, count in [run for part in parts for run in part]:
        if joined and joined[-1][0] == text:
            joined[-1] = text, joined[-1][1] + count
        else:
            joined.append((text, count))
    return joined


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


_IS: dict[str, Callable[[pa.DataType], bool]] = {
    "text": _is_text,
    "runs": _is_text,
    "whole": pa.types.is_integer,
    "real": pa.types.is_floating,
    "flag": pa.types.is_boolean,
    "id": lambda kind: _is_text(kind) or pa.types.is_integer(kind),
}
_READ: dict[str, Callable[[pa.Array], Any]] = {
    "text": _text,
    "runs": _runs,
    "id": _text,
    "whole": lambda values: pc.fill_null(values.cast(pa.int32()), -1).to_numpy(),
    "real": lambda values: pc.fill_null(values.cast(pa.float32()), float("nan")).to_numpy(),
    "flag": lambda values: values.to_numpy(zero_copy_only=False),
}
_JOIN: dict[str, Callable[[list[Any]], Any]] = {
    "text": lambda parts: pa.concat_arrays([pa.array([], pa.large_string()), *parts]),
    "runs": _joined_runs,
    "id": lambda parts: pa.concat_arrays([pa.array([], pa.large_string()), *parts]),
    "whole": lambda parts: np.concatenate([np.empty(0, np.int32), *parts]),
    "real": lambda parts: np.concatenate([np.empty(0, np.float32), *parts]),
    "flag": lambda parts: np.concatenate([np.empty(0, np.bool_), *parts]),
}
