"""A dataset on disk: publish it, open it, read it by its index."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lmk_data.errors import DatasetError
from lmk_data.files import remove_durably, sha256_file, write_bytes
from lmk_data.format import (
    CARD,
    CLASSES,
    DROPPED_CLASSES,
    FORMAT_NAME,
    FORMAT_VERSION,
    MANIFEST,
    REJECTS,
    SPLITS,
    FileEntry,
    Manifest,
    Recipe,
    ShardEntry,
    SplitEntry,
    canonical_json,
    classes_schema,
    content_sha256_of,
    dropped_classes_schema,
    index_name,
    index_schema,
    recipe_of,
    rejects_schema,
    write_parquet,
)

if TYPE_CHECKING:
    import webdataset

_MAX_MANIFEST_BYTES = 256 << 20
_VERIFY_HINT = "run `lmk-shard verify` to see what is damaged"


@dataclass(frozen=True)
class BuiltShard:
    """A shard to publish: where it is, what it weighs, and its receipt's rows (`receipt_schema`)."""

    name: str
    split: str
    num_samples: int
    num_bytes: int
    sha256: str
    rows: pa.Table


@dataclass(frozen=True)
class Publication:
    """All that a manifest states beside what the shards say themselves.

    `counts` has listed, below_min_samples and outside_top; `classes` label, landmark_id, name, listed;
    `dropped` landmark_id, name, listed, reason.
    """

    fingerprint: str
    title: str
    license: str
    source: dict[str, Any]
    plan: dict[str, Any]
    recipe: dict[str, Any]
    counts: dict[str, int]
    classes: pd.DataFrame
    dropped: pd.DataFrame


@dataclass(frozen=True, slots=True)
class Sample:
    """One stored sample: its key, dense label, landmark id, and the JPEG's bytes."""

    key: str
    label: int
    landmark_id: int | str
    jpeg: bytes


def publish(out: Path, publication: Publication, shards: list[BuiltShard]) -> Manifest:
    """Write indexes, classes, rejects, card and, last, the manifest: from then on the dataset is whole.

    `shards` are in order of split and number. An earlier manifest is removed first.
    """
    remove_durably(out / MANIFEST)
    landmark_id = pa.int64() if pd.api.types.is_integer_dtype(publication.classes["landmark_id"]) else pa.string()
    splits, files = _publish_splits(out, shards, landmark_id)
    rejects = _rejects(shards, landmark_id)
    classes = _count_classes(publication.classes, shards)
    write_parquet(rejects, out / REJECTS)
    write_parquet(pa.Table.from_pandas(classes, classes_schema(landmark_id), preserve_index=False), out / CLASSES)
    dropped = publication.dropped[dropped_classes_schema(landmark_id).names]
    write_parquet(
        pa.Table.from_pandas(dropped, dropped_classes_schema(landmark_id), preserve_index=False), out / DROPPED_CLASSES
    )
    written = sum(split["num_samples"] for split in splits.values())
    manifest: Manifest = {
        "format": FORMAT_NAME,
        "version": FORMAT_VERSION,
        "fingerprint": publication.fingerprint,
        "content_sha256": "",
        "title": publication.title,
        "license": publication.license,
        "source": publication.source,
        "plan": publication.plan,
        "recipe": publication.recipe,
        "counts": {**publication.counts, "rejected": rejects.num_rows, "written": written},
        "splits": splits,
        "classes": {"path": CLASSES, "num_classes": len(classes)},
        "files": files,
    }
    write_bytes(out / CARD, _card(manifest, classes).encode())
    for name in [CLASSES, DROPPED_CLASSES, REJECTS, CARD, *(split["index"] for split in splits.values())]:
        files[name] = {"sha256": sha256_file(out / name), "num_bytes": (out / name).stat().st_size}
    manifest["content_sha256"] = content_sha256_of(files)
    write_bytes(out / MANIFEST, canonical_json(manifest) + b"\n")
    return manifest


def read_manifest(path: Path) -> Manifest:
    """Parse a manifest and check that this version of the code can read it.

    Raises DatasetError that says what is wrong and what to do.
    """
    try:
        if path.stat().st_size > _MAX_MANIFEST_BYTES:
            raise DatasetError(f"{path}: {path.stat().st_size:,} bytes is no manifest")
        manifest = json.loads(path.read_bytes())
    except FileNotFoundError:
        where = "the build is not finished, run it again" if (path.parent / ".build").exists() else "not a dataset"
        raise DatasetError(f"{path}: no such file: {where}") from None
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{path}: not JSON ({error}); build the dataset again") from None
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read: {error.strerror}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT_NAME:
        raise DatasetError(f"{path}: not the manifest of a dataset of shards (its format is not {FORMAT_NAME!r})")
    if manifest.get("version") != FORMAT_VERSION:
        stated = manifest.get("version")
        raise DatasetError(f"{path}: format version {stated!r}, this lmk reads {FORMAT_VERSION}; install another lmk")
    _check_shape(path, manifest)
    return cast(Manifest, manifest)


class ShardedDataset:
    """A published dataset, opened for reading.

    >>> dataset = ShardedDataset.open("shards")
    >>> dataset.classes.head()                  # label, landmark_id, name, listed, train, val, test, rejected
    >>> sample = dataset.read("train", 0)       # key, label, landmark_id, jpeg
    >>> for sample in dataset.samples("val"): ...
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        self._descriptors: dict[str, int] = {}
        self._columns: dict[str, dict[str, Any]] = {}

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Open a dataset and check that it is whole: its version, every shard's size, and that counts agree.

        Raises DatasetError that names the file and says what to do.
        """
        root = Path(path)
        dataset = cls(root, read_manifest(root / MANIFEST))
        dataset._check_shards()
        dataset._check_counts()
        return dataset

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits that have samples, in the order train, val, test."""
        return tuple(split for split in SPLITS if split in self.manifest["splits"])

    @property
    def num_classes(self) -> int:
        """K: dense labels are 0..K-1."""
        return int(self.manifest["classes"]["num_classes"])

    @property
    def recipe(self) -> Recipe:
        """How each picture was made; pictures to predict on are made the same way."""
        return recipe_of(self.manifest["recipe"])

    @cached_property
    def classes(self) -> pd.DataFrame:
        """classes.parquet: one row per class in order of its label."""
        return self._read_parquet(CLASSES).to_pandas()

    def __len__(self) -> int:
        """Samples in all splits together."""
        return sum(split["num_samples"] for split in self.manifest["splits"].values())

    def num_samples(self, split: str) -> int:
        """Samples in one split, 0 if the dataset has no such split."""
        entry = self.manifest["splits"].get(split)
        return entry["num_samples"] if entry else 0

    def shards(self, split: str) -> list[ShardEntry]:
        """The manifest's shards of one split."""
        return self._split(split)["shards"]

    def index_table(self, split: str, columns: list[str] | None = None) -> pa.Table:
        """The label index of one split as an Arrow table, one row per sample in shard order."""
        return self._read_parquet(self._split(split)["index"], columns)

    def index(self, split: str, columns: list[str] | None = None) -> pd.DataFrame:
        """The label index of one split as a DataFrame."""
        return self.index_table(split, columns).to_pandas()

    def rejects(self) -> pd.DataFrame:
        """rejects.parquet: every planned image that was not written, with its reason."""
        return self._read_parquet(REJECTS).to_pandas()

    def dropped_classes(self) -> pd.DataFrame:
        """dropped_classes.parquet: the classes that the rule left out."""
        return self._read_parquet(DROPPED_CLASSES).to_pandas()

    def shard_path(self, name: str) -> Path:
        """Where a shard lies."""
        return self.path / name

    def read(self, split: str, i: int) -> Sample:
        """Sample `i` (0-based, in shard order) of a split, by one read at its offset."""
        columns = self._sample_columns(split)
        jpeg = self.read_bytes(columns["shard"][i], int(columns["jpg_offset"][i]), int(columns["jpg_size"][i]))
        return Sample(columns["key"][i], int(columns["label"][i]), columns["landmark_id"][i], jpeg)

    def samples(self, split: str) -> Iterator[Sample]:
        """Every sample of a split in shard order."""
        for i in range(self.num_samples(split)):
            yield self.read(split, i)

    def read_bytes(self, shard: str, offset: int, num_bytes: int) -> bytes:
        """`num_bytes` of a shard at `offset`; DatasetError if the shard ends before."""
        descriptor = self._descriptors.get(shard)
        if descriptor is None:
            descriptor = self._descriptors[shard] = os.open(self.shard_path(shard), os.O_RDONLY | os.O_CLOEXEC)
        data = os.pread(descriptor, num_bytes, offset)
        if len(data) != num_bytes:
            raise DatasetError(f"{self.shard_path(shard)}: ends within the sample at {offset}; {_VERIFY_HINT}")
        return data

    def webdataset(self, split: str) -> "webdataset.WebDataset":
        """A ready webdataset pipeline over the split's shards, in shard order and undecoded."""
        import webdataset

        urls = [str(self.shard_path(shard["name"])) for shard in self.shards(split)]
        return webdataset.WebDataset(urls, shardshuffle=False)

    def close(self) -> None:
        """Close the shards that reading opened."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _split(self, split: str) -> SplitEntry:
        entry = self.manifest["splits"].get(split)
        if entry is None:
            raise DatasetError(f"{self.path}: no split {split!r}; it has {', '.join(self.splits)}")
        return entry

    def _sample_columns(self, split: str) -> dict[str, Any]:
        if split not in self._columns:
            table = self.index_table(split, ["key", "label", "landmark_id", "shard", "jpg_offset", "jpg_size"])
            self._columns[split] = {name: table[name].to_pandas().array for name in table.column_names}
        return self._columns[split]

    def _read_parquet(self, name: str, columns: list[str] | None = None) -> pa.Table:
        try:
            return pq.read_table(self.path / name, columns=columns)
        except (pa.ArrowException, OSError) as error:
            reason = str(error).splitlines()[0]
            raise DatasetError(f"{self.path / name}: cannot be read ({reason}); {_VERIFY_HINT}") from error

    def _check_shards(self) -> None:
        """Every shard is there at its full size, by listing each folder once."""
        for split in self.splits:
            entries = {shard["name"]: shard["num_bytes"] for shard in self.shards(split)}
            sizes: dict[str, int] = {}
            for folder in {os.path.dirname(name) for name in entries}:
                if (self.path / folder).is_dir():
                    with os.scandir(self.path / folder) as found:
                        sizes |= {f"{folder}/{entry.name}": entry.stat().st_size for entry in found if entry.is_file()}
            for name, num_bytes in entries.items():
                if name not in sizes:
                    raise DatasetError(
                        f"{self.path / name}: shard is missing; copy it again or build the dataset again"
                    )
                if sizes[name] != num_bytes:
                    stated = f"{sizes[name]:,} bytes instead of {num_bytes:,}"
                    raise DatasetError(f"{self.path / name}: {stated}; copy it again or build the dataset again")

    def _check_counts(self) -> None:
        """The manifest, the indexes and the classes state the same numbers."""
        classes = self.classes
        if len(classes) != self.num_classes:
            raise DatasetError(f"{self.path / CLASSES}: {len(classes)} classes, the manifest says {self.num_classes}")
        for split in SPLITS:
            stated, counted = self.num_samples(split), int(classes[split].sum())
            if stated != counted:
                raise DatasetError(f"{self.path / CLASSES}: {counted} {split} samples, the manifest says {stated}")
            if stated and (rows := self._num_rows(self._split(split)["index"])) != stated:
                raise DatasetError(f"{self.path / index_name(split)}: {rows} rows, the manifest says {stated}")

    def _num_rows(self, name: str) -> int:
        try:
            return int(pq.read_metadata(self.path / name).num_rows)
        except (pa.ArrowException, OSError) as error:
            raise DatasetError(
                f"{self.path / name}: cannot be read; copy it again or build the dataset again"
            ) from error


def _check_shape(path: Path, manifest: dict[str, Any]) -> None:
    """The parts that reading relies on are there, and no name leads out of the dataset's folder."""
    try:
        names = [manifest["classes"]["path"]]
        for split, entry in manifest["splits"].items():
            names += [entry["index"], *(shard["name"] for shard in entry["shards"])]
            counted = sum(shard["num_samples"] for shard in entry["shards"])
            if split not in SPLITS or counted != entry["num_samples"]:
                raise DatasetError(f"{path}: the shards of split {split!r} do not add up to {entry['num_samples']}")
        recipe_of(manifest["recipe"])
        int(manifest["classes"]["num_classes"])
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise DatasetError(f"{path}: damaged manifest ({error!r}); build the dataset again") from None
    for name in names:
        if not isinstance(name, str) or name.startswith("/") or ".." in name.split("/") or "\\" in name or "\0" in name:
            raise DatasetError(f"{path}: the name {name!r} leads out of the dataset; do not trust this dataset")


def _publish_splits(
    out: Path, shards: list[BuiltShard], landmark_id: pa.DataType
) -> tuple[dict[str, SplitEntry], dict[str, FileEntry]]:
    """Write each split's index; returns the manifest's splits, and the shards' part of its files."""
    splits: dict[str, SplitEntry] = {}
    files: dict[str, FileEntry] = {}
    for split in SPLITS:
        published = [shard for shard in shards if shard.split == split and shard.num_samples]
        path = out / index_name(split)
        if not published:
            path.unlink(missing_ok=True)
            continue
        path.parent.mkdir(exist_ok=True)
        write_parquet(_index(published, landmark_id), path)
        splits[split] = {
            "num_samples": sum(shard.num_samples for shard in published),
            "num_bytes": sum(shard.num_bytes for shard in published),
            "index": index_name(split),
            "shards": [
                {"name": shard.name, "num_samples": shard.num_samples, "num_bytes": shard.num_bytes}
                for shard in published
            ],
        }
        for shard in published:
            files[shard.name] = {"sha256": shard.sha256, "num_bytes": shard.num_bytes}
    return splits, files


def _index(shards: list[BuiltShard], landmark_id: pa.DataType) -> pa.Table:
    """The label index of one split: the written rows of its shards, in order."""
    schema = index_schema(landmark_id)
    names = pa.array([shard.name for shard in shards], pa.string())
    parts = []
    for number, shard in enumerate(shards):
        rows = shard.rows.filter(pc.is_null(shard.rows["reason"]))
        codes = pa.array([number], pa.int32()).take(pa.nulls(rows.num_rows, pa.int32()).fill_null(0))
        column = pa.DictionaryArray.from_arrays(codes, names)
        columns = {name: column if name == "shard" else rows[name] for name in schema.names}
        parts.append(pa.table(columns).cast(schema))
    return pa.concat_tables(parts).combine_chunks()


def _rejects(shards: list[BuiltShard], landmark_id: pa.DataType) -> pa.Table:
    """Every planned image that was not written, in order of shard and place."""
    schema = rejects_schema(landmark_id)
    parts = [schema.empty_table()]
    for shard in shards:
        rows = shard.rows.filter(pc.is_valid(shard.rows["reason"]))
        split = pa.nulls(rows.num_rows, pa.string()).fill_null(shard.split)
        columns = {name: split if name == "split" else rows[name] for name in schema.names}
        parts.append(pa.table(columns).cast(schema))
    return pa.concat_tables(parts).combine_chunks()


def _count_classes(classes: pd.DataFrame, shards: list[BuiltShard]) -> pd.DataFrame:
    """Classes with the samples that each split really holds, and the rejected ones."""
    size = len(classes)
    counted = {name: pd.Series(0, index=range(size), dtype="int32") for name in (*SPLITS, "rejected")}
    for shard in shards:
        labels = shard.rows["label"].to_numpy()
        rejected = shard.rows["reason"].is_valid().to_numpy()
        counted[shard.split] += pd.Series(labels[~rejected]).value_counts().reindex(range(size), fill_value=0)
        counted["rejected"] += pd.Series(labels[rejected]).value_counts().reindex(range(size), fill_value=0)
    table = classes[["label", "landmark_id", "name", "listed"]].assign(**counted)
    assert (table["listed"] == table[[*SPLITS, "rejected"]].sum(axis=1)).all(), "counts do not reconcile"
    return table


def _card(manifest: Manifest, classes: pd.DataFrame) -> str:
    """The dataset card: Hugging Face `configs`, how to read it, licence, counts."""
    title = " ".join(manifest["title"].split()) or "Image shards"
    counts, recipe, plan = manifest["counts"], manifest["recipe"], manifest["plan"]
    files = "\n".join(f"      - split: {split}\n        path: shards/{split}/*.tar" for split in manifest["splits"])
    rows = "\n".join(
        f"| {split} | {entry['num_samples']:,} | {len(entry['shards'])} | {entry['num_bytes'] / 1e6:,.1f} |"
        for split, entry in manifest["splits"].items()
    )
    license_yaml = f"license: {json.dumps(manifest['license'])}\n" if manifest["license"] else ""
    return f"""---
pretty_name: {json.dumps(title)}
{license_yaml}task_categories:
  - image-classification
configs:
  - config_name: default
    data_files:
{files}
---

# {title}

{counts["written"]:,} images of {len(classes):,} classes, from {int(classes["listed"].max()):,} images in a class down to
{int(classes["listed"].min()):,}, resized once to {recipe["size"]}x{recipe["size"]} pixels ({recipe["fit"]}, {recipe["filter"]}, JPEG quality {recipe["quality"]},
{recipe["subsampling"]}) and stored as WebDataset shards, globally shuffled. Licence: {manifest["license"] or "not stated"}.

| split | images | shards | MB |
|---|---|---|---|
{rows}

Kept: classes with at least {plan["min_samples"]} images{f", the {plan['top']:,} largest" if plan["top"] else ""}. Of {counts["listed"]:,} images listed,
{counts["below_min_samples"]:,} were in smaller classes, {counts["outside_top"]:,} outside the largest, and {counts["rejected"]:,} could not be read.

## What is here

- `shards/<split>/*.tar`: plain WebDataset tars; a sample is `<key>.cls` (the dense label), `<key>.jpg`, `<key>.json`.
- `index/<split>.parquet`: one row per sample, with its label, shard and the offset of its JPEG in the tar.
- `classes.parquet`: one row per class, with its landmark id, name, and count in each split.
- `rejects.parquet`, `dropped_classes.parquet`: what was left out, and why.
- `dataset.json`: the manifest, with the hash of every file.

## Reading it

    import webdataset as wds                                    # any WebDataset reader
    samples = wds.WebDataset("shards/train/train-000000.tar", shardshuffle=False).decode("pil").to_tuple("jpg", "cls")

    from datasets import load_dataset                           # Hugging Face datasets
    dataset = load_dataset("path/to/this/folder", split="train")

    import pandas as pd                                         # the labels alone
    index = pd.read_parquet("index/train.parquet")

    from lmk_data.dataset import ShardedDataset                 # by offset, without torch
    sample = ShardedDataset.open("path/to/this/folder").read("train", 0)
"""
