"""Shards as files of this machine: where they lie, read ahead, or fetched whole into a bounded, shared folder."""

import errno
import fcntl
import os
import re
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from lmk_data.errors import DatasetError, LmkError, UserError

if TYPE_CHECKING:
    from lmk_data.dataset import ShardedDataset
from lmk_train.config.training import Cache

_OF_A_DATASET = re.compile("[0-9a-f]{32}")  # folders that this module makes
_OPEN_FILES = 256
_FETCHERS = 4
_ADVISED_AT_ONCE = 128 << 10  # the kernel reads no more for one advice than it would ahead on its own
_ABANDONED_SECONDS = 3600  # an unfinished file that nobody has written to for so long is of a process that was killed


class OpenShard:
    """A shard's file, open for as long as anybody holds it."""

    __slots__ = ("_descriptor",)

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def read(self, offset: int, num_bytes: int) -> bytes:
        """Up to `num_bytes` from `offset`; fewer at its end."""
        return os.pread(self._descriptor, num_bytes, offset)

    def __del__(self) -> None:
        os.close(self._descriptor)


class ShardFiles:
    """Open shards by name, the last used ones of them; safe to use from several threads.

    A dataset behind a URL has its shards fetched first.
    """

    def __init__(self, dataset: "ShardedDataset", cache: Cache) -> None:
        self._dataset = dataset
        self._fetcher = None if dataset.is_local else _Fetcher(dataset, cache)
        self._ahead = _Ahead(self._make_ready, 1 if self._fetcher is None else _FETCHERS)
        self._open: OrderedDict[str, OpenShard] = OrderedDict()
        self._lock, self._fetching_again = threading.Lock(), threading.Lock()
        self._fetched_again: set[str] = set()

    def location(self, name: str) -> str:
        """Where a shard lies, for messages: its path or URL, and the path that it was fetched to."""
        fetched = "" if self._fetcher is None else f" (fetched as {self._fetcher.path(name)})"
        return self._dataset.shards_folder.location(name) + fetched

    def fetch_again(self, name: str) -> bool:
        """Let go of a fetched shard that is damaged, so that it is fetched anew; but once, False for a local one."""
        if self._fetcher is None:
            return False
        with self._fetching_again:
            if name not in self._fetched_again:
                self._fetcher.path(name).unlink(missing_ok=True)
                with self._lock:
                    self._fetched_again.add(name)
                    self._open.pop(name, None)
        return True

    def open(self, name: str) -> OpenShard:
        """A shard. Raises DatasetError if it cannot be opened, fetched, or is not what the manifest says."""
        self._ahead.reach(name)
        with self._lock:
            if (shard := self._open.get(name)) is not None:
                self._open.move_to_end(name)
                return shard
            was_damaged = name in self._fetched_again
        shard = self._open_file(name)
        with self._lock:
            if was_damaged != (name in self._fetched_again):
                return shard  # perhaps the damaged file, of which another thread has let go meanwhile
            self._open[name] = shard
            if len(self._open) > _OPEN_FILES:
                self._open.popitem(last=False)
        return shard

    def expect(self, names: Sequence[str], window: int) -> None:
        """Say which shards will be needed, in order: they are read into memory a window ahead of what is used, in the
        background; those behind a URL are fetched two windows ahead."""
        ahead = window if self._fetcher is None else 2 * window
        if self._fetcher is not None:
            self._fetcher.fit(names, ahead)
        self._ahead.expect(names, ahead)

    def close(self) -> None:
        """Let go of what is open and stop fetching."""
        self._ahead.close()
        with self._lock:
            self._open.clear()

    def _make_ready(self, name: str) -> None:
        with suppress(LmkError, OSError):  # whoever needs the shard meets the same error, and reports it
            _read_ahead(self._dataset.shard_path(name) if self._fetcher is None else self._fetcher.fetch(name))

    def _open_file(self, name: str) -> OpenShard:
        if self._fetcher is not None:
            return self._fetcher.open(name)
        path = self._dataset.shard_path(name)
        try:
            return OpenShard(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        except OSError as error:
            raise DatasetError(f"{path}: cannot be read: {error.strerror}") from error


def _read_ahead(path: Path) -> None:
    """Have the kernel read a file into memory."""
    with open(path, "rb", buffering=0) as file:
        for offset in range(0, os.fstat(file.fileno()).st_size, _ADVISED_AT_ONCE):
            os.posix_fadvise(file.fileno(), offset, _ADVISED_AT_ONCE, os.POSIX_FADV_WILLNEED)


class _Ahead:
    """Makes ready, by threads of its own, the shards that come after the one in use; none of them ever waits."""

    def __init__(self, make_ready: Callable[[str], None], threads: int) -> None:
        self._make_ready = make_ready
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="ahead")
        self._lock = threading.Lock()
        self._submitted: list[Future[None]] = []
        self.expect((), 0)

    def expect(self, names: Sequence[str], ahead: int) -> None:
        """Shards in the order of their use, and how many to make ready beyond the one in use; forgets earlier ones."""
        with self._lock:
            for future in self._submitted:
                future.cancel()
            self._names, self._far, self._submitted = names, ahead, []
            self._ordinal = {name: number for number, name in enumerate(names)}
        self._submit(0)

    def reach(self, name: str) -> None:
        """Say that a shard is in use."""
        if len(self._submitted) < len(self._names):
            self._submit(self._ordinal.get(name, 0))

    def close(self) -> None:
        """Finish what is being made ready, and start nothing more."""
        self.expect((), 0)
        self._pool.shutdown(wait=True)

    def _submit(self, reached: int) -> None:
        with self._lock:
            for name in self._names[len(self._submitted) : reached + self._far + 1]:
                self._submitted.append(self._pool.submit(self._make_ready, name))


class _Fetcher:
    """Shards behind a URL as whole files in the cache's folder; one process fetches each, the others wait."""

    def __init__(self, dataset: "ShardedDataset", cache: Cache) -> None:
        self._dataset, self._files = dataset, dataset.shard_files
        self._root, self._max_bytes = cache.folder, cache.max_bytes
        self._folder = cache.folder / dataset.shards_content_sha256[:32]

    def path(self, name: str) -> Path:
        """Where a shard lies once it is fetched."""
        return self._folder / name

    def open(self, name: str) -> OpenShard:
        """The shard's file; waits for it to be fetched."""
        while True:
            path = self.fetch(name)
            with suppress(FileNotFoundError):  # another process made room just now
                return OpenShard(os.open(path, os.O_RDONLY | os.O_CLOEXEC))

    def fit(self, names: Sequence[str], ahead: int) -> None:
        """Have room for what is in use and so many shards ahead of it, whatever the limit given."""
        sizes = sorted((self._files[name]["num_bytes"] for name in names), reverse=True)
        self._max_bytes = max(self._max_bytes, sum(sizes[: ahead + 1]))

    def fetch(self, name: str) -> Path:
        """The shard's file, fetched by this process or another one; marked as just used."""
        path, num_bytes = self.path(name), self._files[name]["num_bytes"]
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(f"{path}.lock", "wb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not path.exists() or path.stat().st_size != num_bytes:
                    for left in path.parent.glob(f"{path.name}.*.tmp"):  # of a process that was killed
                        left.unlink(missing_ok=True)
                    self._download(name, self._reserve(path, num_bytes), path)
                now = time.time_ns()  # finer than the clock by which the kernel marks files
                with suppress(FileNotFoundError):  # another process made room just now; `open` comes back
                    os.utime(path, ns=(now, now))
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            hint = "; make room, or name another folder with --cache" if full else ""
            raise UserError(f"--cache {self._root}: {error.strerror or error}{hint}") from error
        return path

    def _reserve(self, path: Path, num_bytes: int) -> Path:
        """An unfinished file of that size, which counts from now on: no two processes are given the same room."""
        temporary = Path(f"{path}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
        with open(self._root / "room.lock", "wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._make_room(num_bytes)
            with open(temporary, "xb") as file:
                file.truncate(num_bytes)
        return temporary

    def _download(self, name: str, temporary: Path, path: Path) -> None:
        """Fetch a shard, check its hash, and only then give it its name."""
        try:
            with open(temporary, "r+b") as file:
                self._dataset.copy_shard(name, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    def _make_room(self, num_bytes: int) -> None:
        """Remove the shards that were used longest ago until one of `num_bytes` fits; open files stay readable.

        What else lies in the folder is somebody else's.
        """
        total, removable = 0, []
        datasets = [folder for folder in self._root.iterdir() if _OF_A_DATASET.fullmatch(folder.name)]
        for path in chain.from_iterable(folder.rglob(kind) for folder in datasets for kind in ("*.tar", "*.tmp")):
            with suppress(FileNotFoundError):
                found = path.stat()
                total += found.st_size
                if path.suffix == ".tar" or found.st_mtime < time.time() - _ABANDONED_SECONDS:
                    removable.append((found.st_mtime_ns, found.st_size, path))
        for _, size, path in sorted(removable):
            if total + num_bytes <= self._max_bytes:
                return
            path.unlink(missing_ok=True)
            total -= size
