"""Write what is published beside the shards: indexes, classes, rejects, the card; and make the manifest."""

import re
from dataclasses import dataclass
from functools import partial

import jinja2
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from lmk_data.dataset.format import (
    CARD,
    CLASSES,
    DROPPED_CLASSES,
    REJECTS,
    SPLITS,
    Counts,
    FileEntry,
    Manifest,
    SplitEntry,
    classes_schema,
    dropped_classes_schema,
    index_name,
    index_schema,
    parquet_bytes,
    rejects_schema,
    write_file,
)
from lmk_data.dataset.manifest import Provenance, make_manifest
from lmk_data.system.storage import Folder

# The licences of data on https://huggingface.co/docs/hub/repositories-licenses; the Hub takes others by their name.
_HUB_LICENSES = """
apache-2.0 mit afl-3.0 agpl-3.0 artistic-2.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc
cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0
cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0
cdla-permissive-2.0 cdla-sharing-1.0 ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 gfdl gpl gpl-2.0 gpl-3.0 isc
lgpl lgpl-2.1 lgpl-3.0 lgpl-lr lppl-1.3c mpl-2.0 ms-pl ncsa odbl odc-by ofl-1.1 openmdw-1.0 osl-3.0 pddl postgresql
unlicense wtfpl zlib unknown other
"""


# What begins HTML, links, pictures, code, tables, formulas, emphasis or a character reference; `_` in a word does not.
_MARKUP = re.compile(r"[\\`*\[\]<|~$]|(?<!\w)_|_(?!\w)|&(?=#?\w+;)")


@dataclass(frozen=True)
class BuiltShard:
    """A shard to publish: its name, its size, and the rows of its receipt (`receipt_schema`)."""

    name: str
    split: str
    num_samples: int
    num_bytes: int
    sha256: str
    rows: pa.Table


@dataclass(frozen=True)
class Publication:
    """What a dataset states that its shards do not.

    `counts` has listed, below_min_samples and outside_top; `classes` label, landmark_id, name, listed;
    `dropped` landmark_id, name, listed, reason.
    """

    provenance: Provenance
    counts: dict[str, int]
    classes: pd.DataFrame
    dropped: pd.DataFrame


def write_tables(folder: Folder, publication: Publication, shards: list[BuiltShard]) -> Manifest:
    """Write indexes, classes, rejects and the card; return the manifest that lists all files, still to be published.

    `shards` are in order of split and number.
    """
    landmark_id = landmark_id_type(publication.classes)
    splits, files = _write_indexes(folder, shards, landmark_id)
    rejects = _rejects(shards, landmark_id)
    classes = _count_classes(publication.classes, shards)
    dropped = publication.dropped[dropped_classes_schema(landmark_id).names]
    for name, table in {
        CLASSES: pa.Table.from_pandas(classes, classes_schema(landmark_id), preserve_index=False),
        DROPPED_CLASSES: pa.Table.from_pandas(dropped, dropped_classes_schema(landmark_id), preserve_index=False),
        REJECTS: rejects,
    }.items():
        files[name] = write_file(folder, name, parquet_bytes(table))
    counts: Counts = {
        "listed": publication.counts["listed"],
        "below_min_samples": publication.counts["below_min_samples"],
        "outside_top": publication.counts["outside_top"],
        "rejected": rejects.num_rows,
        "written": sum(split["num_samples"] for split in splits.values()),
    }
    manifest_of = partial(make_manifest, publication.provenance, counts, splits, len(classes))
    files[CARD] = write_file(folder, CARD, card(manifest_of(files), classes))
    return manifest_of(files)


def landmark_id_type(classes: pd.DataFrame) -> pa.DataType:
    """Return the Arrow type of the landmark ids of a table of classes."""
    return pa.int64() if pd.api.types.is_integer_dtype(classes["landmark_id"]) else pa.string()


def _write_indexes(
    folder: Folder, shards: list[BuiltShard], landmark_id: pa.DataType
) -> tuple[dict[str, SplitEntry], dict[str, FileEntry]]:
    """Write the index of each split; return the manifest's splits, and its files: indexes and shards."""
    splits: dict[str, SplitEntry] = {}
    files: dict[str, FileEntry] = {}
    for split in SPLITS:
        published = [shard for shard in shards if shard.split == split and shard.num_samples]
        if not published:
            folder.remove(index_name(split))
            continue
        files[index_name(split)] = write_file(folder, index_name(split), parquet_bytes(_index(published, landmark_id)))
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
    """Return the label index of a split: the written rows of its shards, in order."""
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
    """Return every planned image that was not written, in order of shard and position."""
    schema = rejects_schema(landmark_id)
    parts = [schema.empty_table()]
    for shard in shards:
        rows = shard.rows.filter(pc.is_valid(shard.rows["reason"]))
        split = pa.nulls(rows.num_rows, pa.string()).fill_null(shard.split)
        columns = {name: split if name == "split" else rows[name] for name in schema.names}
        parts.append(pa.table(columns).cast(schema))
    return pa.concat_tables(parts).combine_chunks()


def _count_classes(classes: pd.DataFrame, shards: list[BuiltShard]) -> pd.DataFrame:
    """Return the classes with the number of samples in each split, and of rejected images."""
    size = len(classes)
    counted = {name: np.zeros(size, dtype=np.int32) for name in (*SPLITS, "rejected")}
    for shard in shards:
        labels, rejected = shard.rows["label"].to_numpy(), pc.is_valid(shard.rows["reason"]).to_numpy()
        counted[shard.split] += np.bincount(labels[~rejected], minlength=size).astype(np.int32)
        counted["rejected"] += np.bincount(labels[rejected], minlength=size).astype(np.int32)
    table = classes[["label", "landmark_id", "name", "listed"]].assign(**counted)
    assert (table["listed"] == table[[*SPLITS, "rejected"]].sum(axis=1)).all(), "counts do not reconcile"
    return table


def _single_line(text: str) -> str:
    return "".join(character for character in " ".join(text.split()) if character.isprintable())


def markdown_line(text: str) -> str:
    """Return a text that came from outside as one line of Markdown that shows it: nothing in it is markup or HTML."""
    return _MARKUP.sub(r"\\\g<0>", _single_line(text))


def card(manifest: Manifest, classes: pd.DataFrame) -> bytes:
    """Return the dataset card: Hugging Face `configs`, how to read the dataset, licence, counts."""
    loader = jinja2.PackageLoader("lmk_data.build")
    environment = jinja2.Environment(loader=loader, trim_blocks=True, keep_trailing_newline=True, autoescape=False)  # noqa: S701
    # YAML does not combine escaped surrogates into one character, as JSON does.
    environment.filters["markdown"] = markdown_line
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False}
    first_split, first = next(iter(manifest["splits"].items()))
    text = environment.get_template("card.md").render(
        manifest=manifest,
        plan=manifest["plan"],
        recipe=manifest["recipe"],
        title=_single_line(manifest["title"]) or "Image shards",
        license=_single_line(manifest["license"]),
        hub_license=license_name if (license_name := manifest["license"].lower()) in _HUB_LICENSES.split() else "other",
        largest=int(classes["listed"].max()),
        smallest=int(classes["listed"].min()),
        first_split=first_split,
        first_shard=first["shards"][0]["name"],
    )
    return text.encode()
