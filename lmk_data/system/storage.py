"""Folders on this machine or behind a URL: one small set of operations, and files that are whole or absent."""

import errno
import glob
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol, TypeVar

from lmk_data.errors import UserError, storage_failure
from lmk_data.leftovers import LINK_IN_CIRCLE, LINK_TO_NOTHING, NOT_A_FILE, LeftOut
from lmk_data.leftovers import left_out as left_out_by_name
from lmk_data.system.files import atomic_file, remove_durably
from lmk_data.system.remote import RemoteFolder, file_system, glob_urls, join_names
from lmk_data.system.retries import repeated

# A dataset's folder holds everything that is not the dataset below BUILD_FOLDER, under these names.
BUILD_FOLDER = ".build"
LOCK = f"{BUILD_FOLDER}/lock"  # held by the command that works in the folder
UNFINISHED_FOLDER = f"{BUILD_FOLDER}/unfinished"  # files that are being written
PLAN_INPUTS = f"{BUILD_FOLDER}/plan.json"  # what the build is made from
PLAN_TABLE = f"{BUILD_FOLDER}/plan.parquet"  # the planned images, one row group per shard
RECEIPTS_FOLDER = f"{BUILD_FOLDER}/receipts"  # one file per finished shard
MEMBERS_TABLE = f"{BUILD_FOLDER}/members.parquet"  # the members of scanned archives

_LOCAL_PAUSES_SECONDS = (0.1, 0.4, 1.6)
_MOST_LINKED_FOLDERS = 1_000_000
Inode = tuple[int, int]
Result = TypeVar("Result")


class Folder(Protocol):
    """A folder of files, named relative to it with forward slashes. Whatever the storage, failures are OSErrors."""

    @property
    def root(self) -> str:
        """The folder's path or URL."""

    def location(self, name: str) -> str:
        """Return the path or URL of a file, for messages and for other readers."""

    def read(self, name: str) -> bytes:
        """Return a whole file. Raises FileNotFoundError if it does not exist."""

    def read_range(self, name: str, offset: int, num_bytes: int) -> bytes:
        """Return up to `num_bytes` of a file from `offset`; fewer at its end."""

    def open(self, name: str) -> BinaryIO:
        """Open a file for reading, seekable."""

    def exists(self, name: str) -> bool:
        """Return whether a file or a folder of this name exists."""

    def is_file(self, name: str) -> bool:
        """Return whether a file of this name exists."""

    def size(self, name: str) -> int:
        """Return the size of a file in bytes. Raises FileNotFoundError if it does not exist."""

    def sizes(self, folder: str = "") -> dict[str, int]:
        """Return name and size in bytes of each file directly in a folder, by one listing; empty if it is missing."""

    def folders(self, folder: str = "") -> list[str]:
        """Return the names of the folders directly in a folder."""

    def walk(self, left_out: LeftOut | None = None) -> Iterator[tuple[str, int]]:
        """Yield the name of every regular file below, in no order, and its size in bytes (-1 if not listed).

        Links are followed, wherever they lead, unless they lead to a folder that they lie in. What is not yielded
        (hidden, left by a system, no regular file) is appended to `left_out` by its name and the reason, a folder once.
        """

    def atomic(self, name: str) -> AbstractContextManager[BinaryIO]:
        """Yield a binary file that becomes `name`, whole and durable, when the block ends, or vanishes if it raises."""

    def remove(self, name: str) -> None:
        """Delete a file durably, if it exists."""

    def remove_tree(self, name: str) -> None:
        """Delete a folder and its content, if it exists."""

    def sweep(self) -> None:
        """Delete what interrupted writers left behind. Nobody else may be writing here."""


@dataclass(frozen=True, slots=True)
class LocalFolder:
    """A `Folder` of this machine. Unfinished files lie in `UNFINISHED_FOLDER`, each attempt under its own name."""

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
                return {join_names(folder, entry.name): entry.stat().st_size for entry in entries if _is(entry.is_file)}
        except FileNotFoundError:
            return {}

    def folders(self, folder: str = "") -> list[str]:
        try:
            with os.scandir(self.location(folder)) as entries:
                return sorted(join_names(folder, entry.name) for entry in entries if _is(entry.is_dir))
        except FileNotFoundError:
            return []

    def walk(self, left_out: LeftOut | None = None) -> Iterator[tuple[str, int]]:
        left_out = [] if left_out is None else left_out
        num_linked = 0
        pending: list[tuple[str, tuple[Inode, ...]]] = [("", (_inode(os.stat(self.root)),))]
        while pending:
            prefix, above = pending.pop()
            with os.scandir(f"{self.root}/{prefix}") as entries:
                for entry in entries:
                    name = prefix + entry.name
                    if reason := left_out_by_name(entry.name):
                        left_out.append((name, reason))
                    elif _is(entry.is_dir):
                        folder = _inode(entry.stat())
                        num_linked += entry.is_symlink()
                        if folder in above:
                            left_out.append((name, LINK_IN_CIRCLE))
                        else:
                            pending.append((f"{name}/", (*above, folder)))
                    elif _is(entry.is_file):
                        yield name, -1
                    else:
                        left_out.append((name, LINK_TO_NOTHING if entry.is_symlink() else NOT_A_FILE))
            if num_linked > _MOST_LINKED_FOLDERS:
                raise UserError(
                    f"{self.root}: links lead to more than {_MOST_LINKED_FOLDERS:,} folders, such as {prefix}; remove "
                    "links that lead to one another"
                )

    @contextmanager
    def atomic(self, name: str) -> Iterator[BinaryIO]:
        path, unfinished = Path(self.location(name)), Path(self.location(UNFINISHED_FOLDER))
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
        self.remove_tree(UNFINISHED_FOLDER)
        build = Path(self.location(BUILD_FOLDER))
        if build.is_dir() and not any(build.iterdir()):
            build.rmdir()


def _is(kind: Callable[[], bool]) -> bool:
    """Return what an entry of a folder says about its kind; False for a link of links that go round."""
    try:
        return kind()
    except OSError as error:
        if error.errno == errno.ELOOP:
            return False
        raise


def _inode(status: os.stat_result) -> Inode:
    """Return what tells a folder apart from all others of this machine."""
    return status.st_dev, status.st_ino


def open_folder(path: str | os.PathLike[str]) -> Folder:
    """Return a local folder (as an absolute path) or one behind an fsspec URL such as `s3://bucket/folder`.

    Nothing is read or written yet. Raises UserError for a URL whose kind of storage is unknown or not installed.
    """
    text = os.fspath(path)
    if not is_url(text):
        return LocalFolder(os.path.abspath(os.path.expanduser(text)))
    url = text.rstrip("/")
    file_system(url)
    return RemoteFolder(url)


def path_within(inner: Folder, outer: Folder) -> str | None:
    """Return the path of `inner` relative to `outer`, links resolved: empty if equal, None if it is not inside."""
    if isinstance(inner, LocalFolder) and isinstance(outer, LocalFolder):
        below, above = os.path.realpath(inner.root), os.path.realpath(outer.root)
    else:
        below, above = inner.root, outer.root
    if below == above:
        return ""
    prefix = above.rstrip("/") + "/"
    return below.removeprefix(prefix) if below.startswith(prefix) else None


def read_file(path: str) -> bytes:
    """Return the content of a file, by its path or URL."""
    folder, name = split_location(path)
    return folder.read(name)


def split_location(path: str) -> tuple[Folder, str]:
    """Return the folder of a file, given by its path or URL, and its name in that folder."""
    parent, name = os.path.split(path.rstrip("/"))
    return open_folder(parent or "."), name


def retrying(action: Callable[[], Result], location: str) -> Result:
    """Return what `action` returns; repeat it up to three times while a local disk fails with OSError.

    `location` is the path or URL that it reads. Remote folders repeat their requests themselves. Raises StorageError if
    it keeps failing.
    """
    try:
        return action() if is_url(location) else repeated(action, _LOCAL_PAUSES_SECONDS)
    except OSError as error:
        raise storage_failure(error, location) from error


def is_url(path: str) -> bool:
    """Return whether a path is a URL; `file://` is one too."""
    return "://" in path


def expand_glob(pattern: str) -> list[str]:
    """Return the paths or URLs that match a pattern, sorted."""
    return glob_urls(pattern) if is_url(pattern) else sorted(glob.glob(os.path.expanduser(pattern)))
