"""Durable files and locks: a file's name means that it is whole, and one process at a time holds a lock."""

import errno
import fcntl
import hashlib
import io
import math
import os
import re
import secrets
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import BinaryIO

from lmk_data.errors import TooLargeError, UserError
from lmk_data.system.terminal import notice

MAX_FILE_BYTES = 512 << 20  # of a file that is read in one piece, unless its kind has another limit
_CHUNK_BYTES = 1 << 20
_UNFINISHED = re.compile(r".+\.\d+-[0-9a-f]{8}\.tmp")
_LOCK_POLL_SECONDS = 0.02
# What a file system without locks, or without the syncing of folders, answers: some of NFS, Lustre, FUSE and SMB.
_UNSUPPORTED = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)


@contextmanager
def file_lock(path: Path, *, wait_seconds: float = math.inf, busy: str | Callable[[], str] = "") -> Iterator[int]:
    """Hold an exclusive lock on a file, which is created if it is missing, while the block runs; yield its descriptor.

    A child process that inherits the descriptor (`pass_fds`) holds the lock too, so it is free only when the last of
    them has ended. On NFS the lock may hold on one machine only. A holder may delete the file before it lets go: a lock
    on a deleted file does not count.

    Args:
        path: the file to lock.
        wait_seconds: how long to wait for another holder; 0 does not wait at all.
        busy: the message of the UserError that is raised when the lock is not free by then, or what returns it.
    """
    deadline = time.monotonic() + wait_seconds
    while (descriptor := _try_lock(path, block=wait_seconds == math.inf)) is None:
        if time.monotonic() >= deadline:
            raise UserError(busy if isinstance(busy, str) else busy())
        time.sleep(_LOCK_POLL_SECONDS)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _try_lock(path: Path, *, block: bool) -> int | None:
    """Return the descriptor of the locked file, or None if another process holds or just deleted it.

    Where the file system has no locks, the file counts as locked, with one notice.
    """
    check_no_link(path)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise UserError(f"{path}: not a file; remove it or name another folder")
        _flock(descriptor, path, block=block)
        if os.path.samestat(os.fstat(descriptor), os.stat(path)):
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def lock_holder(path: Path) -> str:
    """Return which process of this machine holds the lock on a file, such as `process 4242 (lmk-shard)`.

    Where the system does not tell (Linux does, in /proc/locks), it is "another process".
    """
    try:
        status = path.stat()
        place = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
        locks = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
        pid = next(cells[4] for cells in locks if cells[1] == "FLOCK" and cells[5] == place)
        name = Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
    except (OSError, StopIteration, IndexError):
        return "another process"
    return f"process {pid} ({name})"


def _flock(descriptor: int, path: Path, *, block: bool) -> None:
    """Lock an open file. Raises BlockingIOError if another process holds it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if block else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        _notice_without_locks(path.parent)


@cache
def _notice_without_locks(folder: Path) -> None:
    notice(f"{folder}: its file system has no locks; run only one command at a time in this folder")


def check_no_link(path: Path, *, root: Path | None = None) -> None:
    """Raise UserError if a path is a symbolic link, or a folder on the way to it below `root` is one.

    A folder that came from somebody else may hold links, which would lead what is written out of it.
    """
    for part in (path, *(parent for parent in path.parents if root is not None and root in parent.parents)):
        if part.is_symlink():
            raise UserError(
                f"{part}: is a symbolic link, through which nothing is written; remove it, or copy the folder"
            )


@contextmanager
def atomic_file(path: Path, temporary_folder: Path | None = None) -> Iterator[BinaryIO]:
    """Yield a binary file that becomes `path` when the block ends, or vanishes if it raises.

    The temporary file has its own name for each attempt and ends in `.tmp`. It lies beside `path` or in
    `temporary_folder`, which must be on the same file system. File and folder are synced before this returns.
    """
    temporary = unfinished_path(path, temporary_folder)
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def unfinished_path(path: Path, folder: Path | None = None) -> Path:
    """Return a new path for a file that becomes `path` or vanishes; it lies beside `path` or in `folder`."""
    return (folder or path.parent) / f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp"


def is_unfinished(name: str) -> bool:
    """Return whether a file's name is one that `unfinished_path` gives."""
    return _UNFINISHED.fullmatch(name) is not None


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` atomically and durably."""
    with atomic_file(path) as file:
        file.write(data)


def remove_durably(path: Path) -> None:
    """Delete `path` if it exists, and sync its folder so that a crash cannot bring it back."""
    if os.path.lexists(path):
        path.unlink()
        sync_folder(path.parent)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it that are missing, so that they survive a power cut as their files do."""
    missing = []
    for path in (folder, *folder.parents):
        if path.is_dir():
            break
        missing.append(path)
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make what is created, renamed and deleted inside `folder` survive a power cut.

    Nothing is done where the file system cannot, or where the user may write the folder but not read it.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
    finally:
        os.close(descriptor)


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a file for reading, unbuffered.

    Raises IsADirectoryError for a folder, OSError for what may never end or never begin: a device, a FIFO, a socket.
    """
    descriptor = os.open(
        path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
    )  # opening a FIFO waits for a writer otherwise
    kind = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(kind):
        os.close(descriptor)
        code = errno.EISDIR if stat.S_ISDIR(kind) else errno.EINVAL
        raise OSError(code, os.strerror(code) if code == errno.EISDIR else "not a regular file", os.fspath(path))
    return open(descriptor, "rb", buffering=0)


def read_bounded(path: str | os.PathLike[str], max_bytes: int) -> bytes:
    """Return a whole file. Raises as `open_regular` does, and TooLargeError if it has more than `max_bytes`."""
    with open_regular(path) as raw, io.BufferedReader(raw) as file:  # type: ignore[type-var]
        num_bytes = os.fstat(raw.fileno()).st_size
        data = file.read(min(num_bytes, max_bytes) + 1)
        if num_bytes < len(data) <= max_bytes:  # it grew, or is one of /proc, which state no size
            data += file.read(max_bytes + 1 - len(data))
    if len(data) > max_bytes:
        raise TooLargeError(max_bytes)
    return data


def sha256_file(path: Path) -> str:
    """Return the sha256 of a file as 64 hex digits; it is read in bounded memory."""
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
