"""One shard: read its images in source order, resize them, write the tar atomically, then its receipt."""

import hashlib
import json
import warnings
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lmk_data.build.crashes import Note
from lmk_data.dataset.columns import table_of
from lmk_data.dataset.format import Rejection, Resized, receipt_schema, shard_name, write_file
from lmk_data.dataset.parquet_files import parquet_bytes
from lmk_data.dataset.tar import TarFile, cls_bytes, json_bytes
from lmk_data.errors import BuildError, DeadWorkerError
from lmk_data.formats import MAX_IMAGE_BYTES
from lmk_data.options import Recipe
from lmk_data.resize import resize_image
from lmk_data.sources.archives import Place
from lmk_data.sources.stores import Store
from lmk_data.system.readahead import read_ahead
from lmk_data.system.storage import PLAN_INPUTS, PLAN_TABLE, RECEIPTS_FOLDER, Folder

_PLANNED = ("key", "label", "landmark_id", "source")
_DETAILS = {
    "missing": "found in none of the image stores",
    "unsafe-path": "the path leads out of the image store, or has a back slash or bytes that are not UTF-8",
}


@dataclass(frozen=True, slots=True)
class ShardPlace:
    """Where a shard goes: the folder, the split, its number there, and the fingerprint of the build it belongs to."""

    out: Folder
    split: str
    number: int
    fingerprint: str


@dataclass(frozen=True, slots=True)
class ShardTask:
    """What a worker needs to build a shard; its planned rows are row group `row_group` of the plan's table.

    `notes` is the folder for the note of the picture that the worker is at, None to write none. `crashed` has the
    pictures that end the process that decodes them, by key, and what is stated of each.
    """

    place: ShardPlace
    row_group: int
    stores: tuple[Store, ...]
    recipe: Recipe
    notes: str | None = None
    crashed: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Receipt:
    """A finished shard; `sha256` is empty and `num_bytes` 0 if every image was rejected.

    `reasons` counts the rejected images by reason.
    """

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
    """Build a shard and its receipt; the same task gives the same bytes wherever and however often it runs.

    Raises StorageError when the image storage fails, OSError when the output cannot be written, DeadWorkerError when a
    picture takes more memory than there is.
    """
    with task.place.out.open(PLAN_TABLE) as file:
        planned = pq.ParquetFile(file).read_row_group(task.row_group, use_threads=False).to_pylist()
    try:
        outcomes, described = _resize_all(task, planned)
    except MemoryError as error:
        raise DeadWorkerError("a worker ran out of memory; run again, perhaps with fewer --workers") from error
    rows = [{name: row[name] for name in _PLANNED} | described[row["key"]] for row in planned]
    in_order = (outcomes[row["key"]] for row in planned)
    return write_shard(task.place, rows, (outcome.jpeg for outcome in in_order if isinstance(outcome, Resized)))


def _resize_all(
    task: ShardTask, planned: list[dict[str, Any]]
) -> tuple[dict[str, Resized | Rejection], dict[str, dict[str, Any]]]:
    """Return what became of each planned image, and the columns that this adds to its row, by key."""
    in_source_order = sorted(planned, key=lambda row: [row[name] for name in ("store", "offset", "source")])
    outcomes: dict[str, Resized | Rejection] = {}
    described: dict[str, dict[str, Any]] = {}
    note = None if task.notes is None else Note(task.notes)
    with warnings.catch_warnings(), note or nullcontext():
        warnings.simplefilter("ignore")  # of Pillow, about odd metadata; what matters is returned as a rejection
        images: Iterator[bytes | Rejection] = read_ahead(partial(_read, task), in_source_order)
        for row, data in zip(in_source_order, images, strict=True):
            key = row["key"]
            if note is not None:
                note.at(key)
            outcomes[key] = outcome = data if isinstance(data, Rejection) else resize_image(data, task.recipe)
            described[key] = _described(data, outcome)
    return outcomes, described


def write_shard(place: ShardPlace, rows: Sequence[Mapping[str, Any]], pictures: Iterable[bytes]) -> Receipt:
    """Write a tar and its receipt, or only the receipt if every row was rejected.

    `rows` are receipt rows without the positions of the pictures, and are not changed; a row with a `reason` has no
    picture. An earlier receipt is removed first, so that it never vouches for another tar. Raises BuildError, and
    replaces nothing, once the folder holds another build: a worker may still run a task of a build that was given up.
    """
    out, name = place.out, shard_name(place.split, place.number)
    _check_plan(place)
    out.remove(receipt_name(place.split, place.number))
    sha256, num_bytes = "", 0
    if any(row.get("reason") is None for row in rows):
        with out.atomic(name) as file:
            tar = TarFile(file)
            rows = _write_samples(tar, rows, pictures)
            sha256, num_bytes = tar.close(), tar.num_bytes
            _check_plan(place)
    else:
        out.remove(name)
    stated = {"fingerprint": place.fingerprint, "sha256": sha256, "num_bytes": str(num_bytes)}
    landmark_id = pa.int64() if isinstance(rows[0]["landmark_id"], int) else pa.string()
    table = table_of(rows, receipt_schema(landmark_id)).replace_schema_metadata(stated)
    _check_plan(place)
    write_file(out, receipt_name(place.split, place.number), parquet_bytes(table))
    return receipt_of(place.split, place.number, [row.get("reason") for row in rows], stated)


def _write_samples(
    tar: TarFile, rows: Sequence[Mapping[str, Any]], pictures: Iterable[bytes]
) -> list[Mapping[str, Any]]:
    """Write the samples of the rows that were not rejected; return all rows, with the place of each picture."""
    written = [row for row in rows if row.get("reason") is None]
    placed: dict[str, Mapping[str, Any]] = {}
    for position, (row, picture) in enumerate(zip(written, pictures, strict=True)):
        tar.add(f"{row['key']}.cls", cls_bytes(row))
        offset = tar.add(f"{row['key']}.jpg", picture)
        tar.add(f"{row['key']}.json", json_bytes(row))
        where = {"position": position, "jpg_offset": offset, "jpg_size": len(picture)}
        placed[row["key"]] = {**row, **where, "jpg_crc32": zlib.crc32(picture)}
    return [placed.get(row["key"], row) for row in rows]


def _check_plan(place: ShardPlace) -> None:
    """Raise BuildError unless the folder still belongs to the shard's build."""
    try:
        planned = json.loads(place.out.read(PLAN_INPUTS)).get("fingerprint")
    except (FileNotFoundError, ValueError):
        planned = None
    if planned != place.fingerprint:
        root = place.out.root
        raise BuildError(f"{root}: another build began there; this one ends, run it again in another folder")


def _described(data: bytes | Rejection, outcome: Resized | Rejection) -> dict[str, Any]:
    """Return the columns that an image adds to its row: what the index states of it, or why it was rejected."""
    if isinstance(data, Rejection) or isinstance(outcome, Rejection):
        return asdict(outcome)
    return {
        "original_width": outcome.width,
        "original_height": outcome.height,
        "original_bytes": len(data),
        "source_sha256": hashlib.sha256(data).digest(),
        "dhash": outcome.dhash,
    }


def receipt_name(split: str, number: int) -> str:
    """Return the name of a shard's receipt, relative to the dataset."""
    return f"{RECEIPTS_FOLDER}/{split}-{number:06d}.parquet"


def _read(task: ShardTask, row: dict[str, Any], max_bytes: int) -> bytes | Rejection | None:
    """Return the bytes of a planned image, or why there are none; None if it is not read as it has too many."""
    if row["reason"]:
        return Rejection(row["reason"], _DETAILS[row["reason"]])
    if row["key"] in task.crashed:
        return Rejection("crash", task.crashed[row["key"]])
    store: Store = task.stores[row["store"]]
    place = Place(row["offset"], row["num_bytes"], row["method"], row["crc32"])
    data = store.read(row["source"], place, min(max_bytes, MAX_IMAGE_BYTES))
    is_over = isinstance(data, Rejection) and data.reason == "too-large"
    return None if is_over and max_bytes < MAX_IMAGE_BYTES else data


def receipt_of(split: str, number: int, reasons: list[str | None], stated: dict[str, str]) -> Receipt:
    """Return the receipt of a shard from why each planned image was rejected, if so, and what its file states."""
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
