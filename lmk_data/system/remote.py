"""Folders behind fsspec URLs: every request is repeated while it fails, and a file appears whole or not at all."""

import glob
import io
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem

from lmk_data.errors import UserError, storage_failure
from lmk_data.leftovers import LeftOut, left_out_of
from lmk_data.system.files import check_no_link, open_regular
from lmk_data.system.retries import repeated
from lmk_data.system.terminal import without_secrets

_BLOCK_BYTES = 4 << 20
_PAUSES_SECONDS = (0.5, 2.0, 8.0)
# Answers of a storage that works. Repeating the request would not change them.
_ANSWERS = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError)
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, repr=False)
class RemoteFolder:
    """A `Folder` behind an fsspec URL. Files are written on this machine first and uploaded whole.

    `url` may hold a password or a token. `root`, `location` and `repr` do not, because messages, files and the logs of
    Dask's workers show them.
    """

    url: str

    def __repr__(self) -> str:
        return f"RemoteFolder({self.root!r})"

    @property
    def root(self) -> str:
        return without_secrets(self.url)

    def location(self, name: str) -> str:
        return without_secrets(f"{self.url}/{name}" if name else self.url)

    def read(self, name: str) -> bytes:
        fs, path = self._readable(name)
        return _request(lambda: bytes(fs.cat_file(path)), self.location(name))

    def read_range(self, name: str, offset: int, num_bytes: int) -> bytes:
        if not num_bytes:
            return b""  # HTTP has no empty range
        fs, path = self._readable(name)
        data = _request(lambda: fs.cat_file(path, start=offset, end=offset + num_bytes), self.location(name))
        if len(data) > num_bytes:  # a web server that does not support ranges sends the whole file
            data = data[offset : offset + num_bytes]
        return bytes(data)

    def open(self, name: str) -> BinaryIO:
        fs, path = self._readable(name)
        options = {"block_size": _BLOCK_BYTES, "cache_type": "readahead"}
        file = _request(lambda: fs.open(path, "rb", **options), self.location(name))
        return cast(BinaryIO, io.BufferedReader(_RemoteFile(file, self.location(name))))

    def exists(self, name: str) -> bool:
        fs, path = self._file(name)
        return _request(lambda: bool(fs.exists(path)), self.location(name))

    def is_file(self, name: str) -> bool:
        fs, path = self._file(name)
        return _request(lambda: bool(fs.isfile(path)), self.location(name))

    def size(self, name: str) -> int:
        fs, path = self._file(name)
        return _request(lambda: int(fs.size(path)), self.location(name))

    def sizes(self, folder: str = "") -> dict[str, int]:
        entries = self._list(folder)
        files = {join_names(folder, name): entry for name, entry in entries if entry["type"] == "file" and name}
        return {  # the listing of a web server has no sizes
            name: int(entry["size"]) if entry["size"] is not None else self.size(name) for name, entry in files.items()
        }

    def folders(self, folder: str = "") -> list[str]:
        return sorted(join_names(folder, name) for name, entry in self._list(folder) if entry["type"] == "directory")

    def walk(self, left_out: LeftOut | None = None) -> Iterator[tuple[str, int]]:
        fs, path = self._file("")
        fs.invalidate_cache()
        entries = _request(lambda: fs.find(path, detail=True), self.root)
        start = len(path.lstrip("/")) + 1
        reasons: dict[str, str] = {}
        for name, entry in entries.items():
            relative = str(name).lstrip("/")[start:]
            if reason := left_out_of(relative):
                reasons[reason[0]] = reason[1]
            elif relative:
                yield relative, -1 if entry.get("size") is None else int(entry["size"])
        if left_out is not None:
            left_out += reasons.items()

    @contextmanager
    def atomic(self, name: str) -> Iterator[BinaryIO]:
        fs, path = self._writable(name)
        _sweep_uploads()
        with tempfile.TemporaryDirectory(prefix=f"{_upload_prefix()}{os.getpid()}_") as folder:
            local = os.path.join(folder, "file")
            with _with_filename(local), open(local, "wb") as file:
                yield file
            try:
                _request(lambda: fs.put_file(local, path), self.location(name))
            except OSError as error:
                raise storage_failure(error, self.location(name)) from error

    def remove(self, name: str) -> None:
        fs, path = self._writable(name)
        _request(lambda: fs.exists(path) and fs.rm_file(path), self.location(name))

    def remove_tree(self, name: str) -> None:
        fs, path = self._writable(name)
        _request(lambda: fs.exists(path) and fs.rm(path, recursive=True), self.location(name))

    def sweep(self) -> None:
        """Do nothing: an interrupted upload leaves no file."""

    def _list(self, folder: str) -> list[tuple[str, dict[str, Any]]]:
        """Return the entries directly in a folder by name, from the storage and not from a cached listing."""
        fs, path = self._file(folder)
        fs.invalidate_cache()
        try:
            entries = _request(lambda: fs.ls(path, detail=True), self.location(folder))
        except FileNotFoundError:
            return []
        return [(str(entry["name"]).rstrip("/").rsplit("/", 1)[-1], entry) for entry in entries]

    def _readable(self, name: str) -> tuple[Any, str]:
        """Return what `_file` does; raise OSError for a device or a FIFO that a `file://` URL names."""
        fs, path = self._file(name)
        if isinstance(fs, LocalFileSystem):
            open_regular(path).close()
        return fs, path

    def _writable(self, name: str) -> tuple[Any, str]:
        """Return what `_file` does; raise UserError if a `file://` URL leads through a link inside this folder."""
        fs, path = self._file(name)
        if isinstance(fs, LocalFileSystem):
            check_no_link(Path(path), root=Path(self._file("")[1]))
        return fs, path

    def _file(self, name: str) -> tuple[Any, str]:
        fs, root = file_system(self.url)
        return fs, f"{root}/{name}" if name else root


class _RemoteFile(io.RawIOBase):
    """An open file behind a URL. Each read is a request: it is repeated while it fails, and then raises OSError."""

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
        data = _request(lambda: self._file.read(len(view)), self._location)
        view[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


@lru_cache(maxsize=64)
def file_system(url: str) -> tuple[Any, str]:
    """Return the fsspec file system of a URL and the path in it; each process has one connection.

    Raises UserError for a URL that fsspec cannot open: malformed, or of an unknown or missing kind of storage.
    """
    try:
        fs, path = fsspec.core.url_to_fs(url)
    except Exception as error:  # every backend raises its own kinds
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(without_secrets(f"{url}: {reason}")) from error
    return fs, path.rstrip("/")


def path_on_this_machine(url: str) -> str | None:
    """Return the absolute path that a `file://` URL names, None for any other. Raises UserError as `file_system`."""
    fs, path = file_system(url)
    return os.path.abspath(path or "/") if isinstance(fs, LocalFileSystem) else None


def glob_urls(pattern: str) -> list[str]:
    """Return the URLs that match a pattern, sorted."""
    fs, path = file_system(pattern)
    with _as_os_errors(pattern):
        return sorted(str(fs.unstrip_protocol(match)) for match in fs.glob(path))


def join_names(folder: str, name: str) -> str:
    """Return the name of a file of a subfolder, relative to the folder that holds both."""
    return f"{folder}/{name}" if folder else name


def _request(action: Callable[[], Result], location: str) -> Result:
    """Return what an fsspec backend answers, with up to three repetitions; raise OSError if there is no answer."""

    def once() -> Result:
        with _as_os_errors(location):
            return action()

    return repeated(once, _PAUSES_SECONDS, final=_ANSWERS)


def _upload_prefix() -> str:
    """Return how the temporary folders of this machine's uploads begin.

    Containers may share a temporary folder, but not a host name.
    """
    return f"lmk-upload-{platform.node()}_"


@cache
def _sweep_uploads() -> None:
    """Delete, once per process, the temporary files of uploads whose processes were killed."""
    start = os.path.join(tempfile.gettempdir(), _upload_prefix())
    for path in glob.glob(f"{glob.escape(start)}*"):
        pid = path.removeprefix(start).split("_")[0]
        if pid.isdigit() and not _is_alive(int(pid)):
            shutil.rmtree(path, ignore_errors=True)  # those of another user stay


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # another user's process
    return True


@contextmanager
def _with_filename(path: str) -> Iterator[None]:
    """Add the file's name to an OSError of writing it, which a full disk leaves out."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or path
        raise


@contextmanager
def _as_os_errors(location: str) -> Iterator[None]:
    """Turn the exceptions of any fsspec backend into OSErrors that name the location."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split())[:300] or type(error).__name__
        error.strerror = without_secrets(reason)
        error.filename = without_secrets(location if error.filename is None else str(error.filename))
        raise
    except Exception as error:
        kind = PermissionError if "Credential" in type(error).__name__ else OSError
        reason = without_secrets(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
        raise kind(None, reason, without_secrets(location)) from error
