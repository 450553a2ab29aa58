"""One shard: read its members in source order, resize them, write the tar atomically, then its receipt."""

import hashlib
import json
import warnings
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lmk_data.dataset.format import Recipe, Rejection, Resized, parquet_bytes, receipt_schema, shard_name, write_file
from lmk_data.dataset.tar import TarFile, cls_bytes, json_bytes
from lmk_data.errors import BuildError, DatasetError
from lmk_data.resize import resize_image
from lmk_data.sources.archives import Place
from lmk_data.sources.stores import Store
from lmk_data.system.readahead import read_ahead
from lmk_data.system.storage import BUILD_FOLDER, Folder

PLAN_INPUTS = f"{BUILD_FOLDER}/plan.json"
PLAN_TABLE = f"{BUILD_FOLDER}/plan.parquet"
RECEIPTS_FOLDER = f"{BUILD_FOLDER}/receipts"
_PLANNED = ("key", "label", "landmark_id", "source")
_DETAILS = {
    "missing": "found in none of the image stores",
    "unsafe-path": "the path leads out of the image store",
}


@dataclass(frozen=True, slots=True)
class ShardTask:
    """All that a worker needs for one shard; the planned rows are row group `row_group` of the plan's table."""

    out: Folder
    split: str
    number: int
    row_group: int
    stores: tuple[Store, ...]
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


def build_shard(task: ShardTask) -> Receipt:
    """Build one shard and its receipt; the same task gives the same bytes wherever and however often it runs.

    Raises StorageError when the image storage fails, OSError when the output cannot be written.
    """
    with task.out.open(PLAN_TABLE) as file:
        planned = pq.ParquetFile(file).read_row_group(task.row_group).to_pylist()
    order = sorted(range(len(planned)), key=lambda i: [planned[i][name] for name in ("store", "offset", "source")])
    outcomes: list[Resized | Rejection] = [Rejection("missing", "")] * len(planned)
    rows: list[dict[str, Any]] = [{name: row[name] for name in _PLANNED} for row in planned]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of odd metadata and sizes; what matters comes back as a reason
        images = read_ahead(partial(_read, stores=task.stores), [planned[i] for i in order])
        for i, data in zip(order, images, strict=True):
            outcomes[i] = outcome = data if isinstance(data, Rejection) else resize_image(data, task.recipe)
            if isinstance(outcome, Rejection):
                rows[i] |= {"reason": outcome.reason, "detail": outcome.detail}
            else:
                assert isinstance(data, bytes)
                rows[i] |= _described(data, outcome)
    pictures = (outcome.jpeg for outcome in outcomes if isinstance(outcome, Resized))
    return write_shard(task.out, task.split, task.number, task.fingerprint, rows, pictures)


def write_shard(
    out: Folder, split: str, number: int, fingerprint: str, rows: list[dict[str, Any]], pictures: Iterator[bytes]
) -> Receipt:
    """Write a tar and its receipt; no tar if every row was rejected.

    `rows` are receipt rows without the places of the pictures, which this fills in; those with a `reason` have no
    picture. An earlier receipt goes first, so that it never vouches for another tar. Raises BuildError, and replaces
    nothing, once the folder holds another build: a worker may go on with a task of one that was given up.
    """
    name = shard_name(split, number)
    stated = {"fingerprint": fingerprint, "sha256": "", "num_bytes": "0"}
    _check_plan(out, fingerprint)
    out.remove(receipt_name(split, number))
    if any(row.get("reason") is None for row in rows):
        with out.atomic(name) as file:
            tar = TarFile(file)
            written = (row for row in rows if row.get("reason") is None)
            for position, (row, picture) in enumerate(zip(written, pictures, strict=True)):
                tar.add(f"{row['key']}.cls", cls_bytes(row))
                offset = tar.add(f"{row['key']}.jpg", picture)
                tar.add(f"{row['key']}.json", json_bytes(row))
                row |= {"position": position, "jpg_offset": offset, "jpg_size": len(picture)}
                row["jpg_crc32"] = zlib.crc32(picture)
            stated |= {"sha256": tar.close(), "num_bytes": str(tar.num_bytes)}
            _check_plan(out, fingerprint)
    else:
        out.remove(name)
    landmark_id = pa.int64() if isinstance(rows[0]["landmark_id"], int) else pa.string()
    table = pa.Table.from_pylist(rows, receipt_schema(landmark_id)).replace_schema_metadata(stated)
    _check_plan(out, fingerprint)
    write_file(out, receipt_name(split, number), parquet_bytes(table))
    return _receipt(split, number, [row.get("reason") for row in rows], stated)


def _check_plan(out: Folder, fingerprint: str) -> None:
    try:
        planned = json.loads(out.read(PLAN_INPUTS)).get("fingerprint")
    except (FileNotFoundError, ValueError):
        planned = None
    if planned != fingerprint:
        raise BuildError(f"{out.root}: another build began there; this one ends, run it again in another folder")


def _described(data: bytes, picture: Resized) -> dict[str, Any]:
    """What the index says of a picture beside its place."""
    return {
        "original_width": picture.width,
        "original_height": picture.height,
        "original_bytes": len(data),
        "source_sha256": hashlib.sha256(data).digest(),
        "dhash": picture.dhash,
    }


def read_receipt(out: Folder, split: str, number: int, fingerprint: str, sizes: Mapping[str, int]) -> Receipt | None:
    """The receipt of a shard that this plan finished, or None if it is still to be built.

    `sizes` are those of the shards that are there. A receipt of another plan or another lmk, one that cannot be
    read, or one whose tar is gone or short does not count.
    """
    try:
        file = pq.ParquetFile(pa.BufferReader(out.read(receipt_name(split, number))))
        if file.schema_arrow.names != receipt_schema(pa.int64()).names:
            return None
        table = file.read(columns=["reason"])
        stated = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
        if stated.get("fingerprint") != fingerprint:
            return None
        receipt = _receipt(split, number, table["reason"].to_pylist(), stated)
    except (FileNotFoundError, pa.ArrowException, ValueError, KeyError):
        return None
    if receipt.num_samples and sizes.get(receipt.name) != receipt.num_bytes:
        return None
    return receipt


def receipt_name(split: str, number: int) -> str:
    """Where a shard's receipt lies."""
    return f"{RECEIPTS_FOLDER}/{split}-{number:06d}.parquet"


def read_receipt_table(out: Folder, split: str, number: int, fingerprint: str) -> pa.Table:
    """The rows of a receipt of this plan: the shard's planned images, written or rejected."""
    name = receipt_name(split, number)
    try:
        table = pq.read_table(pa.BufferReader(out.read(name)))
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(
            f"{out.location(name)}: not a readable receipt; delete it and run the build again"
        ) from error
    if (table.schema.metadata or {}).get(b"fingerprint") != fingerprint.encode():
        raise DatasetError(f"{out.location(name)}: the receipt of another build; run the build again")
    return table.replace_schema_metadata(None)


def _read(row: dict[str, Any], stores: tuple[Store, ...]) -> bytes | Rejection:
    """The bytes of one planned image, or why there are none."""
    if row["reason"]:
        return Rejection(row["reason"], _DETAILS[row["reason"]])
    store: Store = stores[row["store"]]
    return store.read(row["source"], Place(row["offset"], row["num_bytes"], row["method"], row["crc32"]))


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
