"""Durable files and locks: a file's name means that it is whole, and one process at a time holds a lock."""

import fcntl
import hashlib
import math
import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from lmk_data.errors import UserError

_CHUNK_BYTES = 1 << 20
_UNFINISHED = re.compile(r".+\.\d+-[0-9a-f]{8}\.tmp")
_LOCK_POLL_SECONDS = 0.1


@contextmanager
def file_lock(path: Path, *, wait_seconds: float = math.inf, busy: str = "") -> Iterator[int]:
    """Hold an exclusive lock on a file, which is created if it is missing, while the block runs; yield its descriptor.

    A child process that inherits the descriptor (`pass_fds`) holds the lock too, so it is free only when the last of
    them has ended. On NFS the lock may hold on one machine only. A holder may delete the file before it lets go: a lock
    on a deleted file does not count.

    Args:
        path: the file to lock.
        wait_seconds: how long to wait for another holder; 0 does not wait at all.
        busy: the message of the UserError that is raised when the lock is not free by then.
    """
    deadline = time.monotonic() + wait_seconds
    while (descriptor := _try_lock(path, block=wait_seconds == math.inf)) is None:
        if time.monotonic() >= deadline:
            raise UserError(busy)
        time.sleep(_LOCK_POLL_SECONDS)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _try_lock(path: Path, *, block: bool) -> int | None:
    """Return the descriptor of the locked file, or None if another process holds or just deleted it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if block else fcntl.LOCK_NB))
        if os.path.samestat(os.fstat(descriptor), os.stat(path)):
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


@contextmanager
def atomic_file(path: Path, temporary_folder: Path | None = None) -> Iterator[BinaryIO]:
    """Yield a binary file that becomes `path` when the block ends, or vanishes if it raises.

    The temporary file has its own name for each attempt and ends in `.tmp`. It lies beside `path` or in
    `temporary_folder`, which must be on the same file system. File and folder are synced before this returns.
    """
    folder = temporary_folder or path.parent
    temporary = folder / f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp"
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


def is_unfinished(name: str) -> bool:
    """Return whether a file's name is one that `atomic_file` gives to a file that it is writing."""
    return _UNFINISHED.fullmatch(name) is not None


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` atomically and durably."""
    with atomic_file(path) as file:
        file.write(data)


def remove_durably(path: Path) -> None:
    """Delete `path` if it exists, and sync its folder so that a crash cannot bring it back."""
    if path.exists():
        path.unlink()
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames and deletions inside `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_file(path: Path) -> str:
    """Return the sha256 of a file as 64 hex digits; it is read in bounded memory."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
