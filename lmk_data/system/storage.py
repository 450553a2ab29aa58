"""Folders on this machine or behind an fsspec URL: the same few operations, and files that are whole or absent."""

import glob
import io
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeVar, cast

import fsspec

from lmk_data.errors import StorageError, UserError
from lmk_data.system.files import atomic_file, remove_durably

BUILD_FOLDER = ".build"
_UNFINISHED = f"{BUILD_FOLDER}/unfinished"
_REMOTE_BLOCK_BYTES = 4 << 20
_LOCAL_PAUSES_SECONDS, _REMOTE_PAUSES_SECONDS = (0.1, 0.4, 1.6), (0.5, 2.0, 8.0)
# What a storage that works says; asking again would not change it.
_ANSWERS = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError)
Result = TypeVar("Result")


class Folder(Protocol):
    """A folder of files, named relative to it with forward slashes; failures are OSErrors, whatever the storage."""

    @property
    def root(self) -> str:
        """The folder's path or URL."""

    def location(self, name: str) -> str:
        """The path or URL of a file, for messages and for other readers."""

    def read(self, name: str) -> bytes:
        """A whole file; FileNotFoundError if it is not there."""

    def read_range(self, name: str, offset: int, num_bytes: int) -> bytes:
        """Up to `num_bytes` of a file from `offset`; fewer at its end."""

    def open(self, name: str) -> BinaryIO:
        """A file for reading, seekable."""

    def exists(self, name: str) -> bool:
        """Whether there is a file or a folder of this name."""

    def is_file(self, name: str) -> bool:
        """Whether there is a file of this name."""

    def size(self, name: str) -> int:
        """A file's size in bytes; FileNotFoundError if it is not there."""

    def sizes(self, folder: str = "") -> dict[str, int]:
        """Name and size in bytes of every file directly in a folder, by one listing; empty if it is not there."""

    def folders(self, folder: str = "") -> list[str]:
        """Names of the folders directly in a folder."""

    def walk(self) -> Iterator[tuple[str, int]]:
        """Names of all regular files below, and their sizes in bytes where a listing says them, else -1; in no order.

        Links are followed, hidden files and folders left out.
        """

    def atomic(self, name: str) -> AbstractContextManager[BinaryIO]:
        """A binary file that becomes `name`, whole and durable, when the block ends, or vanishes when it raises."""

    def remove(self, name: str) -> None:
        """Delete a file, durably, if it is there."""

    def remove_tree(self, name: str) -> None:
        """Delete a folder and what is in it, if it is there."""

    def sweep(self) -> None:
        """Delete what attempts that were cut short left behind; nobody else may be writing here."""


@dataclass(frozen=True, slots=True)
class LocalFolder:
    """A folder of this machine. Unfinished files lie in `.build/unfinished`, under names of their own per attempt."""

    root: str

    def location(self, name: str) -> str:
        return f"{self.root}/{name}" if name else self.root

    def read(self, name: str) -> bytes:
        with open(self.location(name), "rb", buffering=0) as file:
            return file.readall()

    def read_range(self, name: str, offset: int, num_bytes: int) -> bytes:
        descriptor = os.open(self.location(name), os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.pread(descriptor, num_bytes, offset)
        finally:
            os.close(descriptor)

    def open(self, name: str) -> BinaryIO:
        return open(self.location(name), "rb")

    def exists(self, name: str) -> bool:
        return os.path.exists(self.location(name))

    def is_file(self, name: str) -> bool:
        return os.path.isfile(self.location(name))

    def size(self, name: str) -> int:
        return os.stat(self.location(name)).st_size

    def sizes(self, folder: str = "") -> dict[str, int]:
        try:
            with os.scandir(self.location(folder)) as entries:
                return {_join(folder, entry.name): entry.stat().st_size for entry in entries if entry.is_file()}
        except FileNotFoundError:
            return {}

    def folders(self, folder: str = "") -> list[str]:
        try:
            with os.scandir(self.location(folder)) as entries:
                return sorted(_join(folder, entry.name) for entry in entries if entry.is_dir())
        except FileNotFoundError:
            return []

    def walk(self) -> Iterator[tuple[str, int]]:
        seen = {os.path.realpath(self.root)}  # links may form a circle: each real folder is visited once
        pending = [""]
        while pending:
            prefix = pending.pop()
            with os.scandir(f"{self.root}/{prefix}") as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir():
                        real = os.path.realpath(entry.path)
                        if real not in seen:
                            seen.add(real)
                            pending.append(f"{prefix}{entry.name}/")
                    elif entry.is_file():
                        yield prefix + entry.name, -1

    @contextmanager
    def atomic(self, name: str) -> Iterator[BinaryIO]:
        path, unfinished = Path(self.location(name)), Path(self.location(_UNFINISHED))
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.mkdir(parents=True, exist_ok=True)
        with atomic_file(path, unfinished) as file:
            yield file

    def remove(self, name: str) -> None:
        remove_durably(Path(self.location(name)))

    def remove_tree(self, name: str) -> None:
        if os.path.isdir(self.location(name)):
            shutil.rmtree(self.location(name))

    def sweep(self) -> None:
        self.remove_tree(_UNFINISHED)
        build = Path(self.location(BUILD_FOLDER))
        if build.is_dir() and not any(build.iterdir()):
            build.rmdir()


@dataclass(frozen=True, slots=True)
class RemoteFolder:
    """A folder behind an fsspec URL. Files are written on this machine first and uploaded whole."""

    root: str

    def location(self, name: str) -> str:
        return f"{self.root}/{name}" if name else self.root

    def read(self, name: str) -> bytes:
        fs, path = self._file(name)
        return _asked(lambda: bytes(fs.cat_file(path)), self.location(name))

    def read_range(self, name: str, offset: int, num_bytes: int) -> bytes:
        if not num_bytes:
            return b""  # HTTP has no range of nothing
        fs, path = self._file(name)
        data = _asked(lambda: fs.cat_file(path, start=offset, end=offset + num_bytes), self.location(name))
        if len(data) > num_bytes:  # a web server that does not know ranges answers with the whole file
            data = data[offset : offset + num_bytes]
        return bytes(data)

    def open(self, name: str) -> BinaryIO:
        fs, path = self._file(name)
        reading = {"block_size": _REMOTE_BLOCK_BYTES, "cache_type": "readahead"}
        file = _asked(lambda: fs.open(path, "rb", **reading), self.location(name))
        return cast(BinaryIO, io.BufferedReader(_RemoteFile(file, self.location(name))))

    def exists(self, name: str) -> bool:
        fs, path = self._file(name)
        return _asked(lambda: bool(fs.exists(path)), self.location(name))

    def is_file(self, name: str) -> bool:
        fs, path = self._file(name)
        return _asked(lambda: bool(fs.isfile(path)), self.location(name))

    def size(self, name: str) -> int:
        fs, path = self._file(name)
        return _asked(lambda: int(fs.size(path)), self.location(name))

    def sizes(self, folder: str = "") -> dict[str, int]:
        files = {_join(folder, name): entry for name, entry in self._list(folder) if entry["type"] == "file" and name}
        return {  # a web server's listing names files without their sizes
            name: int(entry["size"]) if entry["size"] is not None else self.size(name) for name, entry in files.items()
        }

    def folders(self, folder: str = "") -> list[str]:
        return sorted(_join(folder, name) for name, entry in self._list(folder) if entry["type"] == "directory")

    def walk(self) -> Iterator[tuple[str, int]]:
        fs, path = self._file("")
        fs.invalidate_cache()
        found = _asked(lambda: fs.find(path, detail=True), self.root)
        start = len(path.lstrip("/")) + 1
        for name, entry in found.items():
            relative = str(name).lstrip("/")[start:]
            if relative and not any(part.startswith(".") for part in relative.split("/")):
                yield relative, -1 if entry.get("size") is None else int(entry["size"])

    @contextmanager
    def atomic(self, name: str) -> Iterator[BinaryIO]:
        fs, path = self._file(name)
        _sweep_uploads()
        with tempfile.TemporaryDirectory(prefix=f"{_uploads_here()}{os.getpid()}_") as folder:
            local = os.path.join(folder, "file")
            with _named(local), open(local, "wb") as file:
                yield file
            upload = partial(_asked, lambda: fs.put_file(local, path), self.location(name))
            retrying(upload, self.location(name))

    def remove(self, name: str) -> None:
        fs, path = self._file(name)
        _asked(lambda: fs.exists(path) and fs.rm_file(path), self.location(name))

    def remove_tree(self, name: str) -> None:
        fs, path = self._file(name)
        _asked(lambda: fs.exists(path) and fs.rm(path, recursive=True), self.location(name))

    def sweep(self) -> None:
        """Nothing: an upload that was cut short never shows."""

    def _list(self, folder: str) -> list[tuple[str, dict[str, Any]]]:
        """The entries directly in a folder by name, from the storage and not from a cached listing."""
        fs, path = self._file(folder)
        fs.invalidate_cache()
        try:
            entries = _asked(lambda: fs.ls(path, detail=True), self.location(folder))
        except FileNotFoundError:
            return []
        return [(str(entry["name"]).rstrip("/").rsplit("/", 1)[-1], entry) for entry in entries]

    def _file(self, name: str) -> tuple[Any, str]:
        fs, root = _file_system(self.root)
        return fs, f"{root}/{name}" if name else root


class _RemoteFile(io.RawIOBase):
    """A file behind a URL, each of whose reads is a request that is repeated and fails with OSError like any other."""

    def __init__(self, file: BinaryIO, location: str) -> None:
        self._file, self._location = file, location

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        data = _asked(lambda: self._file.read(len(view)), self._location)
        view[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def open_folder(path: str | os.PathLike[str]) -> Folder:
    """A local folder (made absolute) or one behind an fsspec URL such as `s3://bucket/folder`; nothing is touched yet.

    Raises UserError for a URL whose kind of storage is unknown or not installed.
    """
    text = os.fspath(path)
    if not is_url(text):
        return LocalFolder(os.path.abspath(os.path.expanduser(text)))
    url = text.rstrip("/")
    _file_system(url)
    return RemoteFolder(url)


def path_within(inner: Folder, outer: Folder) -> str | None:
    """The path of a folder in another one, links followed: empty if they are the same, None if it is not in it."""
    if isinstance(inner, LocalFolder) and isinstance(outer, LocalFolder):
        below, above = os.path.realpath(inner.root), os.path.realpath(outer.root)
    else:
        below, above = inner.root, outer.root
    if below == above:
        return ""
    prefix = above.rstrip("/") + "/"
    return below.removeprefix(prefix) if below.startswith(prefix) else None


def read_file(path: str) -> bytes:
    """A whole file by its path or URL."""
    folder, name = split_location(path)
    return folder.read(name)


def split_location(path: str) -> tuple[Folder, str]:
    """The folder that a path or URL of a file lies in, and the file's name in it."""
    parent, name = os.path.split(path.rstrip("/"))
    return open_folder(parent or "."), name


def retrying(action: Callable[[], Result], location: str) -> Result:
    """Call `action`, three times more while a local disk fails with OSError, then give up with StorageError.

    What is behind a URL was asked again already, by its folder.
    """
    try:
        return action() if is_url(location) else _repeated(action, _LOCAL_PAUSES_SECONDS)
    except OSError as error:
        raise StorageError(storage_failure(error, location)) from error


def storage_failure(error: OSError, location: str) -> str:
    """One line on a failure of the storage: where, what, and that running again goes on."""
    return f"{error.filename or location}: {error.strerror or error}; is the storage there? run it again to go on"


def is_url(path: str) -> bool:
    """Whether a path is a URL; `file://` is one too."""
    return "://" in path


def expand_glob(pattern: str) -> list[str]:
    """Paths or URLs that fit a pattern, sorted."""
    if not is_url(pattern):
        return sorted(glob.glob(os.path.expanduser(pattern)))
    fs, path = _file_system(pattern)
    with _as_os_errors(pattern):
        return sorted(str(fs.unstrip_protocol(found)) for found in fs.glob(path))


@lru_cache(maxsize=64)
def _file_system(url: str) -> tuple[Any, str]:
    """The file system of a URL and the path in it; one connection a process."""
    try:
        fs, path = fsspec.core.url_to_fs(url)
    except (ValueError, ImportError) as error:
        raise UserError(f"{url}: {' '.join(str(error).split())}") from error
    return fs, path.rstrip("/")


def _asked(action: Callable[[], Result], location: str) -> Result:
    """What an fsspec backend answers, asked three times more while it fails without an answer; OSError then."""

    def ask() -> Result:
        with _as_os_errors(location):
            return action()

    return _repeated(ask, _REMOTE_PAUSES_SECONDS, final=_ANSWERS)


def _repeated(action: Callable[[], Result], pauses: Sequence[float], final: tuple[type[OSError], ...] = ()) -> Result:
    """Call `action`, again after each pause while it raises an OSError that is none of the `final` ones."""
    for pause in pauses:
        try:
            return action()
        except final:
            raise
        except OSError:
            time.sleep(pause)
    return action()


def _uploads_here() -> str:
    """How the temporary folders of this machine's uploads begin; containers may share a folder, but not a name."""
    return f"lmk-upload-{platform.node()}_"


@cache
def _sweep_uploads() -> None:
    """Delete, once a process, what uploads of processes that were killed left in the temporary folder."""
    start = os.path.join(tempfile.gettempdir(), _uploads_here())
    for path in glob.glob(f"{glob.escape(start)}*"):
        pid = path.removeprefix(start).split("_")[0]
        if pid.isdigit() and not _is_alive(int(pid)):
            shutil.rmtree(path, ignore_errors=True)  # another user's stays


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # another user's process
    return True


@contextmanager
def _named(path: str) -> Iterator[None]:
    """Give an OSError of writing to a file its name: a full disk does not say which."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or path
        raise


@contextmanager
def _as_os_errors(location: str) -> Iterator[None]:
    """Every fsspec backend has exceptions of its own; to the rest of this project storage fails with OSError."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.strerror = error.strerror or " ".join(str(error).split())[:300] or type(error).__name__
            error.filename = location
        raise
    except Exception as error:
        kind = PermissionError if "Credential" in type(error).__name__ else OSError
        raise kind(None, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}", location) from error


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name
