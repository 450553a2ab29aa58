"""Write what is published beside the shards: indexes, classes, rejects, the card; and make the manifest."""

import re
from collections.abc import Callable, Iterator
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
    rejects_schema,
    write_file,
)
from lmk_data.dataset.manifest import Provenance, make_manifest
from lmk_data.dataset.parquet_files import parquet_bytes, table_from, write_table
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
    """A shard to publish: its name, its size, and what reads the rows of its receipt (`receipt_schema`)."""

    name: str
    split: str
    num_samples: int
    num_bytes: int
    sha256: str
    read_rows: Callable[[], pa.Table]


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

    `shards` are in order of split and number. The rows of one row group are in memory at a time.
    """
    landmark_id = landmark_id_type(publication.classes)
    tally = _Tally(len(publication.classes), landmark_id)
    splits, files = _write_indexes(folder, shards, landmark_id, tally)
    rejects, classes = tally.rejects(), tally.count(publication.classes)
    dropped = publication.dropped[dropped_classes_schema(landmark_id).names]
    for name, table in {
        CLASSES: table_from(classes, classes_schema(landmark_id)),
        DROPPED_CLASSES: table_from(dropped, dropped_classes_schema(landmark_id)),
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


class _Tally:
    """What the rows of all shards add up to: samples of each class in each split, and every rejected image."""

    def __init__(self, num_classes: int, landmark_id: pa.DataType) -> None:
        self._schema = rejects_schema(landmark_id)
        self._rejects = [self._schema.empty_table()]
        self._counted = {name: np.zeros(num_classes, dtype=np.int32) for name in (*SPLITS, "rejected")}

    def add(self, split: str, rows: pa.Table) -> None:
        """Count the rows of a shard's receipt; shards are given in order."""
        labels, rejected = rows["label"].to_numpy(), pc.is_valid(rows["reason"])
        for name, mask in ((split, pc.invert(rejected).to_numpy()), ("rejected", rejected.to_numpy())):
            counted = self._counted[name]
            counted += np.bincount(labels[mask], minlength=len(counted)).astype(np.int32)
        rows = rows.filter(rejected)
        column = pa.nulls(rows.num_rows, pa.string()).fill_null(split)
        columns = {name: column if name == "split" else rows[name] for name in self._schema.names}
        self._rejects.append(pa.table(columns).cast(self._schema))

    def rejects(self) -> pa.Table:
        """Return every planned image that was not written, in order of shard and position."""
        return pa.concat_tables(self._rejects).combine_chunks()

    def count(self, classes: pd.DataFrame) -> pd.DataFrame:
        """Return the classes with the number of samples in each split, and of rejected images."""
        table = classes[["label", "landmark_id", "name", "listed"]].assign(**self._counted)
        assert (table["listed"] == table[[*SPLITS, "rejected"]].sum(axis=1)).all(), "counts do not reconcile"
        return table


def _write_indexes(
    folder: Folder, shards: list[BuiltShard], landmark_id: pa.DataType, tally: _Tally
) -> tuple[dict[str, SplitEntry], dict[str, FileEntry]]:
    """Write the index of each split; return the manifest's splits, and its files: indexes and shards."""
    splits: dict[str, SplitEntry] = {}
    files: dict[str, FileEntry] = {}
    for split in SPLITS:
        of_split = [shard for shard in shards if shard.split == split]
        published = [shard for shard in of_split if shard.num_samples]
        parts = _index_parts(of_split, [shard.name for shard in published], landmark_id, tally)
        if not published:
            for _ in parts:  # what was rejected counts
                pass
            folder.remove(index_name(split))
            continue
        files[index_name(split)] = write_table(folder, index_name(split), index_schema(landmark_id), parts)
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


def _index_parts(
    shards: list[BuiltShard], published: list[str], landmark_id: pa.DataType, tally: _Tally
) -> Iterator[pa.Table]:
    """Count the rows of each shard of a split, and yield those that were written, as rows of the index.

    `published` are the names of the shards that have a tar, in order.
    """
    schema, names = index_schema(landmark_id), pa.array(published, pa.string())
    number_of = {name: number for number, name in enumerate(published)}
    for shard in shards:
        rows = shard.read_rows()
        tally.add(shard.split, rows)
        if shard.name in number_of:
            rows = rows.filter(pc.is_null(rows["reason"]))
            codes = pa.array([number_of[shard.name]], pa.int32()).take(pa.nulls(rows.num_rows, pa.int32()).fill_null(0))
            column = pa.DictionaryArray.from_arrays(codes, names)
            columns = {name: column if name == "shard" else rows[name] for name in schema.names}
            yield pa.table(columns).cast(schema)


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
