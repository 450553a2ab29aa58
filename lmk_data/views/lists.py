"""Lists that people make to choose from a dataset: landmark ids, and keys of samples."""

from collections.abc import Sequence

import pyarrow as pa

from lmk_data.errors import UserError
from lmk_data.sources.tables import Table, open_table
from lmk_data.system.storage import read_file
from lmk_data.typed_text import normal_form

MAX_CLASSES_BYTES = 64 << 20
MAX_KEYS_BYTES = 128 << 20


def read_class_list(path: str) -> tuple[str, ...]:
    """Return landmark ids as strings: the lines of a text file, or the column `landmark_id` of a CSV or Parquet file.

    Raises UserError if the file cannot be read or is none of these.
    """
    data = _read(path, "--classes", MAX_CLASSES_BYTES)
    return _texts(data, path, "landmark_id", f"--classes {path}: not a list of classes")


def read_key_lists(paths: Sequence[str], option: str) -> tuple[str, ...]:
    """Return the different keys in some files: lines of text, or the column `key` of a CSV or Parquet file.

    Raises UserError, which names the `option`, if a file cannot be read, is none of these, or is a file of marks.
    """
    keys: dict[str, None] = {}
    for path in paths:
        data = _read(path, option, MAX_KEYS_BYTES)
        table = _table(data, path)
        if table is not None and {"key", "action"} <= set(table.columns):
            raise UserError(f"{option} {path}: has a column action, so it is a file of marks; give it with --marks")
        keys |= dict.fromkeys(_texts(data, path, "key", f"{option} {path}: not a list of keys"))
    return tuple(keys)


def _read(path: str, option: str, max_bytes: int) -> bytes:
    try:
        return read_file(path, max_bytes)
    except OSError as error:
        raise UserError(f"{option} {path}: cannot be read: {error.strerror or error}") from error


def _texts(data: bytes, path: str, column: str, complaint: str) -> tuple[str, ...]:
    """Return the texts in a column of a table, or in the lines of a text file, in normal form."""
    try:
        table = open_table(data, path) if data[:4] == b"PAR1" else _table(data, path)
        if table is not None and (data[:4] == b"PAR1" or column in table.columns):
            read = table.rows([column]).columns[column]
        else:
            read = pa.chunked_array([data.decode("utf-8-sig").splitlines()], pa.string())
    except (UnicodeDecodeError, UserError) as error:
        raise UserError(f"{complaint}: {error}") from error
    return tuple(text for text in normal_form(read).to_pylist() if text)


def _table(data: bytes, path: str) -> Table | None:
    """Return a file as a table, or None if it is none and so may be lines of text."""
    try:
        return open_table(data, path)
    except UserError:
        return None
