"""The different rows of a table, in memory for these alone: a small file can repeat a row a hundred million times."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lmk_data.system.parquet import text_bytes

MAX_ROWS = 100_000_000
MAX_DIFFERENT_ROWS = 50_000_000
MAX_TEXT_BYTES = 1 << 30  # of the columns that are read, in different rows
_SEARCHED_AGAIN = 2_000_000  # rows; fewer are not searched for repetitions a second time
_GROWTH = 4  # of the rows that are kept, until the next search
Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class Rows:
    """Different rows of a table of strings, each where it occurs first.

    `numbers` are their numbers among the data rows, from 1; `counts` says how often each occurs.
    """

    columns: pa.Table
    numbers: Numbers
    counts: Numbers

    @property
    def num_repeated(self) -> int:
        """How many rows repeat an earlier one."""
        return int(self.counts.sum()) - len(self.counts)


class DifferentRows:
    """The different rows among those that were added so far. Nearly all memory is that of their text."""

    def __init__(self, names: list[str]) -> None:
        none = np.empty(0, dtype=np.int64)
        self._schema = pa.schema([(name, pa.string()) for name in names])
        self._parts = [Rows(self._schema.empty_table(), none, none)]
        self._num_rows = self._num_kept = self._num_bytes = 0
        self._search_at = _SEARCHED_AGAIN

    def add(self, part: pa.Table, texts: Callable[[pa.Table], pa.Table]) -> None:
        """Add rows, which `texts` turns into strings: only different ones, once these are known to fit into memory.

        Raises ValueError if there are more than any table has.
        """
        numbers = np.arange(part.num_rows) + self._num_rows + 1
        self._num_rows += part.num_rows
        if self._num_rows > MAX_ROWS:
            raise ValueError(f"more than {MAX_ROWS:,} rows")
        once = each_once(Rows(part, numbers, np.ones(part.num_rows, dtype=np.int64)))
        num_bytes = _num_bytes(once.columns)
        if self._num_bytes + num_bytes > MAX_TEXT_BYTES:
            self._search()
        self._num_kept += len(once.numbers)
        self._num_bytes += num_bytes
        if self._num_bytes > MAX_TEXT_BYTES:
            raise ValueError(f"more than {MAX_TEXT_BYTES >> 20:,} MB of text in the columns that are read")
        self._parts.append(replace(once, columns=texts(once.columns).cast(self._schema)))
        if self._num_kept > self._search_at:
            self._search()

    def rows(self) -> Rows:
        """Return the rows. Raises ValueError if there are more than any table has."""
        self._search()
        return self._parts[0]

    def _search(self) -> None:
        """Leave out rows that repeat one of another part; the next search is when there are several times as many."""
        columns = pa.concat_tables([part.columns for part in self._parts])
        numbers = np.concatenate([part.numbers for part in self._parts])
        once = each_once(Rows(columns, numbers, np.concatenate([part.counts for part in self._parts])))
        self._num_kept, self._num_bytes = len(once.numbers), _num_bytes(once.columns)
        if self._num_kept > MAX_DIFFERENT_ROWS:
            raise ValueError(f"more than {MAX_DIFFERENT_ROWS:,} different rows")
        self._parts, self._search_at = [once], max(_SEARCHED_AGAIN, _GROWTH * self._num_kept)
        del columns, numbers
        pa.default_memory_pool().release_unused()  # a search takes twice the memory of what it keeps


def each_once(rows: Rows) -> Rows:
    """Return the first row of each kind, in order, with the sum of the counts."""
    codes = np.zeros(rows.columns.num_rows, dtype=np.int64)
    for column in rows.columns.columns:
        encoded = column.combine_chunks().dictionary_encode()
        if len(encoded.dictionary) == len(codes) and not encoded.null_count:
            return rows
        codes *= len(encoded.dictionary) + 1  # two columns of 10^8 values fit into 63 bits
        codes += pc.fill_null(encoded.indices.cast(pa.int64()), len(encoded.dictionary)).to_numpy()
    _, first, kind = np.unique(codes, return_index=True, return_inverse=True)
    order = np.argsort(first)
    counts = np.bincount(kind, rows.counts)[order].astype(np.int64)
    return Rows(rows.columns.take(first[order]), rows.numbers[first[order]], counts)


def _num_bytes(table: pa.Table) -> int:
    """Return the bytes of the text of a table, written out."""
    total = 0
    for column in table.columns:
        total += text_bytes(column)
        if pa.types.is_string(column.type):
            total += pc.sum(pc.binary_length(column)).as_py() or 0
    return total
