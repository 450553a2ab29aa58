"""One shard: read its members in source order, resize them, write the tar atomically, then its receipt."""

import hashlib
import os
import tarfile
import warnings
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from lmk_data.errors import DatasetError
from lmk_data.files import atomic_file
from lmk_data.format import (
    BUILD_FOLDER,
    Recipe,
    Rejection,
    Resized,
    canonical_json,
    receipt_schema,
    shard_name,
    write_parquet,
)
from lmk_data.images import FolderStore
from lmk_data.resize import resize_image

PLAN_TABLE = f"{BUILD_FOLDER}/plan.parquet"
RECEIPTS_FOLDER = f"{BUILD_FOLDER}/receipts"
TEMPORARY_FOLDER = f"{BUILD_FOLDER}/unfinished"

# What webdataset's TarWriter writes with user="lmk", group="lmk", mtime=0 and its default mode.
_OWNER, _MODE = "lmk", 0o444
_READ_AHEAD = 16
_READING_THREADS = 2


@dataclass(frozen=True, slots=True)
class ShardTask:
    """All that a worker needs for one shard; the planned rows are row group `row_group` of the plan's table."""

    out: str
    split: str
    number: int
    row_group: int
    stores: tuple[FolderStore, ...]
    recipe: Recipe
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Receipt:
    """What is known of a finished shard; `sha256` is empty and `num_bytes` 0 when rejections left it empty."""

    split: str
    number: int
    num_planned: int
    num_samples: int
    num_bytes: int
    sha256: str
    reasons: dict[str, int]

    @property
    def name(self) -> str:
        """The shard's published name."""
        return shard_name(self.split, self.number)


class TarFile:
    """An uncompressed USTAR file in the making, byte for byte as webdataset's `TarWriter` writes it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self.num_bytes = 0

    def add(self, name: str, data: bytes) -> int:
        """Append one member; returns the offset of its payload in bytes."""
        header = tarfile.TarInfo(name)
        header.size, header.mode, header.uname, header.gname = len(data), _MODE, _OWNER, _OWNER
        self._write(header.tobuf(tarfile.USTAR_FORMAT))
        offset = self.num_bytes
        self._write(data + bytes(-len(data) % tarfile.BLOCKSIZE))
        return offset

    def close(self) -> str:
        """Write the end of the archive; returns the sha256 of the whole file."""
        end = 2 * tarfile.BLOCKSIZE
        self._write(bytes(end + -(self.num_bytes + end) % tarfile.RECORDSIZE))
        return self._digest.hexdigest()

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)
        self.num_bytes += len(data)


def build_shard(task: ShardTask) -> Receipt:
    """Build one shard and its receipt; the same task gives the same bytes wherever and however often it runs.

    Raises StorageError when the image storage fails, OSError when the output cannot be written.
    """
    planned = pq.ParquetFile(f"{task.out}/{PLAN_TABLE}").read_row_group(task.row_group).to_pylist()
    order = sorted(range(len(planned)), key=lambda i: (planned[i]["store"], planned[i]["source"]))
    outcomes: list[Resized | Rejection] = [Rejection("missing", "")] * len(planned)
    digests: list[tuple[int, bytes]] = [(0, b"")] * len(planned)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of odd metadata and sizes; what matters comes back as a reason
        for i, data in zip(order, _read_ahead([planned[i] for i in order], task.stores), strict=True):
            if isinstance(data, Rejection):
                outcomes[i] = data
            else:
                outcomes[i] = resize_image(data, task.recipe)
                digests[i] = len(data), hashlib.sha256(data).digest()
    return _write_shard(task, planned, outcomes, digests)


def read_receipt(out: Path, split: str, number: int, fingerprint: str) -> Receipt | None:
    """The receipt of a shard that this plan finished, or None if it is still to be built.

    A receipt of another plan, one that cannot be read, or one whose tar is gone or short does not count.
    """
    path = receipt_path(out, split, number)
    if not path.exists():
        return None
    try:
        metadata = pq.read_schema(path).metadata or {}
        stated = {key.decode(): value.decode() for key, value in metadata.items()}
        if stated.get("fingerprint") != fingerprint:
            return None
        receipt = _receipt(split, number, pq.read_table(path, columns=["reason"])["reason"].to_pylist(), stated)
    except (pa.ArrowException, OSError, ValueError, KeyError):
        return None
    if receipt.num_samples and not _has_size(out / receipt.name, receipt.num_bytes):
        return None
    return receipt


def receipt_path(out: Path, split: str, number: int) -> Path:
    """Where a shard's receipt lies."""
    return out / RECEIPTS_FOLDER / f"{split}-{number:06d}.parquet"


def read_receipt_table(out: Path, split: str, number: int) -> pa.Table:
    """The rows of a receipt: the shard's planned images, written or rejected."""
    path = receipt_path(out, split, number)
    try:
        return pq.read_table(path).replace_schema_metadata(None)
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"{path}: not a readable receipt; delete it and run the build again") from error


def _read_ahead(rows: list[dict[str, Any]], stores: tuple[FolderStore, ...]) -> Iterator[bytes | Rejection]:
    """The bytes of each row in order, read by threads a few images ahead of the decoder."""

    def read(row: dict[str, Any]) -> bytes | Rejection:
        if row["reason"]:
            return Rejection(row["reason"], "found in none of the image folders")
        store: FolderStore = stores[row["store"]]
        return store.read(row["source"])

    with ThreadPoolExecutor(_READING_THREADS) as pool:
        remaining = iter(rows)
        pending: deque[Future[bytes | Rejection]] = deque(
            pool.submit(read, row) for row in islice(remaining, _READ_AHEAD)
        )
        try:
            while pending:
                data = pending.popleft().result()
                if (row := next(remaining, None)) is not None:
                    pending.append(pool.submit(read, row))
                yield data
        finally:
            for future in pending:
                future.cancel()


def _write_shard(
    task: ShardTask,
    planned: list[dict[str, Any]],
    outcomes: list[Resized | Rejection],
    digests: list[tuple[int, bytes]],
) -> Receipt:
    """Write the tar (unless every image was rejected), then the receipt."""
    out, name = Path(task.out), shard_name(task.split, task.number)
    rows: list[dict[str, Any]] = []
    stated = {"fingerprint": task.fingerprint, "sha256": "", "num_bytes": "0"}
    if any(isinstance(outcome, Resized) for outcome in outcomes):
        with atomic_file(out / name, out / TEMPORARY_FOLDER) as file:
            tar = TarFile(file)
            position = 0
            for row, outcome, (num_bytes, digest) in zip(planned, outcomes, digests, strict=True):
                if isinstance(outcome, Resized):
                    rows.append(_add_sample(tar, row, outcome, position, num_bytes, digest))
                    position += 1
                else:
                    rows.append(_rejected_row(row, outcome))
            stated |= {"sha256": tar.close(), "num_bytes": str(tar.num_bytes)}
    else:
        rows = [
            _rejected_row(row, outcome)
            for row, outcome in zip(planned, outcomes, strict=True)
            if isinstance(outcome, Rejection)
        ]
        (out / name).unlink(missing_ok=True)
    landmark_id = pa.int64() if isinstance(planned[0]["landmark_id"], int) else pa.string()
    table = pa.Table.from_pylist(rows, receipt_schema(landmark_id)).replace_schema_metadata(stated)
    write_parquet(table, receipt_path(out, task.split, task.number))
    return _receipt(task.split, task.number, [row["reason"] for row in rows], stated)


def _add_sample(
    tar: TarFile, row: dict[str, Any], picture: Resized, position: int, num_bytes: int, digest: bytes
) -> dict[str, Any]:
    """Append the three members of a sample; returns its row of the receipt."""
    key, label = row["key"], row["label"]
    sample = {
        "key": key,
        "label": label,
        "landmark_id": row["landmark_id"],
        "original_height": picture.height,
        "original_width": picture.width,
    }
    tar.add(f"{key}.cls", str(label).encode())
    offset = tar.add(f"{key}.jpg", picture.jpeg)
    tar.add(f"{key}.json", canonical_json(sample))
    return sample | {
        "position": position,
        "jpg_offset": offset,
        "jpg_size": len(picture.jpeg),
        "original_bytes": num_bytes,
        "source": row["source"],
        "source_sha256": digest,
        "dhash": picture.dhash,
        "reason": None,
        "detail": None,
    }


def _rejected_row(row: dict[str, Any], rejection: Rejection) -> dict[str, Any]:
    kept = {name: row[name] for name in ("key", "label", "landmark_id", "source")}
    return kept | {"reason": rejection.reason, "detail": rejection.detail}


def _receipt(split: str, number: int, reasons: list[str | None], stated: dict[str, str]) -> Receipt:
    rejected = Counter(reason for reason in reasons if reason is not None)
    return Receipt(
        split=split,
        number=number,
        num_planned=len(reasons),
        num_samples=len(reasons) - rejected.total(),
        num_bytes=int(stated["num_bytes"]),
        sha256=stated["sha256"],
        reasons=dict(rejected),
    )


def _has_size(path: Path, num_bytes: int) -> bool:
    try:
        return os.stat(path).st_size == num_bytes
    except FileNotFoundError:
        return False
