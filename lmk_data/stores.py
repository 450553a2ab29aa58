"""Image stores: folders, tars and zips, on this machine or behind URLs; their members, and one picture's bytes."""

import errno
import glob
import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from lmk_data.archives import (
    MAX_IMAGE_BYTES,
    RAW,
    ArchiveKind,
    Place,
    archive_kind,
    bytes_to_read,
    readable_name,
    scan_archive,
    unpack,
)
from lmk_data.engine import LocalEngine
from lmk_data.errors import UserError
from lmk_data.format import Rejection, parquet_bytes
from lmk_data.storage import Folder, LocalFolder, expand_glob, is_url, open_folder, retrying, split_location
from lmk_data.terminal import notice, progress_bar

MEMBERS_TABLE = ".build/members.parquet"
MEMBER_COLUMNS = ["store", "source", "offset", "num_bytes", "method", "crc32"]
_IGNORED_NAMES = {"thumbs.db"}
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
_HASHED_AT_ONCE = 4 << 20


class Store(Protocol):
    """A place that holds images; what is read is named by `source`, a relative path with forward slashes."""

    @property
    def location(self) -> str:
        """The path or URL of the store."""

    def read(self, source: str, place: Place) -> bytes | Rejection:
        """The bytes of one image, or why there are none; `place` matters to archives only.

        Raises StorageError when the storage itself fails: only an image that is not there, in a store that is,
        is the image's own fault.
        """


@dataclass(frozen=True, slots=True)
class FolderStore:
    """A folder of image files."""

    folder: Folder

    @property
    def location(self) -> str:
        return self.folder.root

    def read(self, source: str, place: Place) -> bytes | Rejection:
        return retrying(lambda: self._read_once(source), self.folder.location(source))

    def _read_once(self, source: str) -> bytes | Rejection:
        try:
            if isinstance(self.folder, LocalFolder):
                return _read_bounded(self.folder.location(source))
            return self.folder.read(source)
        except (FileNotFoundError, NotADirectoryError):
            if not self._is_there():
                raise
            return Rejection("missing", "no such file")
        except IsADirectoryError:
            return Rejection("not-an-image", "a folder, not a file")
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                return Rejection("missing", "no such file: its name is too long")
            raise

    def _is_there(self) -> bool:
        """Whether the folder is there and holds anything: an unmounted disk leaves an empty one behind."""
        if isinstance(self.folder, LocalFolder):
            try:
                with os.scandir(self.folder.root) as entries:
                    return next(entries, None) is not None
            except FileNotFoundError:
                return False
        return self.folder.root.startswith(("http://", "https://")) or self.folder.exists("")


@dataclass(frozen=True, slots=True)
class ArchiveStore:
    """A tar or a zip whose members are read by their offsets; nothing is extracted."""

    folder: Folder
    name: str
    kind: ArchiveKind

    @property
    def location(self) -> str:
        return self.folder.location(self.name)

    def read(self, source: str, place: Place) -> bytes | Rejection:
        if place.num_bytes > MAX_IMAGE_BYTES:
            return Rejection("too-large", f"the file has {place.num_bytes:,} bytes, more than {MAX_IMAGE_BYTES:,}")
        return retrying(lambda: self._read_once(place), f"{self.location}/{source}")

    def _read_once(self, place: Place) -> bytes | Rejection:
        content = unpack(self.folder.read_range(self.name, place.offset, bytes_to_read(place)), place)
        if isinstance(content, int):
            widened = replace(place, num_bytes=content)
            content = unpack(self.folder.read_range(self.name, place.offset, bytes_to_read(widened)), place)
            assert not isinstance(content, int)
        return content


def open_stores(paths: Sequence[str]) -> list[Store]:
    """Open each path given as `--images`: a folder, a tar, a zip, a glob of these, or an fsspec URL of one.

    A folder that holds tars and no folders counts as these tars. Raises UserError for what is none of these.
    """
    stores: list[Store] = []
    for path in paths:
        for found in _expanded(path):
            stores += _open(found)
    return stores


def read_members(
    stores: Sequence[Store], *, cache: Folder | None, md5: str | None = None, workers: int = 1, quiet: bool = True
) -> pd.DataFrame:
    """The members of all stores, in order of the stores: `MEMBER_COLUMNS` (store int16, the number of the store).

    Dotfiles and Thumbs.db are left out. Archives that `cache` remembers as they are now are not scanned again;
    what was scanned is remembered there. `md5` names a folder of checksum files: an archive that does not match
    its own is named on stderr. Members of a folder have no place (offset -1).
    """
    archives = [number for number, store in enumerate(stores) if isinstance(store, ArchiveStore)]
    scanned = _read_archives([stores[number] for number in archives], cache, md5, workers, quiet)
    frames = dict(zip(archives, scanned, strict=True))
    for number, store in enumerate(stores):
        if isinstance(store, FolderStore):
            frames[number] = _folder_members(store)
    tables = [frames[number].assign(store=np.int16(number)) for number in range(len(stores))]
    members = pd.concat(tables, ignore_index=True)[MEMBER_COLUMNS]
    names = members["source"].str.rsplit("/", n=1).str[-1].str.lower()
    return members[~names.isin(_IGNORED_NAMES)].reset_index(drop=True)


def _expanded(path: str) -> list[str]:
    if not glob.has_magic(path) or (not is_url(path) and os.path.exists(path)):
        return [path]
    found = expand_glob(path)
    if not found:
        raise UserError(f"--images {path}: nothing fits this pattern")
    return found


def _open(path: str) -> list[Store]:
    """The stores at one path: one, or the tars of a folder of tars."""
    folder = open_folder(path)
    if isinstance(folder, LocalFolder):
        if os.path.isfile(folder.root):
            return [_open_archive(path)]
        if not os.path.isdir(folder.root):
            raise UserError(f"--images {path}: no such folder or archive; give what holds the images")
    elif path.endswith((".tar", ".zip")):
        return [_open_archive(path)]
    tars = sorted(name for name in _listed(folder) if name.endswith(".tar"))
    if tars and not folder.folders():
        return [_open_archive(folder.location(name)) for name in tars]
    return [FolderStore(folder)]


def _listed(folder: Folder) -> dict[str, int]:
    """Files directly in a folder; none for a storage that cannot list, such as a plain web server."""
    try:
        return retrying(folder.sizes, folder.root)
    except NotImplementedError:
        return {}


def _open_archive(path: str) -> ArchiveStore:
    folder, name = split_location(path)
    try:
        head = folder.read_range(name, 0, 512)
    except OSError as error:
        raise UserError(f"--images {path}: cannot be read: {error.strerror or error}") from error
    kind = archive_kind(head)
    if kind is None:
        packed = head.startswith(_COMPRESSED)
        hint = "compressed as a whole; unpack it once to a plain tar" if packed else "neither a folder, a tar nor a zip"
        raise UserError(f"--images {path}: {hint}")
    return ArchiveStore(folder, name, kind)


def _folder_members(store: FolderStore) -> pd.DataFrame:
    names = sorted(readable_name(name) for name in store.folder.walk())
    members = pd.DataFrame({"source": pd.Series(names, dtype=object)})
    return members.assign(offset=np.int64(-1), num_bytes=np.int64(-1), method=np.int8(RAW), crc32=np.uint32(0))


@dataclass(frozen=True, slots=True)
class _Scan:
    """One archive to scan; `md5` is the checksum that it should have, empty for none, None to leave it unchecked."""

    number: int
    store: ArchiveStore
    md5: str | None


@dataclass(frozen=True)
class _Scanned:
    number: int
    members: pd.DataFrame
    md5: str | None


def _read_archives(
    stores: Sequence[Any], cache: Folder | None, md5: str | None, workers: int, quiet: bool
) -> list[pd.DataFrame]:
    """The members of each archive, from the cache where it has not changed."""
    if not stores:
        return []
    remembered = _Remembered.load(cache)
    sums = _checksums(md5, stores) if md5 else {}
    members: dict[int, pd.DataFrame] = {}
    scans = []
    for number, store in enumerate(stores):
        found = remembered.members(store)
        if found is None or (md5 and not remembered.is_checked(store)):
            scans.append(_Scan(number, store, sums.get(store.name, "") if md5 else None))
        else:
            members[number] = found
    with progress_bar(len(scans), "scanning", "archives", quiet=quiet or len(scans) < 2) as bar:
        for scanned in LocalEngine(workers).run(_scan, scans):
            members[scanned.number] = scanned.members
            remembered.add(stores[scanned.number], scanned)
            if scanned.md5 is not None:
                _compare(stores[scanned.number], scanned.md5, sums)
            bar.update()
    if scans and cache is not None:
        remembered.save(cache)
    return [members[number] for number in range(len(stores))]


def _scan(scan: _Scan) -> _Scanned:
    """Scan one archive; a task of its own."""
    store = scan.store
    with store.folder.open(store.name) as file:
        digest = None
        if scan.md5 is not None:
            md5 = hashlib.md5(usedforsecurity=False)
            while chunk := file.read(_HASHED_AT_ONCE):
                md5.update(chunk)
            digest = md5.hexdigest()
            file.seek(0)
        return _Scanned(scan.number, scan_archive(file, store.kind, store.location), digest)


def _checksums(folder: str, stores: Sequence[ArchiveStore]) -> dict[str, str]:
    """The md5 of each archive by its name, from `md5.<stem>.txt` (as CVDF names them) or `<name>.md5`."""
    files = open_folder(folder)
    names = set(files.sizes())
    sums = {}
    for store in stores:
        for candidate in (f"md5.{os.path.splitext(store.name)[0]}.txt", f"{store.name}.md5"):
            if candidate in names and (found := re.search(rb"\b[0-9a-fA-F]{32}\b", files.read(candidate)[:4096])):
                sums[store.name] = found.group().decode().lower()
    if not sums:
        example = f"md5.{os.path.splitext(stores[0].name)[0]}.txt"
        raise UserError(f"--md5 {folder}: holds no checksum of these archives, such as {example}")
    return sums


def _compare(store: ArchiveStore, digest: str, sums: dict[str, str]) -> None:
    stated = sums.get(store.name)
    if stated is None:
        notice(f"{store.location}: has no checksum file; not checked")
    elif stated != digest:
        notice(
            f"{store.location}: its md5 is {digest}, its checksum file says {stated}; some of the official sums are "
            "wrong, so the build goes on: compare with another copy"
        )


class _Remembered:
    """What earlier scans found, in `MEMBERS_TABLE`: one row group an archive, and what each archive looked like."""

    def __init__(self, archives: dict[str, dict[str, Any]], tables: dict[str, pd.DataFrame]) -> None:
        self._archives = archives
        self._tables = tables

    @classmethod
    def load(cls, cache: Folder | None) -> "_Remembered":
        if cache is None or not cache.exists(MEMBERS_TABLE):
            return cls({}, {})
        try:
            table = pq.read_table(pa.BufferReader(cache.read(MEMBERS_TABLE)))
            archives = json.loads((table.schema.metadata or {})[b"archives"])
            frame = table.to_pandas()
            tables = {
                location: frame.iloc[archive["start"] : archive["start"] + archive["num_members"]]
                for location, archive in archives.items()
            }
        except (pa.ArrowException, KeyError, ValueError, TypeError):
            return cls({}, {})  # a cache: scanned again
        return cls(archives, tables)

    def members(self, store: ArchiveStore) -> pd.DataFrame | None:
        archive = self._archives.get(store.location)
        if archive is None or archive["stamp"] != _stamp(store):
            return None
        return self._tables[store.location].reset_index(drop=True)

    def is_checked(self, store: ArchiveStore) -> bool:
        return bool(self._archives[store.location]["md5"])

    def add(self, store: ArchiveStore, scanned: _Scanned) -> None:
        self._archives[store.location] = {"stamp": _stamp(store), "md5": scanned.md5 or ""}
        self._tables[store.location] = scanned.members

    def save(self, cache: Folder) -> None:
        start = 0
        for location, table in self._tables.items():
            self._archives[location] |= {"start": start, "num_members": len(table)}
            start += len(table)
        table = pa.Table.from_pandas(pd.concat(self._tables.values(), ignore_index=True), preserve_index=False)
        table = table.replace_schema_metadata({"archives": json.dumps(self._archives)})
        with cache.atomic(MEMBERS_TABLE) as file:
            file.write(parquet_bytes(table))


def _stamp(store: ArchiveStore) -> list[int]:
    """What changes when an archive does: its size, and on this machine its time of modification."""
    if isinstance(store.folder, LocalFolder):
        found = os.stat(store.location)
        return [found.st_size, found.st_mtime_ns]
    return [store.folder.size(store.name)]


def _read_bounded(path: str) -> bytes | Rejection:
    with open(path, "rb", buffering=0) as file:
        num_bytes = os.fstat(file.fileno()).st_size
        if num_bytes > MAX_IMAGE_BYTES:
            return Rejection("too-large", f"the file has {num_bytes:,} bytes, more than {MAX_IMAGE_BYTES:,}")
        return file.readall()
