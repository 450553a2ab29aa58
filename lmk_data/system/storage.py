"""Folders on this machine or behind a URL: one small set of operations, and files that are whole or absent."""

import errno
import glob
import io
import os
import posixpath
import shutil
from collections.abc import Callable, Container, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, Protocol, TypeVar, cast

from lmk_data.errors import UserError, storage_failure
from lmk_data.leftovers import LINK_IN_CIRCLE, LINK_TO_NOTHING, NOT_A_FILE, LeftOut
from lmk_data.leftovers import left_out as left_out_by_name
from lmk_data.system.files import (
    MAX_FILE_BYTES,
    atomic_file,
    check_no_link,
    file_lock,
    is_unfinished,
    make_folder,
    open_regular,
    read_bounded,
    remove_durably,
)
from lmk_data.system.remote import RemoteFolder, glob_urls, join_names, path_on_this_machine
from lmk_data.system.retries import repeated

# A dataset's folder holds everything that is not the dataset below BUILD_FOLDER, under these names.
BUILD_FOLDER = ".build"
LOCK = f"{BUILD_FOLDER}/lock"  # held by the command that works in the folder
UNFINISHED_FOLDER = f"{BUILD_FOLDER}/unfinished"  # files that are being written
PLAN_INPUTS = f"{BUILD_FOLDER}/plan.json"  # what the build is made from
PLAN_TABLE = f"{BUILD_FOLDER}/plan.parquet"  # the planned images, one row group per shard
RECEIPTS_FOLDER = f"{BUILD_FOLDER}/receipts"  # one file per finished shard
NOTES_FOLDER = f"{BUILD_FOLDER}/decoding"  # the picture that each worker is at
CRASHES = f"{BUILD_FOLDER}/crashes.json"  # pictures that end the process that decodes them
PROBE_PREFIX = f"{BUILD_FOLDER}/seen-"  # a file that the workers of a cluster must see
MEMBERS_TABLE = f"{BUILD_FOLDER}/members.parquet"  # the members of scanned archives

# What a file that somebody else may have written can name. The other file systems of fsspec unpack, cache or chain, and
# `reference://` evaluates templates.
STORED_SCHEMES = ("file", "s3", "gs", "az", "hf", "http", "https")
_ANSWERS = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)  # of a disk that works
_LOCAL_PAUSES_SECONDS = (0.1, 0.4, 1.6)
MAX_LINKED_FOLDERS = 1_000_000
Inode = tuple[int, int]
Result = TypeVar("Result")


class Folder(Protocol):
    """A folder of files, named relative to it with forward slashes. Whatever the storage, failures are OSErrors."""

    @property
    def root(self) -> str:
        """The folder's path or URL."""

    def location(self, name: str) -> str:
        """Return the path or URL of a file, for messages and for other readers."""

    def read(self, name: str, max_bytes: int = MAX_FILE_BYTES) -> bytes:
        """Return a whole file. Raises FileNotFoundError if it does not exist, TooLargeError if it is larger."""

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

    def files(self, folder: str = "") -> list[str]:
        """Return the names of the files directly in a folder."""

    def sizes(self, folder: str = "", names: Container[str] | None = None) -> dict[str, int]:
        """Return name and size in bytes of each file directly in a folder, by one listing; empty if it is missing.

        `names` are the files that are wanted, None all: a web server is asked for each size.
        """

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

    def read(self, name: str, max_bytes: int = MAX_FILE_BYTES) -> bytes:
        return read_bounded(self.location(name), max_bytes)

    def read_range(self, name: str, offset: int, num_bytes: int) -> bytes:
        with open_regular(self.location(name)) as file:
            return os.pread(file.fileno(), num_bytes, offset)

    def open(self, name: str) -> BinaryIO:
        return cast(BinaryIO, io.BufferedReader(cast(io.RawIOBase, open_regular(self.location(name)))))

    def exists(self, name: str) -> bool:
        return os.path.exists(self.location(name))

    def is_file(self, name: str) -> bool:
        return os.path.isfile(self.location(name))

    def size(self, name: str) -> int:
        return os.stat(self.location(name)).st_size

    def files(self, folder: str = "") -> list[str]:
        return sorted(self.sizes(folder))

    def sizes(self, folder: str = "", names: Container[str] | None = None) -> dict[str, int]:
        try:
            with os.scandir(self.location(folder)) as entries:
                found = {join_names(folder, entry.name): entry for entry in entries if _is(entry.is_file)}
                return {name: found[name].stat().st_size for name in found if names is None or name in names}
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
            if num_linked > MAX_LINKED_FOLDERS:
                raise UserError(
                    f"{self.root}: links lead to more than {MAX_LINKED_FOLDERS:,} folders, such as {prefix}; remove "
                    "links that lead to one another"
                )

    @contextmanager
    def atomic(self, name: str) -> Iterator[BinaryIO]:
        path, unfinished = Path(self.location(name)), Path(self.location(UNFINISHED_FOLDER))
        self.check_writable(path.parent)
        self.check_writable(unfinished)
        make_folder(path.parent)
        make_folder(unfinished)
        with atomic_file(path, unfinished) as file:
            yield file

    def remove(self, name: str) -> None:
        path = Path(self.location(name))
        self.check_writable(path.parent)
        remove_durably(path)

    def remove_tree(self, name: str) -> None:
        path = Path(self.location(name))
        self.check_writable(path)
        if path.is_dir():
            shutil.rmtree(path)

    def sweep(self) -> None:
        unfinished, build = Path(self.location(UNFINISHED_FOLDER)), Path(self.location(BUILD_FOLDER))
        self.check_writable(unfinished)
        if unfinished.is_dir():
            for path in unfinished.iterdir():
                if is_unfinished(path.name):
                    path.unlink()
            if not any(unfinished.iterdir()):
                unfinished.rmdir()
        if build.is_dir() and not any(build.iterdir()):
            build.rmdir()

    def check_writable(self, path: Path) -> None:
        """Raise UserError if a path inside the folder is, or leads through, a symbolic link. The folder may be one."""
        root = Path(self.root)
        if path != root:
            check_no_link(path, root=root)


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

    A `file://` URL names a local one. Nothing is read or written yet. Raises UserError for a URL whose kind of storage
    is unknown or not installed.
    """
    text = os.fspath(path)
    if not is_url(text):
        return LocalFolder(os.path.abspath(os.path.expanduser(text)))
    here = path_on_this_machine(text)
    if here is not None:
        return LocalFolder(here)
    before, _, after = text.rpartition("://")
    return RemoteFolder(f"{before}://{after.rstrip('/')}")


@contextmanager
def held(folder: Folder, busy: str) -> Iterator[None]:
    """Hold a folder of this machine while the block works in it; one behind a URL has no locks.

    The lock is deleted at the end unless `.build` holds more, and the folder if nothing was written into a new one.

    Args:
        folder: the folder, which is created if it is missing.
        busy: what is said if another command holds it, such as "another build is at work there".

    Raises:
        UserError: another command of this machine holds it, or it cannot be written.
    """
    if not isinstance(folder, LocalFolder):
        yield
        return
    root = Path(folder.root)
    existed, path = root.exists(), root / LOCK
    message = f"--out {root}: {busy}; wait for it or stop it"
    with ExitStack() as stack:
        try:
            folder.check_writable(path)
            make_folder(path.parent)
            stack.enter_context(file_lock(path, wait_seconds=0, busy=message))
        except OSError as error:
            raise UserError(f"--out {root}: cannot be written: {error.strerror}") from error
        try:
            yield
        finally:
            _leave_nothing_behind(root, existed)


def _leave_nothing_behind(folder: Path, existed: bool) -> None:
    """Remove a `.build` that holds only the lock, and the folder if this command created it."""
    try:
        if os.listdir(folder / BUILD_FOLDER) == [Path(LOCK).name]:
            (folder / LOCK).unlink()
            (folder / BUILD_FOLDER).rmdir()
            if not existed and not os.listdir(folder):
                folder.rmdir()
    except FileNotFoundError:
        pass  # somebody removed the folder; nothing is left


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


def read_file(path: str, max_bytes: int) -> bytes:
    """Return the content of a file, by its path or URL. Raises TooLargeError if it has more than `max_bytes`."""
    folder, name = split_location(path)
    return folder.read(name, max_bytes)


def split_location(path: str) -> tuple[Folder, str]:
    """Return the folder of a file, given by its path or URL, and its name in that folder."""
    parent, name = os.path.split(path.rstrip("/"))
    folder = open_folder(parent or ".")
    return replace(folder, names_are_urls=True) if isinstance(folder, RemoteFolder) else folder, name


def retrying(action: Callable[[], Result], location: str) -> Result:
    """Return what `action` returns; repeat it up to three times while a local disk fails with OSError.

    `location` is the path or URL that it reads. Remote folders repeat their requests themselves. Raises StorageError if
    it keeps failing.
    """
    try:
        return action() if is_url(location) else repeated(action, _LOCAL_PAUSES_SECONDS, final=_ANSWERS)
    except OSError as error:
        raise storage_failure(error, location) from error


def is_url(path: str) -> bool:
    """Return whether a path is a URL; `file://` is one too."""
    return "://" in path


def stored_location(path: str, base: Folder | None = None) -> str:
    """Return the path or URL that a file names: relative to the folder `base` of that file, or a URL.

    Raises ValueError, which says why, for what no file may name: a chain of URLs, another scheme than those of
    `STORED_SCHEMES` and `base`, or with `base` an absolute path or a relative one to another host.
    """
    own_scheme, _, own_path = base.url.partition("://") if isinstance(base, RemoteFolder) else ("", "", "")
    if "::" in path or not path.isprintable():
        raise ValueError("a chain of URLs, or with odd characters")
    if is_url(path):
        if path.partition("://")[0] not in (*STORED_SCHEMES, own_scheme):
            raise ValueError(f"a URL that is none of {', '.join(STORED_SCHEMES)}")
        return path
    if base is None:
        return path
    if path.startswith("/"):
        raise ValueError("an absolute path")
    if not own_scheme:
        as_named = os.path.normpath(os.path.join(base.root, path))
        there = os.path.normpath(os.path.join(os.path.realpath(base.root), path))  # not through links to the folder
        return there if os.path.exists(there) and not os.path.exists(as_named) else as_named
    joined = posixpath.normpath(posixpath.join(own_path, path))
    if joined.split("/", 1)[0] != own_path.split("/", 1)[0]:
        raise ValueError("a path that leads to another host or bucket")
    return f"{own_scheme}://{joined}"


def leads_elsewhere(path: str, base: Folder) -> bool:
    """Return whether a path that a file in the folder `base` names is a URL of another host, bucket or local root.

    Nobody named that place: only the user may. Relative paths stay in the storage of the folder.
    """
    if not is_url(path):
        return False
    own = _storage_of(base.url) if isinstance(base, RemoteFolder) else None
    return _storage_of(path) != own or path.startswith("file:")


def _storage_of(url: str) -> tuple[str, str]:
    """Return the kind of storage that a URL names, and its host or bucket."""
    scheme, _, rest = url.partition("://")
    return scheme, rest.split("/", 1)[0].rpartition("@")[2].lower()


def expand_glob(pattern: str) -> list[str]:
    """Return the paths or URLs that match a pattern, sorted."""
    return glob_urls(pattern) if is_url(pattern) else sorted(glob.glob(os.path.expanduser(pattern)))
