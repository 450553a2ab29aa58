"""Pictures that end the process that decodes them: noted while they are decoded, tried alone, and then rejected.

A worker notes the picture that it is at, in a file that outlives it. Once a process has died, the noted pictures are
decoded again in a process that does nothing else. Only a picture that ends this one too is rejected, with the reason
`crash`: whoever kills a build, and a computer that runs out of memory or power, puts the blame on no picture.
"""

import json
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, Self

import pyarrow.parquet as pq

from lmk_data.dataset.format import canonical_json, write_file
from lmk_data.errors import DeadWorkerError, StorageError
from lmk_data.options import Recipe
from lmk_data.resize import resize_image
from lmk_data.sources.archives import Place
from lmk_data.sources.stores import Store
from lmk_data.system.engine import how_it_ends
from lmk_data.system.files import open_regular
from lmk_data.system.storage import CRASHES, NOTES_FOLDER, PLAN_TABLE, Folder, LocalFolder
from lmk_data.system.terminal import notice

NOTE_NAME = r"[0-9a-f]{16}"
_KEY_BYTES = 80
_MAX_BYTES = 64 << 20  # of the file that lists crashes
_SHOWN = 3
_Row = dict[Any, Any]  # of the plan


class Note:
    """Says which picture a worker is at. What it said last is left behind if the worker dies or runs out of memory.

    Each attempt at a shard has a note of its own: after a death, a cluster tries the shard again at once.
    """

    def __init__(self, folder: str) -> None:
        os.makedirs(folder, exist_ok=True)
        self._path = os.path.join(folder, secrets.token_hex(8))
        self._descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)

    def at(self, key: str) -> None:
        """Note that the picture of this key is decoded next; costs about a microsecond."""
        os.pwrite(self._descriptor, key.encode().ljust(_KEY_BYTES), 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)
        if not isinstance(error, MemoryError):
            with suppress(FileNotFoundError):
                os.unlink(self._path)


@contextmanager
def notes_folder(out: Folder, *, on_cluster: bool) -> Iterator[str | None]:
    """Yield the folder for the notes of workers; None where this process could not read those of a cluster.

    Notes of an earlier command are still in it. It is removed at the end, which a command that is killed does not
    reach.
    """
    if isinstance(out, LocalFolder):
        folder = out.location(NOTES_FOLDER)
        out.check_writable(Path(folder))
        try:
            yield folder
        finally:
            _clear(folder)
            with suppress(OSError):  # it holds something else, or is not there
                os.rmdir(folder)
    elif on_cluster:
        yield None
    else:
        with TemporaryDirectory(prefix="lmk-notes-") as folder:
            yield folder


@dataclass
class Crashes:
    """The pictures of one build that end the process that decodes them.

    The planned images are in the table of the plan. `known` has what is stated of each rejected one, by key; it is kept
    in the build's folder. `notes` is the folder of the notes, None if there is none.
    """

    out: Folder
    fingerprint: str
    notes: str | None
    stores: list[Store]
    recipe: Recipe
    known: dict[str, str] = field(default_factory=dict)

    def load(self, *, forget: bool) -> None:
        """Read what earlier commands found, or forget it; then try what a command was at that died."""
        if forget:
            self.out.remove(CRASHES)
        else:
            self.known = _read(self.out, self.fingerprint)
        self._try(self._noted())

    def after_death(self, died: DeadWorkerError) -> None:
        """Find the pictures that ended a worker, so that the build can go on without them.

        Raises DeadWorkerError, which names the pictures that the workers were at, if none of these is to blame.
        """
        noted = self._noted()
        if self._try(noted):
            return
        if not noted:
            raise died
        names = [self._location(row) for row in noted[:_SHOWN]]
        more = f" and {len(noted) - _SHOWN} more" * (len(noted) > _SHOWN)
        raise DeadWorkerError(f"{died}; it was at {' or '.join(names)}{more}, which can be decoded alone") from died

    def _noted(self) -> list[_Row]:
        """Return the rows of the plan for the pictures that are noted, but not of those that are never decoded."""
        keys = set() if self.notes is None else {_key(path) for path in _note_paths(self.notes)} - self.known.keys()
        if not keys:
            return []
        rows: list[_Row] = []
        with self.out.open(PLAN_TABLE) as file:
            plan = pq.ParquetFile(file)
            for group in range(plan.num_row_groups):
                planned = plan.read_row_group(group, use_threads=False).to_pylist()
                rows += (row for row in planned if row["key"] in keys and not row["reason"])
        return rows

    def _try(self, rows: list[_Row]) -> bool:
        """Decode pictures again, each alone; return whether one of them is to be rejected."""
        found = False
        if rows and how_it_ends(_decode, [self._trial(row) for row in rows]):
            for row in rows:
                ending = how_it_ends(_decode, [self._trial(row)])
                if ending is not None:
                    found = True
                    self._reject(row, ending)
        if self.notes is not None:
            _clear(self.notes)
        return found

    def _reject(self, row: _Row, ending: str) -> None:
        self.known[str(row["key"])] = f"the process that decodes it ends ({ending}), also when it does nothing else"
        write_file(self.out, CRASHES, canonical_json({"fingerprint": self.fingerprint, "pictures": self.known}))
        notice(f"{self._location(row)}: ends the process that decodes it ({ending}); it is rejected (crash)")

    def _trial(self, row: _Row) -> "_Trial":
        place = Place(*(int(row[name]) for name in ("offset", "num_bytes", "method", "crc32")))
        return _Trial(self.stores[int(row["store"])], str(row["source"]), place, self.recipe)

    def _location(self, row: _Row) -> str:
        return f"{self.stores[int(row['store'])].location}/{row['source']}"


@dataclass(frozen=True, slots=True)
class _Trial:
    """A picture to decode, and how."""

    store: Store
    source: str
    place: Place
    recipe: Recipe


def _decode(trials: list[_Trial]) -> None:
    """Decode pictures as a build does, and forget them."""
    for trial in trials:
        with suppress(StorageError):  # the build meets it too, and reports it
            data = trial.store.read(trial.source, trial.place)
            if isinstance(data, bytes):
                resize_image(data, trial.recipe)


def _read(out: Folder, fingerprint: str) -> dict[str, str]:
    """Return the crashes that were found in this build; none if the file is of another build or damaged."""
    try:
        stated = json.loads(out.read(CRASHES)) if out.size(CRASHES) <= _MAX_BYTES else None
    except (FileNotFoundError, ValueError, RecursionError):
        return {}
    if not isinstance(stated, dict) or stated.get("fingerprint") != fingerprint:
        return {}
    pictures = stated.get("pictures")
    return {str(key): str(detail) for key, detail in pictures.items()} if isinstance(pictures, dict) else {}


def _note_paths(folder: str) -> list[str]:
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    return [os.path.join(folder, name) for name in sorted(names) if re.fullmatch(NOTE_NAME, name)]


def _key(path: str) -> str:
    """Return the key that a note names; empty if it names none."""
    try:
        with open_regular(path) as file:
            return file.read(_KEY_BYTES).decode("ascii", "replace").rstrip()
    except OSError:
        return ""


def _clear(folder: str) -> None:
    """Remove the notes of a folder."""
    for path in _note_paths(folder):
        with suppress(FileNotFoundError, IsADirectoryError):
            os.unlink(path)
