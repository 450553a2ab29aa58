"""The format in code: file names, schemas, the version, canonical JSON, and the records that modules exchange.

docs/format.md describes the dataset on disk. Everything that is written or read there is declared here, once.
"""

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import pyarrow as pa
from msgspec import Meta

from lmk_data.options import Recipe
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
MARKED_SIZE = "counted"  # a column of classes.parquet: images that the base lists, after marks
Split = Literal["train", "val", "test"]
REJECT_REASONS = (
    "missing",
    "empty",
    "not-an-image",
    "unsupported-format",
    "truncated",
    "corrupt",
    "too-large",
    "unsafe-path",
    "crash",
)
DROP_REASONS = ("below-min-samples", "outside-top")
MANY_ABOVE, FEW_BELOW = 100, 20  # training images of a class: many-shot, medium-shot and few-shot classes
KEY_PATTERN = r"(?!__)[A-Za-z0-9_-]{1,80}"  # Hugging Face datasets ignores members that begin with __
_KEY = re.compile(KEY_PATTERN)


@dataclass(frozen=True, slots=True)
class Encoder:
    """The libraries that decode and encode, and the `revision` of `resize`, which calls them.

    Another encoder may write other bytes, so it is part of the recipe.
    """

    revision: int
    distribution: str
    version: str
    libjpeg_turbo: str
    simplejpeg: str
    codecs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Resized:
    """A stored picture: the JPEG, width and height of the source after orientation (pixels), the perceptual hash."""

    jpeg: bytes
    width: int
    height: int
    dhash: int


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why a planned image was not written: one of `REJECT_REASONS`, and the message of the decoder or the storage."""

    reason: str
    detail: str


Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Ratio = Annotated[float, Meta(ge=0, le=1)]
Sha256 = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]


class ShardEntry(TypedDict):
    """One published tar in the manifest."""

    name: str
    num_samples: Count
    num_bytes: Count


class SplitEntry(TypedDict):
    """One split in the manifest; a split without samples has no entry."""

    num_samples: Count
    num_bytes: Count
    index: str
    shards: list[ShardEntry]


class FileEntry(TypedDict):
    """Hash and size of one published file."""

    sha256: Sha256
    num_bytes: Count


class Counts(TypedDict):
    """How many images were listed, and what became of them: `listed` is the sum of the others."""

    listed: Count
    below_min_samples: Count
    outside_top: Count
    rejected: Count
    written: Count


class ClassesEntry(TypedDict):
    """The file of the classes, and how many there are."""

    path: str
    num_classes: Count


class ClassList(TypedDict):
    """A list of classes that a selection was given: its length, and the hash of the sorted ids."""

    num_classes: Count
    sha256: Sha256


class MarkList(TypedDict):
    """The marks that a selection was given: how many of each kind, and the hash of keys, actions and classes."""

    num_excluded: Count
    num_relabelled: Count
    sha256: Sha256


class KeyList(TypedDict):
    """A list of keys that a selection was given: its length, and the hash of the sorted keys."""

    num_keys: Count
    sha256: Sha256


class SelectionStep(TypedDict, total=False):
    """The rules of one selection; those that were not given are missing."""

    marks: MarkList
    exclude: KeyList
    include: KeyList
    classes: ClassList
    min_samples: Count
    top: Count
    drop_duplicates: Literal["exact", "near"]
    max_per_class: Count


class Removed(TypedDict):
    """How many classes, and samples of each split, selections removed.

    Of these samples, `marked` are those that marks or lists of keys removed, `duplicates` the duplicates.
    """

    classes: Count
    train: Count
    val: Count
    test: Count
    marked: NotRequired[dict[str, Count]]
    duplicates: NotRequired[dict[str, Count]]


class Relabelled(TypedDict):
    """How many samples of each split carry another class than in the base, and the hash of their keys and classes."""

    train: Count
    val: Count
    test: Count
    sha256: Sha256


class SubsetOrigin(TypedDict):
    """The dataset that a subset was selected from, the selections that led to it, and what they removed."""

    content_sha256: Sha256
    selection: list[SelectionStep]
    removed: Removed
    relabelled: NotRequired[Relabelled]


class ViewOrigin(SubsetOrigin):
    """The origin of a view, and the folder of the dataset that holds its shards: relative to the view, or a URL."""

    path: str


class SourceEntry(TypedDict):
    """The label table that a dataset was built from; a copy also states what it was selected from."""

    labels: str
    labels_sha256: Sha256
    layout: str
    num_images: Count
    num_classes: Count
    conflicting: Count
    duplicate_rows: Count
    id_column: NotRequired[str | None]
    label_column: NotRequired[str | None]
    subset_of: NotRequired[SubsetOrigin]


class PlanEntry(TypedDict):
    """The rule that decided classes, splits and shards; `split` is the share of each split that it asked for."""

    min_samples: Count
    top: Count | None
    split: dict[str, Ratio]
    seed: Count
    samples_per_shard: Count


class Manifest(TypedDict):
    """The content of dataset.json. `read_manifest` checks it against these types and bounds.

    `recipe` has the fields of `Recipe`, and `encoder` with those of `Encoder`. Readers ignore fields that are not
    declared.
    """

    format: str
    version: Count
    fingerprint: Sha256
    content_sha256: Sha256
    title: str
    license: str
    source: SourceEntry
    plan: PlanEntry
    recipe: dict[str, Any]
    counts: Counts
    splits: dict[str, SplitEntry]
    classes: ClassesEntry
    files: dict[str, FileEntry]
    view_of: NotRequired[ViewOrigin]


def shard_name(split: str, number: int) -> str:
    """Return the published name of a shard, relative to the dataset, such as `shards/train/train-000000.tar`."""
    return f"shards/{split}/{split}-{number:06d}.tar"


def index_name(split: str) -> str:
    """Return the name of the label index of a split, relative to the dataset."""
    return f"index/{split}.parquet"


def canonical_json(value: Any) -> bytes:
    """Return plain values as canonical JSON (sorted keys, compact, UTF-8): equal values give equal bytes.

    Raises ValueError for what JSON cannot hold: NaN, infinities and lone surrogates.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def fingerprint_of(inputs: dict[str, Any]) -> str:
    """Return the sha256 of canonical JSON as 64 hex digits: builds may share a folder only if theirs are equal."""
    return hashlib.sha256(canonical_json(inputs)).hexdigest()


def content_sha256_of(files: dict[str, FileEntry]) -> str:
    """Return the hash of the sorted (path, sha256) of all published files, to which views and checkpoints bind."""
    return hashlib.sha256(canonical_json([[path, files[path]["sha256"]] for path in sorted(files)])).hexdigest()


def make_key(name: str) -> str:
    """Return the WebDataset key of an image id or relative path: itself if it is safe, else a slug and a hash."""
    if _KEY.fullmatch(name):
        return name
    stem = name.rsplit(".", 1)[0] if "." in name.rsplit("/", 1)[-1] else name
    slug = re.sub(r"[^A-Za-z0-9_-]+", "-", stem).strip("-_")[:60]
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    return f"{slug or 'image'}-{digest}"


def is_safe_key(key: str) -> bool:
    """Return whether a key has the documented form."""
    return _KEY.fullmatch(key) is not None


def recipe_json(recipe: Recipe, encoder: Encoder) -> dict[str, Any]:
    """Return the manifest's `recipe`."""
    return {**asdict(recipe), "encoder": {**asdict(encoder), "codecs": list(encoder.codecs)}}


def classes_schema(landmark_id: pa.DataType, *, is_marked: bool = False) -> pa.Schema:
    """Return the schema of classes.parquet: one row per class kept, in order of dense labels.

    A view that `is_marked` also states the size by which further selections choose classes.
    """
    counts = [(name, pa.int32()) for name in ("listed", *SPLITS, "rejected", *([MARKED_SIZE] if is_marked else []))]
    return pa.schema([("label", pa.int32()), ("landmark_id", landmark_id), ("name", pa.string()), *counts])


def dropped_classes_schema(landmark_id: pa.DataType) -> pa.Schema:
    """Return the schema of dropped_classes.parquet: one row per class that the rule left out."""
    return pa.schema(
        [("landmark_id", landmark_id), ("name", pa.string()), ("listed", pa.int32()), ("reason", pa.string())]
    )


def index_schema(landmark_id: pa.DataType) -> pa.Schema:
    """Return the schema of index/<split>.parquet: one row per sample, in shard order."""
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
    """Return the schema of rejects.parquet: one row per planned image that was not written."""
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
    """Return the schema of a shard's receipt: one row per planned image, with its index columns or its rejection."""
    planned = [field for field in index_schema(landmark_id) if field.name != "shard"]
    return pa.schema([*planned, pa.field("reason", pa.string()), pa.field("detail", pa.string())])


def write_file(folder: Folder, name: str, data: bytes) -> FileEntry:
    """Write a file atomically and durably; return its hash and size for the manifest."""
    with folder.atomic(name) as file:
        file.write(data)
    return {"sha256": hashlib.sha256(data).hexdigest(), "num_bytes": len(data)}
