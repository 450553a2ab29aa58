"""List the members of image stores: walk folders, scan archives once and cache the result."""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pyarrow as pa

from lmk_data.dataset.parquet_files import parquet_bytes, table_from
from lmk_data.errors import TooLargeError, UserError
from lmk_data.leftovers import MAY_BE_MISSED, REPLACED, LeftOut
from lmk_data.sources.archives import RAW, readable_name, scan_archive
from lmk_data.sources.stores import ArchiveStore, FolderStore, Store
from lmk_data.system.arrow import arrow_reader
from lmk_data.system.engine import LocalEngine
from lmk_data.system.parquet import TableLimits, read_parquet
from lmk_data.system.storage import MEMBERS_TABLE, Folder, LocalFolder, open_folder
from lmk_data.system.terminal import notice, progress_bar
from lmk_data.typed_text import shown

MEMBER_COLUMNS = ["store", "source", "offset", "num_bytes", "method", "crc32"]
_HASHED_AT_ONCE = 4 << 20
_MAX_BYTES = 2 << 30  # of the cached scans
_CACHED = TableLimits(max_rows=100_000_000, max_bytes=8 << 30)
_CHECKSUM_BYTES = 4096  # of a checksum file that are looked at


@dataclass(frozen=True, slots=True)
class Ignored:
    """Files or whole folders of the sources that are no images of the build: by which rule, how many, and one."""

    rule: str
    count: int
    example: str

    @property
    def may_be_missed(self) -> bool:
        """Whether these may be pictures that somebody wants, so that they are named even without a summary."""
        return self.rule in MAY_BE_MISSED

    def __str__(self) -> str:
        return f"{self.count:,} {self.rule}, such as {shown(self.example)}"


@dataclass(frozen=True)
class Members:
    """The files of all stores that may be images (`MEMBER_COLUMNS`), and what was left out."""

    frame: pd.DataFrame
    ignored: list[Ignored]


def read_members(
    stores: Sequence[Store], *, cache: Folder | None, md5: str | None = None, workers: int = 1, quiet: bool = True
) -> Members:
    """Return the members of all stores in order of the stores.

    What is left out by its name or kind is counted. Members of a folder have no place (offset -1).

    Args:
        stores: The stores; the column `store` (int16) holds their position in this sequence.
        cache: Folder in which scans of archives are cached. An archive that has not changed is not scanned again.
        md5: Folder of checksum files. An archive that does not match its checksum is named on stderr.
        workers: Number of processes that scan archives.
        quiet: Show no progress bar.
    """
    archives = [number for number, store in enumerate(stores) if isinstance(store, ArchiveStore)]
    scanned = _read_archives([stores[number] for number in archives], cache, md5, workers, quiet)
    listed = dict(zip(archives, scanned, strict=True))
    for number, store in enumerate(stores):
        if isinstance(store, FolderStore):
            listed[number] = _folder_members(store)
    tables = [listed[number].frame.assign(store=np.int16(number)) for number in range(len(stores))]
    ignored = add_up(entry for number in range(len(stores)) for entry in listed[number].ignored)
    return Members(pd.concat(tables, ignore_index=True)[MEMBER_COLUMNS], ignored)


def add_up(ignored: Iterable[Ignored]) -> list[Ignored]:
    """Return one entry for each rule, in order of the rules' first entries."""
    totals: dict[str, Ignored] = {}
    for entry in ignored:
        earlier = totals.get(entry.rule)
        totals[entry.rule] = replace(earlier, count=earlier.count + entry.count) if earlier else entry
    return list(totals.values())


def _folder_members(store: FolderStore) -> Members:
    left_out: LeftOut = []
    files = sorted([(readable_name(name), num_bytes) for name, num_bytes in store.members(left_out)])
    members = pd.DataFrame({"source": pd.Series([name for name, _ in files], dtype=object)})
    sizes = np.array([num_bytes for _, num_bytes in files], dtype=np.int64)
    members = members.assign(offset=np.int64(-1), num_bytes=sizes, method=np.int8(RAW), crc32=np.uint32(0))
    return Members(members, add_up(Ignored(rule, 1, readable_name(name)) for name, rule in sorted(left_out)))


@dataclass(frozen=True, slots=True)
class _Scan:
    """One archive to scan. `md5` is its expected checksum: empty if there is none, None if it is not to be checked."""

    number: int
    store: ArchiveStore
    md5: str | None


@dataclass(frozen=True)
class _Scanned:
    """The members of one archive, and its md5 if it was computed."""

    number: int
    members: Members
    md5: str | None


def _read_archives(
    stores: Sequence[Any], cache: Folder | None, md5: str | None, workers: int, quiet: bool
) -> list[Members]:
    """Return the members of each archive, from the cache if the archive has not changed."""
    if not stores:
        return []
    known = _ScanCache.load(cache)
    sums = _checksums(md5, stores) if md5 else {}
    members: dict[int, Members] = {}
    scans = []
    for number, store in enumerate(stores):
        cached = known.members(store)
        if cached is None or (md5 and not known.md5_of(store)):
            scans.append(_Scan(number, store, sums.get(store.name, "") if md5 else None))
        else:
            members[number] = cached
            if md5:
                _compare(store, known.md5_of(store), sums)
    with progress_bar(len(scans), "scanning", "archives", quiet=quiet or len(scans) < 2) as bar:
        for scanned in LocalEngine(workers).run(_scan, scans):
            members[scanned.number] = scanned.members
            known.add(stores[scanned.number], scanned)
            if scanned.md5 is not None:
                _compare(stores[scanned.number], scanned.md5, sums)
            bar.update()
    if scans and cache is not None:
        known.save(cache)
    return [members[number] for number in range(len(stores))]


def _scan(scan: _Scan) -> _Scanned:
    """Scan one archive, in a worker process."""
    store = scan.store
    with store.folder.open(store.name) as file:
        digest = None
        if scan.md5 is not None:
            md5 = hashlib.md5(usedforsecurity=False)
            while chunk := file.read(_HASHED_AT_ONCE):
                md5.update(chunk)
            digest = md5.hexdigest()
            file.seek(0)
        scanned = pd.DataFrame(scan_archive(file, store.kind, store.location), columns=[*MEMBER_COLUMNS[1:], "reason"])
    last = ~scanned["source"].duplicated(keep="last").to_numpy(dtype=bool)
    scanned["reason"] = scanned["reason"].where(last | (scanned["reason"] != ""), REPLACED)
    left_out = scanned[scanned["reason"] != ""]
    ignored = add_up(Ignored(rule, 1, name) for rule, name in zip(left_out["reason"], left_out["source"], strict=True))
    members = scanned.loc[scanned["reason"] == "", MEMBER_COLUMNS[1:]].reset_index(drop=True)
    kinds = {"offset": "int64", "num_bytes": "int64", "method": "int8", "crc32": "uint32"}
    return _Scanned(scan.number, Members(members.astype(kinds), ignored), digest)


def _checksums(folder: str, stores: Sequence[ArchiveStore]) -> dict[str, str]:
    """Return the md5 of each archive by its name, from `md5.<stem>.txt` (the names of CVDF) or `<name>.md5`."""
    files = open_folder(folder)
    names = set(files.files())
    sums = {}
    for store in stores:
        for candidate in (f"md5.{os.path.splitext(store.name)[0]}.txt", f"{store.name}.md5"):
            head = files.read_range(candidate, 0, _CHECKSUM_BYTES) if candidate in names else b""
            if found := re.search(rb"\b[0-9a-fA-F]{32}\b", head):
                sums[store.name] = found.group().decode().lower()
    if not sums:
        example = f"md5.{os.path.splitext(stores[0].name)[0]}.txt"
        raise UserError(f"--md5 {folder}: holds no checksum of these archives, such as {example}")
    return sums


def _compare(store: ArchiveStore, digest: str, sums: dict[str, str]) -> None:
    """Name an archive on stderr if it does not match its checksum or has none."""
    stated = sums.get(store.name)
    if stated is None:
        notice(f"{store.location}: has no checksum file; not checked")
    elif stated != digest:
        notice(
            f"{store.location}: its md5 is {digest}, its checksum file says {stated}; some of the official sums are "
            "wrong, so the build continues: compare with another copy"
        )


class _CachedScan(msgspec.Struct):
    """What the cache states of one archive.

    Attributes:
        stamp: of the archive when it was scanned.
        md5: its checksum; empty if it was not computed.
        start, num_members: which rows of the table are its members.
        ignored: the fields of each `Ignored`.
    """

    stamp: list[int]
    md5: str
    start: int
    num_members: int
    ignored: list[tuple[str, int, str]]


class _ScanCache:
    """The results of earlier scans in `MEMBERS_TABLE`: the members, and a `_CachedScan` of each archive beside them."""

    def __init__(self) -> None:
        self._scans: dict[str, _CachedScan] = {}
        self._members: dict[str, pd.DataFrame] = {}

    @classmethod
    def load(cls, cache: Folder | None) -> "_ScanCache":
        """Return what is cached; nothing if it is not readable."""
        if cache is None or not cache.exists(MEMBERS_TABLE):
            return cls()
        loaded = cls()
        try:
            table = read_parquet(arrow_reader(cache.read(MEMBERS_TABLE, _MAX_BYTES)), None, _CACHED)
            stated = (table.schema.metadata or {})[b"archives"]
            loaded._scans = msgspec.convert(json.loads(stated), dict[str, _CachedScan])
            frame = table.to_pandas()[MEMBER_COLUMNS[1:]]
            for location, scan in loaded._scans.items():
                if not 0 <= scan.start <= scan.start + scan.num_members <= len(frame):
                    raise ValueError("rows that are not there")
                rows = frame.iloc[scan.start : scan.start + scan.num_members]
                loaded._members[location] = rows.reset_index(drop=True)
        except (pa.ArrowException, msgspec.ValidationError, RecursionError, KeyError, ValueError, TooLargeError):
            return cls()
        return loaded

    def members(self, store: ArchiveStore) -> Members | None:
        """Return the members of an archive; None if it was not scanned as it is now."""
        scan = self._scans.get(store.location)
        if scan is None or scan.stamp != _stamp(store):
            return None
        return Members(self._members[store.location], [Ignored(*entry) for entry in scan.ignored])

    def md5_of(self, store: ArchiveStore) -> str:
        """Return the checksum of an archive that was scanned; empty if it was not computed."""
        return self._scans[store.location].md5

    def add(self, store: ArchiveStore, scanned: _Scanned) -> None:
        frame = scanned.members.frame
        ignored = [(entry.rule, entry.count, entry.example) for entry in scanned.members.ignored]
        self._scans[store.location] = _CachedScan(_stamp(store), scanned.md5 or "", 0, len(frame), ignored)
        self._members[store.location] = frame

    def save(self, cache: Folder) -> None:
        start = 0
        for location, frame in self._members.items():
            self._scans[location].start = start
            start += len(frame)
        table = table_from(pd.concat(self._members.values(), ignore_index=True))
        table = table.replace_schema_metadata({"archives": json.dumps(msgspec.to_builtins(self._scans))})
        with cache.atomic(MEMBERS_TABLE) as file:
            file.write(parquet_bytes(table))


def _stamp(store: ArchiveStore) -> list[int]:
    """Return what changes when an archive changes: its size and, for a local file, its modification time."""
    if isinstance(store.folder, LocalFolder):
        status = os.stat(store.location)
        return [status.st_size, status.st_mtime_ns]
    return [store.folder.size(store.name)]
