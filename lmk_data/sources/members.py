"""What the image stores hold: folders are walked, archives scanned once and remembered."""

import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from lmk_data.dataset.format import parquet_bytes
from lmk_data.errors import UserError
from lmk_data.sources.archives import RAW, readable_name, scan_archive
from lmk_data.sources.stores import ArchiveStore, FolderStore, Store
from lmk_data.system.engine import LocalEngine
from lmk_data.system.storage import MEMBERS_TABLE, Folder, LocalFolder, open_folder
from lmk_data.system.terminal import notice, progress_bar

MEMBER_COLUMNS = ["store", "source", "offset", "num_bytes", "method", "crc32"]
_IGNORED_NAMES = {"thumbs.db"}
_HASHED_AT_ONCE = 4 << 20


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


def _folder_members(store: FolderStore) -> pd.DataFrame:
    found = sorted((readable_name(name), num_bytes) for name, num_bytes in store.members())
    members = pd.DataFrame({"source": pd.Series([name for name, _ in found], dtype=object)})
    sizes = np.array([num_bytes for _, num_bytes in found], dtype=np.int64)
    return members.assign(offset=np.int64(-1), num_bytes=sizes, method=np.int8(RAW), crc32=np.uint32(0))


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
        members = pd.DataFrame(scan_archive(file, store.kind, store.location), columns=MEMBER_COLUMNS[1:])
    members = members.drop_duplicates("source", keep="last", ignore_index=True)
    kinds = {"offset": "int64", "num_bytes": "int64", "method": "int8", "crc32": "uint32"}
    return _Scanned(scan.number, members.astype(kinds), digest)


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
