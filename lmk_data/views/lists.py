"""Lists that people make to choose from a dataset: landmark ids, and keys of samples."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pyarrow as pa

from lmk_data.errors import UserError
from lmk_data.sources.tables import Table, open_table, read_named_file
from lmk_data.typed_text import normal_form

MAX_CLASSES_BYTES = 64 << 20
MAX_KEYS_BYTES = 128 << 20
_PARQUET = b"PAR1"


def read_class_list(path: str) -> tuple[str, ...]:
    """Return landmark ids as strings: the lines of a text file, or the column `landmark_id` of a CSV or Parquet file.

    Raises UserError if the file cannot be read or is none of these.
    """
    data = read_named_file(path, MAX_CLASSES_BYTES, "list of classes", "--classes")
    with _complaining(f"--classes {path}: not a list of classes"):
        return _texts(_table(data, path), data, "landmark_id")


def read_key_lists(paths: Sequence[str], option: str) -> tuple[str, ...]:
    """Return the different keys in some files: lines of text, or the column `key` of a CSV or Parquet file.

    Raises UserError, which names the `option`, if a file cannot be read, is none of these, or is a file of marks.
    """
    keys: dict[str, None] = {}
    for path in paths:
        data = read_named_file(path, MAX_KEYS_BYTES, "list of keys", option)
        complaint = f"{option} {path}: not a list of keys"
        with _complaining(complaint):
            table = _table(data, path)
        if table is not None and {"key", "action"} <= set(table.columns):
            raise UserError(f"{option} {path}: has a column action, so it is a file of marks; give it with --marks")
        with _complaining(complaint):
            keys |= dict.fromkeys(_texts(table, data, "key"))
    return tuple(keys)


@contextmanager
def _complaining(complaint: str) -> Iterator[None]:
    """Put `complaint` before what the block finds wrong with a file."""
    try:
        yield
    except (UnicodeDecodeError, UserError) as error:
        raise UserError(f"{complaint}: {error}") from error


def _texts(table: Table | None, data: bytes, column: str) -> tuple[str, ...]:
    """Return the texts in a column of a table, or else in the lines of a text file, in normal form."""
    if table is not None and (data[:4] == _PARQUET or column in table.columns):
        read = table.rows([column]).columns[column]
    else:
        read = pa.chunked_array([data.decode("utf-8-sig").splitlines()], pa.string())
    return tuple(text for text in normal_form(read).to_pylist() if text)


def _table(data: bytes, path: str) -> Table | None:
    """Return a file as a table; None for lines of text, which are none. Raises UserError for damaged Parquet."""
    try:
        return open_table(data, path)
    except UserError:
        if data[:4] == _PARQUET:
            raise
        return None
