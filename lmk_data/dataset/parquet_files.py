"""Tables as Parquet files whose bytes depend only on their rows, in memory or a row group at a time."""

import hashlib
import io
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from lmk_data.dataset.format import FileEntry
from lmk_data.system.storage import Folder

if TYPE_CHECKING:
    import pandas as pd

_ROW_GROUP_ROWS = 131_072


def table_from(frame: "pd.DataFrame", schema: pa.Schema | None = None) -> pa.Table:
    """Return a data frame as a table without the metadata of pandas, which names its version."""
    return pa.Table.from_pandas(frame, schema, preserve_index=False).replace_schema_metadata(None)


def parquet_bytes(table: pa.Table, row_group_rows: int = _ROW_GROUP_ROWS) -> bytes:
    """Return a table as a Parquet file whose bytes depend only on its content and on pyarrow's version."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", row_group_size=row_group_rows)
    return bytes(sink.getvalue())


def write_table(folder: Folder, name: str, schema: pa.Schema, parts: Iterable[pa.Table]) -> FileEntry:
    """Write the rows of tables as one Parquet file, atomically and durably; return its hash and size for the manifest.

    The bytes are those of `parquet_bytes` of all rows, of which those of one row group are in memory at a time.
    """
    with folder.atomic(name) as file:
        hashed = _HashedFile(file)
        with pq.ParquetWriter(hashed, schema, compression="zstd") as writer:
            for group in _row_groups(parts, _ROW_GROUP_ROWS):
                writer.write_table(group, row_group_size=_ROW_GROUP_ROWS)
        return {"sha256": hashed.sha256(), "num_bytes": hashed.tell()}


def _row_groups(parts: Iterable[pa.Table], num_rows: int) -> Iterator[pa.Table]:
    """Yield the rows of tables in tables of `num_rows` rows, of which the last may be shorter."""
    waiting: list[pa.Table] = []
    size = 0
    for part in parts:
        waiting.append(part)
        size += part.num_rows
        while size >= num_rows:
            together = pa.concat_tables(waiting)
            yield together.slice(0, num_rows).combine_chunks()
            waiting, size = [together.slice(num_rows)], size - num_rows
    if size:
        yield pa.concat_tables(waiting).combine_chunks()


class _HashedFile(io.RawIOBase):
    """A file that is hashed while it is written from beginning to end."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self._size = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data)
        self._file.write(view)
        self._digest.update(view)
        self._size += view.nbytes
        return view.nbytes

    def tell(self) -> int:
        return self._size

    def sha256(self) -> str:
        return self._digest.hexdigest()
