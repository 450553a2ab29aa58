"""Read tables that people made, CSV or Parquet, as columns of strings in normal form."""

import codecs
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from lmk_data.errors import TooLargeError, UserError, storage_failure
from lmk_data.sources.rows import MAX_ROWS, DifferentRows, Numbers, Rows
from lmk_data.system.arrow import arrow_buffer, arrow_reader, buffer_reader
from lmk_data.system.parquet import MAX_COLUMNS, TableLimits, open_parquet, stated_columns
from lmk_data.system.storage import is_url, read_file
from lmk_data.typed_text import normal_text

_DELIMITERS = ",;\t|"
MAX_BYTES = 2 << 30  # of a table, also once it is unpacked
MAX_LINE_BYTES = 16 << 20  # of a CSV
_ROWS_AT_ONCE = 1 << 20
_UNPACKED_AT_ONCE = 16 << 20
_DECODED_AT_ONCE = 16 << 20
_OTHER_FILES = {
    b"PK\x03\x04": "a zip (or a workbook of Excel); unpack it, or save it as CSV",
    b"\xd0\xcf\x11\xe0": "a workbook of Excel; save it as CSV",
    b"BZh": "compressed with bzip2; unpack it",
    b"\xfd7zXZ": "compressed with xz; unpack it",
    b"\x28\xb5\x2f\xfd": "compressed with zstd; unpack it",
    b"ARROW1": "an Arrow file; save it as Parquet or CSV",
    b"SQLite format 3": "an SQLite database; save the table as CSV",
    b"{": "JSON; save it as CSV",
    b"[": "JSON; save it as CSV",
}


@dataclass
class Table:
    """A table that was opened: the names of its columns in normal form, and its content, which is read once."""

    path: str
    columns: list[str]
    _names: list[str]
    _data: pa.Buffer | None
    _delimiter: str | None

    def rows(self, columns: Sequence[str]) -> Rows:
        """Return the different rows of some columns as strings, exactly as they were typed, and let go of the content.

        Raises UserError if they cannot be read, or are more than any table has.
        """
        for column in columns:
            if column not in self.columns:
                raise UserError(f"{self.path}: no column {column}; found {listed(self.columns)}")
            if self.columns.count(column) > 1:
                raise UserError(f"{self.path}: has several columns {column}; rename all but one")
        names = [self._names[self.columns.index(column)] for column in columns]
        rows = DifferentRows(list(columns))
        try:
            for part in self._read(names):
                rows.add(pa.Table.from_batches([part]).select(names).rename_columns(list(columns)), self._texts)
            return rows.rows()
        except (pa.ArrowException, OSError, ValueError) as error:
            raise _not_readable(self.path, error) from error

    def _read(self, names: list[str]) -> Iterator[pa.RecordBatch]:
        data, self._data = self._data, None
        assert data is not None, "a table is read once"
        return self._read_csv(data, names, self._delimiter) if self._delimiter else self._read_parquet(data, names)

    @staticmethod
    def _read_csv(data: pa.Buffer, names: list[str], delimiter: str) -> Iterator[pa.RecordBatch]:
        kinds = dict.fromkeys(names, pa.string())
        convert = pa.csv.ConvertOptions(column_types=kinds, include_columns=names, strings_can_be_null=False)
        with _csv_reader(data, delimiter, convert) as reader:
            yield from reader

    def _read_parquet(self, data: pa.Buffer, names: list[str]) -> Iterator[pa.RecordBatch]:
        source = buffer_reader(data)
        schema = pq.read_schema(source)
        for name in names:
            if pa.types.is_nested(kind := schema.field(name).type):
                raise UserError(
                    f"{self.path}: the column {name} has the type {str(kind)[:80]}; store it as text or as integers"
                )
        file = open_parquet(source, names, TableLimits(MAX_ROWS, MAX_BYTES))
        yield from file.iter_batches(_ROWS_AT_ONCE, columns=names)

    def _texts(self, part: pa.Table) -> pa.Table:
        names = part.column_names
        return pa.table([_text_of(part[name], name, self.path) for name in names], names=names)


def open_table(data: bytes, path: str) -> Table:
    """Open a CSV (gzipped or not, UTF-8 or UTF-16, separated by commas, semicolons, tabs or bars) or a Parquet file.

    Raises UserError for a file of another kind, and for a CSV in which a quote is never closed.
    """
    try:
        if data[:4] == b"PAR1":
            buffer = arrow_buffer(data)
            names = stated_columns(buffer_reader(buffer))
            return Table(path, [normal_text(name) for name in names], names, buffer, None)
        data = csv_bytes(data, path)
        delimiter = delimiter_of(data)
        _check_quotes(data, delimiter, path)
        if data[:MAX_LINE_BYTES].partition(b"\n")[0].count(delimiter.encode()) >= MAX_COLUMNS:
            raise UserError(f"{path}: more than {MAX_COLUMNS:,} columns; keep those of the ids and the labels")
        buffer = arrow_buffer(data)
        with _csv_reader(buffer[: 2 * MAX_LINE_BYTES], delimiter) as reader:
            names = reader.schema.names
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _not_readable(path, error) from error
    return Table(path, [normal_text(name) for name in names], names, buffer, delimiter)


def _csv_reader(
    data: pa.Buffer, delimiter: str, convert: pa.csv.ConvertOptions | None = None
) -> pa.csv.CSVStreamingReader:
    """Return a reader of a CSV in parts, each of whole lines: a line is no longer than a part."""
    return pa.csv.open_csv(
        buffer_reader(data),
        read_options=pa.csv.ReadOptions(block_size=MAX_LINE_BYTES),
        parse_options=pa.csv.ParseOptions(newlines_in_values=True, delimiter=delimiter),
        convert_options=convert,
    )


def _not_readable(path: str, error: Exception) -> UserError:
    reason = str(error).splitlines()[0]
    if "straddling" in reason:  # a line that does not end within two parts
        reason = f"a line of more than {MAX_LINE_BYTES >> 20} MB; is a quote opened there and never closed?"
    return UserError(f"{path}: not a readable table: {reason}")


def read_named_file(path: str, max_bytes: int, what: str, option: str) -> bytes:
    """Return the content of a file that somebody named, by its path or URL.

    `what` and `option` are what messages call the file and the option that named it. Raises UserError if there is no
    such file on this machine, or if it is larger than `max_bytes`, and StorageError if a URL fails.
    """
    try:
        return read_file(path, max_bytes)
    except TooLargeError:
        raise UserError(f"{path}: larger than {max_bytes >> 20:,} MB, the most for a {what}; split it") from None
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path}: no such {what}; name another with {option}") from None
    except OSError as error:
        if is_url(path):
            raise storage_failure(error, path) from error
        raise UserError(f"{option} {path}: cannot be read: {error.strerror or error}") from error


def listed(columns: list[str]) -> str:
    """Return the first twelve names of columns, for a message."""
    shown = ", ".join(columns[:12]) or "none"
    return shown if len(columns) <= 12 else f"{shown} and {len(columns) - 12} more"


def csv_bytes(data: bytes, path: str) -> bytes:
    """Return a CSV as UTF-8 without a byte order mark."""
    if data[:2] == b"\x1f\x8b":
        data = _unpacked(data, path)
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        try:
            data = data.decode("utf-16").encode()
        except UnicodeDecodeError:
            raise UserError(f"{path}: not a whole text in the encoding UTF-16; save it as UTF-8") from None
    data = data.removeprefix(b"\xef\xbb\xbf")
    for beginning, what in _OTHER_FILES.items():
        if data.startswith(beginning):
            raise UserError(f"{path}: is {what}")
    if b"\0" in data[:4096]:
        raise UserError(f"{path}: neither text nor Parquet; save it as CSV in the encoding UTF-8")
    if (wrong := _not_utf8(data)) is not None:
        line = data.count(b"\n", 0, wrong) + 1
        raise UserError(f"{path}: line {line:,} is not in the encoding UTF-8; save it as UTF-8")
    return data


def _not_utf8(data: bytes) -> int | None:
    """Return the position of the first byte that is not UTF-8, or None. Decodes a part at a time, to save memory."""
    decoder, view = codecs.getincrementaldecoder("utf-8")(), memoryview(data)
    for start in range(0, len(data), _DECODED_AT_ONCE):
        begun = len(decoder.getstate()[0])  # bytes of a character that the last part left open
        part = view[start : start + _DECODED_AT_ONCE]
        try:
            decoder.decode(part, final=start + len(part) == len(data))
        except UnicodeDecodeError as error:
            return start - begun + error.start
    return None


def _unpacked(data: bytes, path: str) -> bytes:
    """Return the content of a gzip, a thousand times as large at most. Raises UserError if it is over the limit."""
    unpacked = bytearray()
    with pa.input_stream(arrow_reader(data), compression="gzip") as stream:
        while part := stream.read(_UNPACKED_AT_ONCE):
            unpacked += part
            if len(unpacked) > MAX_BYTES:
                raise UserError(f"{path}: unpacks to more than {MAX_BYTES >> 20:,} MB; split it")
    return bytes(unpacked)


def delimiter_of(data: bytes) -> str:
    """Return what separates the columns: the comma, unless the first line has none outside quotes but another one."""
    header = re.sub(r'"[^"]*"', "", data[:65_536].decode(errors="replace").split("\n", 1)[0])
    return next((delimiter for delimiter in _DELIMITERS if delimiter in header), ",")


def _check_quotes(data: bytes, delimiter: str, path: str) -> None:
    """Raise UserError for a quoted value that never ends: every row after it would be a part of this value."""
    if b'"' not in data:
        return
    # Possessive: what was matched is not remembered, which took 60 bytes for each quote.
    quoted = re.compile(rb'(?<![^\r\n%s])"(?:[^"]++|"")*+("|\Z)' % re.escape(delimiter).encode())
    for value in quoted.finditer(data):
        if not value[1]:
            line = data.count(b"\n", 0, value.start()) + 1
            raise UserError(f"{path}: line {line:,}: a quote is opened and never closed; close it or remove it")


def _text_of(column: pa.ChunkedArray, name: str, path: str) -> pa.ChunkedArray:
    """Return a column of a Parquet file as strings. Raises UserError for a type that is neither text nor a number."""
    kind = column.type
    if pa.types.is_dictionary(kind):  # pandas writes categoricals like this
        return _text_of(pc.cast(column, kind.value_type), name, path)
    if pa.types.is_boolean(kind):  # as pandas writes them into a CSV
        return pc.if_else(column, "True", "False")
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        if pa.types.is_floating(kind):
            column = pc.if_else(pc.is_nan(column), pa.scalar(None, kind), column)
        try:
            return pc.cast(pc.cast(column, pa.int64()), pa.string())
        except pa.ArrowInvalid:
            raise UserError(
                f"{path}: the column {name} has the type {kind}, and not all its values are whole; store it as text"
            ) from None
    return pc.cast(column, pa.string())


def check_cells(path: str, name: str, column: pa.ChunkedArray, numbers: Numbers, *, may_be_empty: bool = False) -> None:
    """Raise UserError for a cell that is empty or that spans lines, as a quote that is not closed makes it.

    Args:
        path: of the table, for the message.
        name: of the column, for the message.
        column: the text of the cells.
        numbers: the numbers of the rows among the data rows, for the message.
        may_be_empty: whether only null counts as empty.
    """
    missing = pc.is_null(column) if may_be_empty else pc.fill_null(pc.equal(column, ""), True)
    for row in numbers[missing.to_numpy()][:1]:
        raise UserError(f"{path}: data row {row} has no {name}; fill it in or drop the row")
    broken = pc.fill_null(pc.match_substring_regex(column, r"[\r\n]"), False)
    for row in numbers[broken.to_numpy()][:1]:
        raise UserError(f"{path}: data row {row}: its {name} spans lines; close the quote that is open there")
