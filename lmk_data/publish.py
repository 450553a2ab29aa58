"""Publish what was built: indexes, classes, rejects, card and, last, the manifest."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

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
    SplitEntry,
    canonical_json,
    classes_schema,
    content_sha256_of,
    dropped_classes_schema,
    index_name,
    index_schema,
    rejects_schema,
    write_parquet,
)


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
    dropped_table = pa.Table.from_pandas(dropped, dropped_classes_schema(landmark_id), preserve_index=False)
    write_parquet(dropped_table, out / DROPPED_CLASSES)
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
    loader = jinja2.PackageLoader("lmk_data")
    environment = jinja2.Environment(loader=loader, trim_blocks=True, keep_trailing_newline=True, autoescape=False)  # noqa: S701
    first_split, first = next(iter(manifest["splits"].items()))
    return environment.get_template("card.md").render(
        manifest=manifest,
        plan=manifest["plan"],
        recipe=manifest["recipe"],
        title=" ".join(manifest["title"].split()) or "Image shards",
        largest=int(classes["listed"].max()),
        smallest=int(classes["listed"].min()),
        first_split=first_split,
        first_shard=first["shards"][0]["name"],
    )
