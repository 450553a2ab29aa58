"""Read the tables of a run or an inspection: bounded, with the columns that were declared, every value in its range."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lmk_data.browse.keys import KeyIndex, large_strings
from lmk_data.errors import UserError
from lmk_data.system.files import open_regular
from lmk_data.system.parquet import TableLimits, read_parquet

LIMITS = TableLimits(max_rows=20_000_000, max_bytes=4 << 30)
Kind = Literal["text", "whole", "real", "flag", "id"]
_SHOWN_CHARACTERS = 120
_TEXT = (pa.types.is_string, pa.types.is_large_string)
_IS = {
    "text": lambda kind: any(is_kind(kind) for is_kind in _TEXT),
    "whole": pa.types.is_integer,
    "real": pa.types.is_floating,
    "flag": pa.types.is_boolean,
    "id": lambda kind: any(is_kind(kind) for is_kind in (*_TEXT, pa.types.is_integer)),
}


@dataclass(frozen=True, slots=True)
class Declared:
    """The columns of a table and their kinds, those that may be null, what the table is, and what makes it again."""

    columns: Mapping[str, Kind]
    nullable: frozenset[str]
    what: str
    again: str


def read_columns(path: Path, declared: Declared) -> pa.Table:
    """Return the declared columns of a Parquet file of a stranger.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: it cannot be read, is no regular file, or is not as declared.
    """
    try:
        open_regular(path).close()
        with pa.OSFile(str(path)) as source:
            table = read_parquet(source, list(declared.columns), LIMITS)
        for name, kind in declared.columns.items():
            if not _IS[kind](table.schema.field(name).type):
                raise ValueError(f"its column {name} is {str(table.schema.field(name).type)[:40]}")
            if name not in declared.nullable and table[name].null_count:
                raise ValueError(f"{name} has empty places")
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError, ValueError, KeyError, MemoryError) as error:
        raise UserError(f"{path}: not {declared.what} ({one_line(error)}); {declared.again}") from None
    return table


def column_of(table: pa.Table, name: str, least: int, most: int) -> NDArray[np.int32]:
    """Return a column of whole numbers as int32 [N], null as -1. Raises ValueError unless they are within bounds."""
    column = table[name]
    if column.null_count < len(column):
        bounds = pc.min_max(column).as_py()
        if not least <= bounds["min"] <= bounds["max"] <= most:
            raise ValueError(f"a {name} is out of range")
    numbers: NDArray[np.int32] = pc.fill_null(column.cast(pa.int32()), -1).to_numpy()
    return numbers


def reals_of(table: pa.Table, name: str, least: float, most: float) -> NDArray[np.float32]:
    """Return a column of real numbers as float32 [N], null as NaN. Raises ValueError unless they are within bounds."""
    numbers: NDArray[np.float32] = pc.fill_null(table[name].cast(pa.float32()), float("nan")).to_numpy()
    if len(numbers) and not (np.isnan(numbers) | ((numbers >= least) & (numbers <= most))).all():
        raise ValueError(f"a {name} is out of range")
    return numbers


def rows_of_keys(keys: KeyIndex, column: pa.ChunkedArray, start: int = 0) -> NDArray[np.int32]:
    """Return the row of each key of a file, int32 [M], -1 for other keys.

    Files usually have all keys in the order of the dataset, from the row `start`: comparing is faster than searching.
    """
    texts = large_strings(column)
    if start + len(texts) <= len(keys.keys) and keys.keys.slice(start, len(texts)).equals(texts):
        return np.arange(start, start + len(texts), dtype=np.int32)
    return keys.rows(texts)


def labels_by_id(ids: pa.ChunkedArray | pa.Array, known: pa.Array) -> NDArray[np.int32]:
    """Return the place in `known` (texts) of each landmark id, int32 [K]; -1 for an id that is not there.

    Ids are compared as text, since a single id that is no number turns all ids of its dataset into text.
    """
    places = pc.index_in(ids.cast(pa.string()), value_set=known.cast(pa.string()))
    labels: NDArray[np.int32] = pc.fill_null(places, -1).to_numpy()
    return labels


def one_line(error: BaseException) -> str:
    """Return what an error says in one short line without control characters; the name of its type if it is silent."""
    said = "".join(c if c.isprintable() else " " for c in str(error))
    line = " ".join(said.split()) or type(error).__name__
    return line if len(line) <= _SHOWN_CHARACTERS else f"{line[:_SHOWN_CHARACTERS]}..."
