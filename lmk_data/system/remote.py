"""Folders behind fsspec URLs: every request is repeated while it fails, and a file appears whole or not at all."""

import glob
import io
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, BinaryIO, TypeVar, cast
from urllib.parse import quote

from lmk_data.errors import TooLargeError, UserError, storage_failure
from lmk_data.leftovers import LeftOut, left_out_of
from lmk_data.system import web
from lmk_data.system.files import MAX_FILE_BYTES
from lmk_data.system.retries import repeated
from lmk_data.system.terminal import without_secrets

_BLOCK_BYTES = 4 << 20
_PAUSES_SECONDS = (0.5, 2.0, 8.0)
PATIENCE_SECONDS = 30  # a request that has taken longer is not repeated
MAX_DEPTH, MAX_FOLDERS, MAX_FILES = 64, 1_000_000, 20_000_000  # of the folders of a web server
# Answers of a storage that works. Repeating the request would not change them.
_ANSWERS = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError)
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, repr=False)
class RemoteFolder:
    """A `Folder` behind an fsspec URL. Files are written on this machine first and uploaded whole.

    `url` may hold a password or a token. `root`, `location` and `repr` do not, because messages, files and the logs of
    Dask's workers show them. Names are those of files; with `names_are_urls` they are the end of a URL that somebody
    gave, with `%20` for a space, and perhaps a query.
    """

    url: str
    names_are_urls: bool = False

    def __repr__(self) -> str:
        return f"RemoteFolder({self.root!r})"

    @property
    def root(self) -> str:
        return without_secrets(self.url)

    def location(self, name: str) -> str:
        return without_secrets(f"{self.url}/{name}" if name else self.url)

    def read(self, name: str, max_bytes: int = MAX_FILE_BYTES) -> bytes:
        fs, path = self._file(name)
        return _request(lambda: _read_bounded(fs, path, max_bytes), self.location(name))

    def read_range(self, name: str, offset: int, num_bytes: int) -> bytes:
        if not num_bytes:
            return b""  # HTTP has no empty range
        fs, path = self._file(name)

        def request() -> bytes:
            with web.bounded_answers(max(num_bytes, web.MAX_WHOLE_BYTES)):
                return bytes(fs.cat_file(path, start=offset, end=offset + num_bytes))

        try:
            data = _request(request, self.location(name))
        except TooLargeError as error:
            reason = "its server sends whole files where a part is asked for; copy it to this machine"
            raise OSError(error.errno, reason, self.location(name)) from error
        return data if len(data) <= num_bytes else data[offset : offset + num_bytes]  # the whole of a small file

    def open(self, name: str) -> BinaryIO:
        fs, path = self._file(name)
        if web.is_web(fs):
            file: Any = _request(lambda: web.WebFile(fs, path), self.location(name))
            return cast(BinaryIO, io.BufferedReader(_RemoteFile(file, self.location(name)), _BLOCK_BYTES))
        options = {"block_size": _BLOCK_BYTES, "cache_type": "readahead"}
        file = _request(lambda: fs.open(path, "rb", **options), self.location(name))
        return cast(BinaryIO, io.BufferedReader(_RemoteFile(file, self.location(name))))

    def exists(self, name: str) -> bool:
        fs, path = self._file(name)
        return _request(lambda: web.exists(fs, path) if web.is_web(fs) else bool(fs.exists(path)), self.location(name))

    def is_file(self, name: str) -> bool:
        fs, path = self._file(name)
        if web.is_web(fs):
            return self.exists(name)
        return _request(lambda: bool(fs.isfile(path)), self.location(name))

    def size(self, name: str) -> int:
        fs, path = self._file(name)
        num_bytes = _request(lambda: fs.size(path), self.location(name))
        if num_bytes is None:
            raise OSError(None, "its server does not say how large it is", self.location(name))
        return int(num_bytes)

    def files(self, folder: str = "") -> list[str]:
        return sorted(join_names(folder, name) for name, entry in self._list(folder) if entry["type"] == "file")

    def sizes(self, folder: str = "", names: Container[str] | None = None) -> dict[str, int]:
        entries = {join_names(folder, name): entry for name, entry in self._list(folder) if entry["type"] == "file"}
        return {  # the listing of a web server has no sizes
            name: int(entry["size"]) if entry["size"] is not None else self.size(name)
            for name, entry in entries.items()
            if names is None or name in names
        }

    def folders(self, folder: str = "") -> list[str]:
        return sorted(join_names(folder, name) for name, entry in self._list(folder) if entry["type"] == "directory")

    def walk(self, left_out: LeftOut | None = None) -> Iterator[tuple[str, int]]:
        fs, _ = self._file("")
        reasons: dict[str, str] = {}
        for relative, num_bytes in self._walk_web() if web.is_web(fs) else self._found():
            if reason := left_out_of(relative):
                reasons[reason[0]] = reason[1]
            elif not relative.endswith("/"):
                yield relative, num_bytes
        if left_out is not None:
            left_out += reasons.items()

    def _found(self) -> Iterator[tuple[str, int]]:
        """Yield every file below, by one request for all of them, and its size (-1 if it is not listed)."""
        fs, path = self._file("")
        fs.invalidate_cache()
        entries = _request(lambda: fs.find(path, detail=True), self.root)
        start = len(path.strip("/")) + 1 if path.strip("/") else 0
        for name, entry in entries.items():
            if relative := str(name).lstrip("/")[start:]:
                yield relative, -1 if entry.get("size") is None else int(entry["size"])

    def _walk_web(self) -> Iterator[tuple[str, int]]:
        """Yield every file below, without a size, and, with a slash at its end, every folder that is left out.

        Raises UserError if there are more folders or files than any collection has, as where links lead in circles.
        """
        pending, seen, num_files = [""], {""}, 0
        while pending:
            folder = pending.pop()
            if folder.count("/") >= MAX_DEPTH or len(seen) > MAX_FOLDERS or num_files > MAX_FILES:
                raise UserError(
                    f"{self.location(folder)[:200]}: more than {MAX_DEPTH} folders deep, {MAX_FOLDERS:,} folders or "
                    f"{MAX_FILES:,} files below {self.root}; name the folders of the images, or copy them here"
                )
            for name, entry in self._entries(folder):
                relative = join_names(folder, name)
                if entry["type"] != "directory":
                    num_files += 1
                    yield relative, -1
                elif left_out_of(relative):
                    yield f"{relative}/", -1
                elif relative not in seen:
                    seen.add(relative)
                    pending.append(relative)

    @contextmanager
    def atomic(self, name: str) -> Iterator[BinaryIO]:
        fs, path = self._file(name)
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
        fs, path = self._file(name)
        _request(lambda: fs.exists(path) and fs.rm_file(path), self.location(name))

    def remove_tree(self, name: str) -> None:
        fs, path = self._file(name)
        _request(lambda: fs.exists(path) and fs.rm(path, recursive=True), self.location(name))

    def sweep(self) -> None:
        """Do nothing: an interrupted upload leaves no file."""

    def _list(self, folder: str) -> list[tuple[str, dict[str, Any]]]:
        """Return the entries directly in a folder by name."""
        return [(name, entry) for name, entry in self._entries(folder) if "/" not in name]

    def _entries(self, folder: str) -> list[tuple[str, dict[str, Any]]]:
        """Return what a folder lists, by its path below the folder. The storage is asked: no cached listing is used."""
        fs, path = self._file(folder)
        fs.invalidate_cache()

        def request() -> list[dict[str, Any]]:
            with web.bounded_answers(web.MAX_LISTING_BYTES):
                listed: list[dict[str, Any]] = fs.ls(path, detail=True)
            return listed

        try:
            entries = _request(request, self.location(folder))
        except FileNotFoundError:
            return []
        named = [(str(entry["name"]), entry) for entry in entries]
        if web.is_web(fs):
            links = ((web.link_below(path, url), entry) for url, entry in named)
            return [(link, entry) for link, entry in links if link]
        others = ((name.rstrip("/"), entry) for name, entry in named if name.strip("/") != path.strip("/"))
        return [(name.rsplit("/", 1)[-1], entry) for name, entry in others]

    def _file(self, name: str) -> tuple[Any, str]:
        fs, root = file_system(self.url)
        if web.is_web(fs) and not self.names_are_urls:
            name = quote(name, safe="/!*'()", errors="surrogateescape")  # as servers with absolute links spell it
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

        def request() -> bytes:
            with web.bounded_answers(len(view) + 2 * _BLOCK_BYTES):
                return self._file.read(len(view))

        data = _request(request, self._location)
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
    import fsspec  # here: a worker that reads no URL starts without it

    try:
        fs, path = fsspec.core.url_to_fs(url, **web.web_options(url))
    except Exception as error:  # every backend raises its own kinds
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(without_secrets(f"{url}: {reason}")) from error
    return fs, path.rstrip("/")


def path_on_this_machine(url: str) -> str | None:
    """Return the absolute path that a `file://` URL names, None for any other. Raises UserError as `file_system`."""
    from fsspec.implementations.local import LocalFileSystem

    fs, path = file_system(url)
    return os.path.abspath(path or "/") if isinstance(fs, LocalFileSystem) else None


def glob_urls(pattern: str) -> list[str]:
    """Return the URLs that match a pattern, sorted. Raises UserError for one that may lead through all of a server."""
    fs, path = file_system(pattern)
    if web.is_web(fs) and "**" in path:
        raise UserError(f"{without_secrets(pattern)}: `**` lists a web server without end; name a folder instead")
    with _as_os_errors(pattern), web.bounded_answers(web.MAX_LISTING_BYTES):
        return sorted(str(fs.unstrip_protocol(match)) for match in fs.glob(path))


def join_names(folder: str, name: str) -> str:
    """Return the name of a file of a subfolder, relative to the folder that holds both."""
    return f"{folder}/{name}" if folder else name


def _request(action: Callable[[], Result], location: str) -> Result:
    """Return what an fsspec backend answers, with up to three repetitions; raise OSError if there is no answer."""

    def once() -> Result:
        with _as_os_errors(location):
            return action()

    return repeated(once, _PAUSES_SECONDS, final=_ANSWERS, patience_seconds=PATIENCE_SECONDS)


def _read_bounded(fs: Any, path: str, max_bytes: int) -> bytes:
    """Return a whole file. Raises TooLargeError if it has more bytes, whatever it or its storage states."""
    if web.is_web(fs):
        with web.bounded_answers(max_bytes):
            return bytes(fs.cat_file(path))
    try:
        data = bytes(fs.cat_file(path, start=0, end=max_bytes + 1))
    except _ANSWERS:
        raise
    except Exception:  # object stores refuse every range of an empty file
        if fs.size(path):
            raise
        return b""
    if len(data) > max_bytes:
        raise TooLargeError(max_bytes)
    return data


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
        if isinstance(error, FileNotFoundError) and not web.is_absent(error):
            reason = without_secrets(" ".join(str(error.__cause__).split())[:300] or type(error.__cause__).__name__)
            raise OSError(None, f"no answer ({reason})", without_secrets(location)) from error
        silent = "no answer in time" if isinstance(error, TimeoutError) else ""
        reason = error.strerror or silent or " ".join(str(error).split())[:300] or type(error).__name__
        error.strerror = without_secrets(reason)
        error.filename = without_secrets(location if error.filename is None else str(error.filename))
        raise
    except Exception as error:
        kind = PermissionError if "Credential" in type(error).__name__ else OSError
        reason = without_secrets(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
        raise kind(None, reason, without_secrets(location)) from error
