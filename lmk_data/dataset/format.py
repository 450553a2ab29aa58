"""The contract in code: names, schemas, the version, canonical JSON, and the records that cross boundaries.

docs/format.md describes the dataset on disk; whatever is written or read there is declared here, once.
"""

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from typing import Any, Literal, NotRequired, TypedDict

import pyarrow as pa
import pyarrow.parquet as pq

from lmk_data.system.storage import Folder

FORMAT_NAME = "lmk-shards"
FORMAT_VERSION = 1
MANIFEST = "dataset.json"
CLASSES = "classes.parquet"
DROPPED_CLASSES = "dropped_classes.parquet"
REJECTS = "rejects.parquet"
CARD = "README.md"
REPORT_FOLDER = "report"
SPLITS = ("train", "val", "test")
Split = Literal["train", "val", "test"]
Fit = Literal["squash", "crop", "pad"]
Subsampling = Literal["4:2:0", "4:4:4"]
Dialect = Literal["wids", "timm", "dali", "energon", "croissant"]
REJECT_REASONS = (
    "missing",
    "empty",
    "not-an-image",
    "unsupported-format",
    "truncated",
    "corrupt",
    "too-large",
    "unsafe-path",
)
DROP_REASONS = ("below-min-samples", "outside-top")
MANY_ABOVE, FEW_BELOW = 100, 20  # training images of a class: many-shot, medium-shot and few-shot classes
KEY_PATTERN = r"(?!__)[A-Za-z0-9_-]{1,80}"  # Hugging Face datasets leaves out members that begin with __
_KEY = re.compile(KEY_PATTERN)
_ROW_GROUP_ROWS = 131_072


@dataclass(frozen=True, slots=True)
class Encoder:
    """What decodes and encodes: the libraries, and the `revision` of `resize`, which uses them.

    Another one may write other bytes, so it is in the recipe.
    """

    revision: int
    distribution: str
    version: str
    libjpeg_turbo: str
    simplejpeg: str
    codecs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one picture becomes one stored JPEG; `max_pixels` bounds what is decoded at all."""

    size: int = 224
    fit: Fit = "squash"
    quality: int = 90
    subsampling: Subsampling = "4:2:0"
    filter: str = "bicubic"
    exif_transpose: bool = True
    max_pixels: int = 100_000_000


@dataclass(frozen=True, slots=True)
class Resized:
    """A stored picture: the JPEG, the source's width and height after orientation (pixels), its perceptual hash."""

    jpeg: bytes
    width: int
    height: int
    dhash: int


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why a planned image was not written: one of `REJECT_REASONS`, and what the decoder or the storage said."""

    reason: str
    detail: str


class ShardEntry(TypedDict):
    """One published tar in the manifest."""

    name: str
    num_samples: int
    num_bytes: int


class SplitEntry(TypedDict):
    """One split in the manifest; a split without a sample has none."""

    num_samples: int
    num_bytes: int
    index: str
    shards: list[ShardEntry]


class FileEntry(TypedDict):
    """Hash and size of one published file."""

    sha256: str
    num_bytes: int


class Manifest(TypedDict):
    """dataset.json."""

    format: str
    version: int
    fingerprint: str
    content_sha256: str
    title: str
    license: str
    source: dict[str, Any]
    plan: dict[str, Any]
    recipe: dict[str, Any]
    counts: dict[str, int]
    splits: dict[str, SplitEntry]
    classes: dict[str, Any]
    files: dict[str, FileEntry]
    view_of: NotRequired[dict[str, Any]]


def shard_name(split: str, number: int) -> str:
    """The published name of a shard, relative to the dataset: `shards/train/train-000000.tar`."""
    return f"shards/{split}/{split}-{number:06d}.tar"


def index_name(split: str) -> str:
    """The label index of a split, relative to the dataset."""
    return f"index/{split}.parquet"


def canonical_json(value: Any) -> bytes:
    """Canonical JSON of plain values: sorted keys, compact, UTF-8; equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def fingerprint_of(inputs: dict[str, Any]) -> str:
    """The sha256 of canonical JSON as 64 hex digits: two builds may share a folder only if it is the same."""
    return hashlib.sha256(canonical_json(inputs)).hexdigest()


def content_sha256_of(files: dict[str, FileEntry]) -> str:
    """One hash over the sorted (path, sha256) of all published files; views, caches and checkpoints bind to it."""
    return hashlib.sha256(canonical_json([[path, files[path]["sha256"]] for path in sorted(files)])).hexdigest()


def make_key(name: str) -> str:
    """A WebDataset key for an image id or relative path: itself where it is safe, else a slug and a hash of it."""
    if _KEY.fullmatch(name):
        return name
    stem = name.rsplit(".", 1)[0] if "." in name.rsplit("/", 1)[-1] else name
    slug = re.sub(r"[^A-Za-z0-9_-]+", "-", stem).strip("-_")[:60]
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    return f"{slug or 'image'}-{digest}"


def is_safe_key(key: str) -> bool:
    """Whether a key has the documented form."""
    return _KEY.fullmatch(key) is not None


def recipe_json(recipe: Recipe, encoder: Encoder) -> dict[str, Any]:
    """The manifest's `recipe`."""
    return {**asdict(recipe), "encoder": {**asdict(encoder), "codecs": list(encoder.codecs)}}


def classes_schema(landmark_id: pa.DataType) -> pa.Schema:
    """classes.parquet: one row per class kept, in order of its dense label."""
    counts = [(name, pa.int32()) for name in ("listed", *SPLITS, "rejected")]
    return pa.schema([("label", pa.int32()), ("landmark_id", landmark_id), ("name", pa.string()), *counts])


def dropped_classes_schema(landmark_id: pa.DataType) -> pa.Schema:
    """dropped_classes.parquet: one row per class that the rule left out."""
    return pa.schema(
        [("landmark_id", landmark_id), ("name", pa.string()), ("listed", pa.int32()), ("reason", pa.string())]
    )


def index_schema(landmark_id: pa.DataType) -> pa.Schema:
    """index/<split>.parquet: one row per sample, in shard order."""
    return pa.schema(
        [
            ("key", pa.string()),
            ("label", pa.int32()),
            ("landmark_id", landmark_id),
            ("shard", pa.dictionary(pa.int32(), pa.string())),
            ("position", pa.int32()),
            ("jpg_offset", pa.int64()),
            ("jpg_size", pa.int32()),
            ("jpg_crc32", pa.uint32()),
            ("original_width", pa.int32()),
            ("original_height", pa.int32()),
            ("original_bytes", pa.int32()),
            ("source", pa.string()),
            ("source_sha256", pa.binary(32)),
            ("dhash", pa.uint64()),
        ]
    )


def rejects_schema(landmark_id: pa.DataType) -> pa.Schema:
    """rejects.parquet: one row per planned image that was not written."""
    return pa.schema(
        [
            ("key", pa.string()),
            ("source", pa.string()),
            ("landmark_id", landmark_id),
            ("label", pa.int32()),
            ("split", pa.string()),
            ("reason", pa.string()),
            ("detail", pa.string()),
        ]
    )


def receipt_schema(landmark_id: pa.DataType) -> pa.Schema:
    """A shard's receipt: its planned rows, each with what the index needs or with the reason of its rejection."""
    planned = [field for field in index_schema(landmark_id) if field.name != "shard"]
    return pa.schema([*planned, pa.field("reason", pa.string()), pa.field("detail", pa.string())])


def parquet_bytes(table: pa.Table, row_group_rows: int = _ROW_GROUP_ROWS) -> bytes:
    """A table as a Parquet file whose bytes depend on its content alone (and on pyarrow's version)."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", row_group_size=row_group_rows)
    return bytes(sink.getvalue())


def write_file(folder: Folder, name: str, data: bytes) -> FileEntry:
    """Write a file atomically and durably; returns its hash and size for the manifest."""
    with folder.atomic(name) as file:
        file.write(data)
    return {"sha256": hashlib.sha256(data).hexdigest(), "num_bytes": len(data)}
