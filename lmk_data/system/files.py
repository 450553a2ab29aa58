"""Durable files: written under a temporary name, synced, then renamed, so that a name means a whole file."""

import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

_CHUNK_BYTES = 1 << 20


@contextmanager
def atomic_file(path: Path, temporary_folder: Path | None = None) -> Iterator[BinaryIO]:
    """Yield a binary file that becomes `path` when the block ends, or vanishes when it raises.

    The temporary file has a name of its own for each attempt and ends in `.tmp`; it lies beside `path` or in
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


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` atomically and durably."""
    with atomic_file(path) as file:
        file.write(data)


def remove_durably(path: Path) -> None:
    """Delete `path` if it is there, and sync its folder so that a crash cannot bring it back."""
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
    """The sha256 of a file as 64 hex digits, read in bounded memory."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
