"""Files, tars and zips of known content, and how the package finds and reads them."""

import hashlib
import io
import tarfile
import zipfile
from pathlib import Path

import pandas as pd

from lmk_data.dataset.format import Rejection
from lmk_data.formats import MAX_IMAGE_BYTES
from lmk_data.sources.archives import Place
from lmk_data.sources.locate import Located, locate
from lmk_data.sources.members import read_members
from lmk_data.sources.stores import Store, open_stores


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content(name))


def content(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest() * 40


def write_tar(path: Path, members: dict[str, bytes], kind: int = tarfile.PAX_FORMAT) -> None:
    with tarfile.open(path, "w", format=kind) as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def write_zip(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def found(ids: list[str], *paths: Path | str) -> tuple[list[Store], Located]:
    stores = open_stores([str(path) for path in paths])
    return stores, locate(pd.DataFrame({"id": ids}), stores, lambda: read_members(stores, cache=None))


def read(stores: list[Store], row: "pd.Series[object]", max_bytes: int = MAX_IMAGE_BYTES) -> bytes | Rejection:
    place = Place(*(int(row[name]) for name in ("offset", "num_bytes", "method", "crc32")))  # type: ignore[call-overload]
    return stores[int(row["store"])].read(str(row["source"]), place, max_bytes)  # type: ignore[call-overload]
