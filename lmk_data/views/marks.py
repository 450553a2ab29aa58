"""Marks: a CSV of samples to leave out or to give another class, read with care and changed by several windows at once.

docs/format.md describes the file. `lmk-shard subset --marks` makes a view of it.
"""

import csv
import io
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from threading import Lock

from lmk_data.dataset.format import is_safe_key
from lmk_data.errors import UserError
from lmk_data.mark import Mark
from lmk_data.sources.tables import csv_bytes, delimiter_of, read_named_file
from lmk_data.system.files import atomic_file, check_no_link, file_lock, is_unfinished, lock_holder, make_folder
from lmk_data.system.parquet import MAX_COLUMNS
from lmk_data.system.terminal import notice
from lmk_data.typed_text import normal_text, shown

__all__ = ["Mark", "MarkTable", "MarksFile", "read_mark_files", "read_mark_table", "read_marks"]

COLUMNS = ("key", "action", "landmark_id", "note")
MAX_BYTES = 64 << 20
MAX_MARKS = 2_000_000
_MAX_LINES = 10_000_000  # empty ones and those of notes included
_MAX_JOINED_NOTE = 10_000  # characters; notes of further rows of a key are left out
_SHOWN_KEYS = 5
_LOCK_WAIT_SECONDS = 10.0  # a change takes less than a second, so whoever holds the lock longer is stopped or stuck
Signature = tuple[int, int, int]


@dataclass(frozen=True)
class MarkTable:
    """The marks of a file, the keys that it marks in contradicting ways, and its columns that no mark has."""

    marks: dict[str, Mark]
    conflicts: tuple[str, ...] = ()
    other_columns: tuple[str, ...] = ()


def read_marks(path: str) -> dict[str, Mark]:
    """Return the marks of a CSV file, a path or a URL, by key.

    Raises UserError that names line and fault, and for a key that has two different marks.
    """
    table = read_mark_table(path)
    check_conflicts(path, table.conflicts)
    return table.marks


def read_mark_table(path: str) -> MarkTable:
    """Return what a CSV file of marks holds; keys with contradicting marks are in `conflicts` only.

    It may be separated by semicolons or tabs, as spreadsheets write it, in UTF-8 or UTF-16. Raises UserError that names
    line and fault, StorageError if a URL fails.
    """
    return parse_marks(read_named_file(path, MAX_BYTES, "file of marks", "--marks"), path)


def read_mark_files(paths: Sequence[str], *, ignore_conflicts: bool = False, quiet: bool = True) -> dict[str, Mark]:
    """Return the marks of several files by key.

    Raises UserError as `read_marks` does, also for a key with different marks in two files; with `ignore_conflicts`
    such keys are left out instead, and a note says so unless `quiet`.
    """
    marks: dict[str, Mark] = {}
    conflicts: dict[str, None] = {}
    for path in paths:
        table = read_mark_table(path)
        conflicts |= dict.fromkeys(table.conflicts)
        for key, mark in table.marks.items():
            add_mark(marks, conflicts, key, mark)
    where = f"--marks {' '.join(paths)}"
    if not ignore_conflicts:
        check_conflicts(where, tuple(conflicts))
    elif conflicts and not quiet:
        notice(f"{where}: different marks for {named_keys(list(conflicts))}; these are ignored")
    return {key: mark for key, mark in marks.items() if key not in conflicts}


def add_mark(marks: dict[str, Mark], conflicts: dict[str, None], key: str, mark: Mark) -> None:
    """Add a mark to those that were read; note its key among the conflicts if it has another mark already."""
    earlier = marks.setdefault(key, mark)
    if (earlier.action, earlier.landmark_id) != (mark.action, mark.landmark_id):
        conflicts[key] = None
    elif len(earlier.note) < _MAX_JOINED_NOTE and mark.note not in earlier.note:
        marks[key] = replace(earlier, note="; ".join(filter(None, (earlier.note, mark.note))))


def named_keys(keys: Sequence[str]) -> str:
    """Return how many keys these are, and some of them, for a message."""
    named = ", ".join(key if is_safe_key(key) else shown(key) for key in keys[:_SHOWN_KEYS])
    return f"{len(keys):,} key{'s' * (len(keys) != 1)}, such as {named}"


def check_conflicts(where: str, conflicts: tuple[str, ...]) -> None:
    """Raise UserError if there are keys with contradicting marks."""
    if conflicts:
        raise UserError(f"{where}: different marks for {named_keys(conflicts)}; keep one mark of each")


class MarksFile:
    """A local file of marks that several windows and processes may change at the same time.

    Changes are made under a lock (`.NAME.lock` beside the file) and are on disk when `apply` returns. Whoever is killed
    leaves the file as it was, or with the whole change. Raises UserError for a URL, which has no locks.
    """

    def __init__(self, path: Path) -> None:
        self._path = Path(path)
        if ":/" in str(path):
            raise UserError(f"--marks {path}: marks are made in a file of this machine; name a local path")
        self._guard, self._writing = Lock(), Lock()
        self._read: tuple[Signature, MarkTable] | None = None
        self._is_swept = False

    @property
    def path(self) -> Path:
        """The file, which need not exist yet."""
        return self._path

    def read(self) -> dict[str, Mark]:
        """Return the marks by key, none if there is no file. It is read again only if it has changed.

        Raises UserError for what `read_marks` refuses.
        """
        with self._guard:
            return dict(self._table().marks)

    def apply(
        self, changes: Mapping[str, Mark | None], expected: Mapping[str, Mark | None] | None = None
    ) -> dict[str, Mark | None]:
        """Set the mark of each key, or remove it (None); return what these keys had before.

        With `expected`, a key that has another mark than that keeps it: what is undone may have been marked again.
        No changes at all make a file without marks where there is none.

        Raises UserError for a key of no sample, for a file that `read_marks` refuses or that has other columns, which
        would be lost, for a symbolic link, if the file cannot be written, and if another process holds its lock for
        ten seconds, which the message names.
        """
        for key in changes:
            if not is_safe_key(key):
                raise UserError(f"{self._path}: {shown(key)} is not the key of a sample")
        with self._writing:
            try:
                make_folder(self._path.parent)
                with self._locked():
                    return self._apply(changes, expected)
            except OSError as error:
                raise UserError(f"{self._path}: cannot be written: {error.strerror or error}") from error

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the lock of the file and, once it is free, the guard: until then it can be read."""
        lock = self._path.with_name(f".{self._path.name}.lock")

        def busy() -> str:
            return (
                f"{self._path}: cannot be changed: {lock_holder(lock)} has held {lock} for more than "
                f"{_LOCK_WAIT_SECONDS:g} seconds; let it go on, or end it"
            )

        with file_lock(lock, wait_seconds=_LOCK_WAIT_SECONDS, busy=busy), self._guard:
            yield

    def _apply(
        self, changes: Mapping[str, Mark | None], expected: Mapping[str, Mark | None] | None
    ) -> dict[str, Mark | None]:
        check_no_link(self._path)
        self._sweep()
        table = self._table()
        if table.other_columns:
            named = ", ".join(map(shown, table.other_columns[:_SHOWN_KEYS]))
            raise UserError(f"{self._path}: has other columns ({named}), which would be lost; remove them")
        previous = {key: table.marks.get(key) for key in changes}
        kept = {} if expected is None else {key: now for key, now in previous.items() if now != expected[key]}
        marks = {key: mark for key, mark in {**table.marks, **changes, **kept}.items() if mark is not None}
        if marks != table.marks or not (changes or self._path.exists()):
            self._write(marks)
        return previous

    def _table(self) -> MarkTable:
        try:
            status = self._path.stat()
        except FileNotFoundError:
            return MarkTable({})
        except OSError as error:
            raise UserError(f"{self._path}: cannot be read: {error.strerror or error}") from error
        signature = _signature(status)
        if self._read is None or self._read[0] != signature:
            data = read_named_file(str(self._path), MAX_BYTES, "file of marks", "--marks")
            table = parse_marks(data, str(self._path)) if data.strip() else MarkTable({})
            check_conflicts(str(self._path), table.conflicts)
            self._read = signature, table
        return self._read[1]

    def _write(self, marks: dict[str, Mark]) -> None:
        data = marks_csv(marks)
        if len(marks) > MAX_MARKS or len(data) > MAX_BYTES:
            raise UserError(f"{self._path}: would have more than {MAX_MARKS:,} marks or {MAX_BYTES >> 20} MB")
        with atomic_file(self._path) as file:
            file.write(data)
            with suppress(OSError):  # there is no file yet, or its file system has no modes
                os.fchmod(file.fileno(), stat.S_IMODE(self._path.stat().st_mode))
            file.flush()
            written = _signature(os.fstat(file.fileno()))
        self._read = written, MarkTable(marks)  # so that one's own change need not be read again

    def _sweep(self) -> None:
        """Remove, once, what writers of this file left that were killed. Nobody else writes it now."""
        if not self._is_swept:
            for path in self._path.parent.iterdir():
                if path.name.startswith(f"{self._path.name}.") and is_unfinished(path.name):
                    path.unlink(missing_ok=True)
            self._is_swept = True


def _signature(status: os.stat_result) -> Signature:
    """Return what tells a file from the one before: each change makes a new file, and an editor changes its time."""
    return status.st_ino, status.st_size, status.st_mtime_ns


def marks_csv(marks: Mapping[str, Mark]) -> bytes:
    """Return a file of marks, one line for each key, sorted by key."""
    sink = io.StringIO(newline="")
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerow(COLUMNS)
    for key in sorted(marks):
        mark = marks[key]
        note = mark.note.replace("\r\n", "\n").replace("\r", "\n")
        writer.writerow((key, mark.action, mark.landmark_id, note))
    return sink.getvalue().encode()


def parse_marks(data: bytes, path: str) -> MarkTable:
    """Return what the bytes of a file of marks hold; raises as `read_mark_table` does, naming `path`."""
    if data[:4] == b"PAR1":
        raise UserError(f"{path}: is Parquet; marks are a CSV, and --exclude takes a Parquet file of keys")
    if data[:2] == b"\x1f\x8b":
        raise UserError(f"{path}: is compressed with gzip; unpack it")
    data = csv_bytes(data, path)
    rows = _rows(data.decode(), delimiter_of(data), path)
    place, others = _places(next(rows, (1, []))[1], path)
    marks: dict[str, Mark] = {}
    conflicts: dict[str, None] = {}
    for number, (line, cells) in enumerate(rows):
        if number >= MAX_MARKS:
            raise UserError(f"{path}: more than {MAX_MARKS:,} marks; split the file")
        key, mark = _mark(cells, place, f"{path}: line {line:,}")
        add_mark(marks, conflicts, key, mark)
    for key in conflicts:
        del marks[key]
    return MarkTable(marks, tuple(conflicts), others)


def _rows(text: str, delimiter: str, path: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows that are not empty, without white space around cells, and the line where each begins."""
    reader = csv.reader(_lines(text, delimiter, path), delimiter=delimiter, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            reason = str(error)
            if "end of data" in reason or "field larger" in reason:
                reason = "a quote is opened and never closed, or a cell is too long"
            raise UserError(f"{path}: line {line:,}: {reason}; write a quote within quotes twice") from None
        if cells is None:
            return
        cells = [cell.strip() for cell in cells]
        if any(cells):
            yield line, cells


def _lines(text: str, delimiter: str, path: str) -> Iterator[str]:
    """Yield the lines of a CSV. Raises UserError where there are more of them, or of their cells, than in any."""
    for number, line in enumerate(io.StringIO(text, newline="")):
        if number >= _MAX_LINES or line.count(delimiter) > MAX_COLUMNS:
            raise UserError(f"{path}: line {number + 1:,}: more lines or cells than marks have; is it the right file?")
        yield line


def _places(header: list[str], path: str) -> tuple[dict[str, int], tuple[str, ...]]:
    """Return where the columns of marks are, and the names of all others."""
    names = [_normal(name).lower() for name in header]
    for column in ("key", "action"):
        if column not in names:
            found = ", ".join(map(shown, header[:12])) or "nothing"
            advice = "; a list of keys alone is for --exclude" if column == "action" and "key" in names else ""
            raise UserError(
                f"{path}: has no column {column}; its first line is {found}, not {','.join(COLUMNS)}{advice}"
            )
    for column in COLUMNS:
        if names.count(column) > 1:
            raise UserError(f"{path}: has several columns {column}; keep one")
    others = tuple(name for name in header if name and name.lower() not in COLUMNS)
    return {column: names.index(column) for column in COLUMNS if column in names} | {"": len(names)}, others


def _mark(cells: list[str], place: dict[str, int], where: str) -> tuple[str, Mark]:
    """Return key and mark of a row. Raises UserError if it holds none."""
    if any(cells[place[""] :]):
        raise UserError(f"{where}: more cells than the first line; put a note with commas into quotes")
    key, action, landmark_id, note = (
        cells[place[column]] if place.get(column, len(cells)) < len(cells) else "" for column in COLUMNS
    )
    key = _normal(key)
    if not is_safe_key(key):
        raise UserError(f"{where}: {shown(key)} is not the key of a sample{_advice(key)}")
    try:
        return key, Mark(_normal(action).lower(), _normal(landmark_id), note.replace("\r\n", "\n").replace("\r", "\n"))  # type: ignore[arg-type]
    except UserError as error:
        raise UserError(f"{where} ({key}): {error}") from None


def _normal(text: str) -> str:
    """Return the form in which text that people type is compared; most texts of a file of marks have it already."""
    return text if text.isascii() else _normal_beyond_ascii(text)


@lru_cache(10_000)
def _normal_beyond_ascii(text: str) -> str:
    return normal_text(text)


def _advice(key: str) -> str:
    if not key:
        return "; fill it in or drop the line"
    if "E+" in key.upper():
        return "; a spreadsheet made a number of it: format the column as text there, and paste the keys again"
    return "; keys are in the column key of index/*.parquet, without folders and extensions"
