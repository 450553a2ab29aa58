"""Shards as files of this machine: local ones read ahead, remote ones fetched whole into a bounded, shared folder."""

import errno
import os
import re
import secrets
import stat
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from lmk_data.errors import DatasetError, LmkError, UserError
from lmk_data.system.files import file_lock, open_regular
from lmk_train.config.arguments import Cache
from lmk_train.data.records import OpenShard

if TYPE_CHECKING:
    from lmk_data.dataset import ShardedDataset

_OURS = re.compile(r"[0-9a-f]{64}\.tar(\.[0-9]+-[0-9a-f]{8}\.tmp)?")  # the name of a file that this module makes
_OPEN_FILES = 256
_FETCHERS = 4
_ADVISED_AT_ONCE = 128 << 10  # bytes; the kernel reads no more for one advice than its own read-ahead
_ABANDONED_SECONDS = 3600  # an unfinished file that nobody wrote to for so long belongs to a process that was killed


class ShardFiles:
    """Opens shards by name and keeps the most recently used ones open; safe to use from several threads.

    The shards of a dataset behind a URL are fetched into the folder of `cache` first.
    """

    def __init__(self, dataset: "ShardedDataset", cache: Cache) -> None:
        self._dataset = dataset
        self._fetcher = None if dataset.is_local else _Fetcher(dataset, cache)
        self._prefetcher = _Prefetcher(self._prefetch, 1 if self._fetcher is None else _FETCHERS)
        self._open: OrderedDict[str, OpenShard] = OrderedDict()
        self._lock, self._refetch_lock = threading.Lock(), threading.Lock()
        self._refetched: set[str] = set()

    def location(self, name: str) -> str:
        """Return the path or URL of a shard, and the path that it was fetched to, for messages."""
        fetched = "" if self._fetcher is None else f" (fetched as {self._fetcher.path(name)})"
        return self._dataset.shards_folder.location(name) + fetched

    def refetch(self, name: str) -> bool:
        """Remove a fetched shard that is damaged, so that the next `open` fetches it again; at most once a shard.

        Returns False for a local dataset, which has no other copy.
        """
        if self._fetcher is None:
            return False
        with self._refetch_lock:
            if name not in self._refetched:
                self._fetcher.path(name).unlink(missing_ok=True)
                with self._lock:
                    self._refetched.add(name)
                    self._open.pop(name, None)
        return True

    def open(self, name: str) -> OpenShard:
        """Return the open file of a shard.

        Raises:
            DatasetError: it cannot be opened, or a fetched shard is not what the manifest describes.
            StorageError: it cannot be fetched.
            UserError: the folder of the cache cannot be written.
        """
        self.reach(name)
        with self._lock:
            if (shard := self._open.get(name)) is not None:
                self._open.move_to_end(name)
                return shard
            was_damaged = name in self._refetched
        shard = self._open_file(name)
        with self._lock:
            if was_damaged != (name in self._refetched):
                return shard  # may be the damaged file, which another thread removed meanwhile
            self._open[name] = shard
            if len(self._open) > _OPEN_FILES:
                self._open.popitem(last=False)
        return shard

    def reach(self, name: str) -> None:
        """Record that a shard is in use, so that the next ones are prefetched."""
        self._prefetcher.reach(name)

    def expect(self, names: Sequence[str], window: int) -> None:
        """Announce the shards that will be needed, in order, so that they are prefetched in the background.

        Local shards are read into memory `window` shards ahead of the one in use, remote ones fetched `2 * window`
        ahead.
        """
        num_ahead = window if self._fetcher is None else 2 * window
        if self._fetcher is not None:
            self._fetcher.ensure_room(names, num_ahead)
        self._prefetcher.expect(names, num_ahead)

    def close(self) -> None:
        """Close the open shards and stop prefetching."""
        self._prefetcher.close()
        with self._lock:
            self._open.clear()

    def _prefetch(self, name: str) -> None:
        with suppress(LmkError, OSError):  # `open` meets the same error, and reports it
            _read_ahead(self._dataset.shard_path(name) if self._fetcher is None else self._fetcher.fetch(name))

    def _open_file(self, name: str) -> OpenShard:
        if self._fetcher is not None:
            return self._fetcher.open(name)
        path = self._dataset.shard_path(name)
        try:
            return OpenShard(path)
        except OSError as error:
            raise DatasetError(f"{path}: cannot be read: {error.strerror}") from error


def _read_ahead(path: Path) -> None:
    """Ask the kernel to read a file into the page cache."""
    with open_regular(path) as file:
        for offset in range(0, os.fstat(file.fileno()).st_size, _ADVISED_AT_ONCE):
            os.posix_fadvise(file.fileno(), offset, _ADVISED_AT_ONCE, os.POSIX_FADV_WILLNEED)


class _Prefetcher:
    """Calls `prefetch` in threads of its own for the shards after the one in use; its methods never wait for them."""

    def __init__(self, prefetch: Callable[[str], None], threads: int) -> None:
        self._prefetch = prefetch
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="prefetch")
        self._lock = threading.Lock()
        self._submitted: list[Future[None]] = []
        self.expect((), 0)

    def expect(self, names: Sequence[str], num_ahead: int) -> None:
        """Prefetch shards in this order, up to `num_ahead` beyond the one in use; forget the earlier order."""
        with self._lock:
            for future in self._submitted:
                future.cancel()
            self._names, self._num_ahead, self._submitted = names, num_ahead, []
            self._ordinal = {name: number for number, name in enumerate(names)}
        self._submit(0)

    def reach(self, name: str) -> None:
        """Record that a shard is in use."""
        if len(self._submitted) < len(self._names):
            self._submit(self._ordinal.get(name, 0))

    def close(self) -> None:
        """Finish the prefetches under way, and start no more."""
        self.expect((), 0)
        self._pool.shutdown(wait=True)

    def _submit(self, reached: int) -> None:
        with self._lock:
            for name in self._names[len(self._submitted) : reached + self._num_ahead + 1]:
                self._submitted.append(self._pool.submit(self._prefetch, name))


class _Fetcher:
    """Shards behind a URL as whole files in the cache; one process fetches each shard while the others wait.

    A shard is named by its own hash, which is checked when it is fetched: whatever a dataset states, it finds nothing
    but what it describes. Each user has a folder, since a file of another user could be changed after that check.
    """

    def __init__(self, dataset: "ShardedDataset", cache: Cache) -> None:
        self._dataset, self._files = dataset, dataset.shard_files
        if cache.folder is None:
            raise UserError("--cache: there is no home folder to download shards to (HOME is unset); name a folder")
        self._root, self._max_bytes = cache.folder, cache.max_bytes
        self._folder = cache.folder / f"user-{os.geteuid()}"

    def path(self, name: str) -> Path:
        """Return where a shard lies once it is fetched."""
        return self._folder / f"{self._files[name]['sha256']}.tar"

    def open(self, name: str) -> OpenShard:
        """Return the open file of a shard, after it has been fetched."""
        while True:
            path = self.fetch(name)
            with suppress(FileNotFoundError):  # another process has just removed it to make room
                return OpenShard(path)

    def ensure_room(self, names: Sequence[str], num_ahead: int) -> None:
        """Raise the limit of the cache if the shard in use and `num_ahead` more would not fit."""
        sizes = sorted((self._files[name]["num_bytes"] for name in names), reverse=True)
        self._max_bytes = max(self._max_bytes, sum(sizes[: num_ahead + 1]))

    def fetch(self, name: str) -> Path:
        """Return the path of a shard, fetched by this process or another one, and mark it as just used."""
        path, num_bytes = self.path(name), self._files[name]["num_bytes"]
        try:
            self._make_folder()
            with file_lock(_lock_of(path)):
                if not path.exists() or path.stat().st_size != num_bytes:
                    for left in path.parent.glob(f"{path.name}.*.tmp"):  # of a process that was killed
                        left.unlink(missing_ok=True)
                    self._download(name, self._reserve(path, num_bytes), path)
                now = time.time_ns()  # finer than the clock that the kernel stamps files with
                with suppress(FileNotFoundError):  # removed by another process to make room; `open` tries again
                    os.utime(path, ns=(now, now))
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            hint = "; make room, or name another folder with --cache" if full else ""
            raise UserError(f"--cache {self._root}: {error.strerror or error}{hint}") from error
        return path

    def _make_folder(self) -> None:
        """Make this user's folder. Raises UserError if something else is in its place."""
        self._root.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            self._folder.mkdir(mode=0o700)
        status = self._folder.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
            raise UserError(f"--cache {self._root}: {self._folder.name} in it is not a folder of yours; name another")

    def _reserve(self, path: Path, num_bytes: int) -> Path:
        """Create an unfinished file of that size, which counts at once: no two processes get the same room."""
        temporary = Path(f"{path}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
        with file_lock(self._folder / "room.lock"):
            self._make_room(num_bytes)
            with open(temporary, "xb") as file:
                file.truncate(num_bytes)
        return temporary

    def _download(self, name: str, temporary: Path, path: Path) -> None:
        """Fetch a shard, check its hash, and rename it only then."""
        try:
            with open(temporary, "r+b") as file:
                self._dataset.copy_shard(name, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    def _make_room(self, num_bytes: int) -> None:
        """Remove the least recently used shards until one of `num_bytes` fits; open files stay readable.

        Other files in the folder are not touched.
        """
        total, removable = 0, []
        for path in [path for path in self._folder.iterdir() if _OURS.fullmatch(path.name)]:
            with suppress(FileNotFoundError):
                status = path.lstat()
                total += status.st_size
                if path.suffix == ".tar" or status.st_mtime < time.time() - _ABANDONED_SECONDS:
                    removable.append((status.st_mtime_ns, status.st_size, path))
        for _, size, path in sorted(removable):
            if total + num_bytes <= self._max_bytes:
                return
            path.unlink(missing_ok=True)
            total -= size
            if path.suffix == ".tar":
                with suppress(UserError), file_lock(_lock_of(path), wait_seconds=0):  # nobody is fetching it again
                    _lock_of(path).unlink()


def _lock_of(path: Path) -> Path:
    """Return the file that is locked while somebody fetches or uses a shard of the cache."""
    return Path(f"{path}.lock")
