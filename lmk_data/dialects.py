"""What other tools want to find beside the tars, written from the index: wids, timm, DALI, Energon and Croissant."""

import os
import sqlite3
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.compute as pc
from tqdm import tqdm

from lmk_data.dataset import ShardedDataset
from lmk_data.errors import DatasetError, UserError
from lmk_data.format import CLASSES, Dialect, ShardEntry, canonical_json, content_sha256_of, index_name, write_file
from lmk_data.storage import LocalFolder, open_folder
from lmk_data.tar import BLOCK_BYTES, end_of_members, sample_members

_COLUMNS = ["key", "label", "landmark_id", "original_width", "original_height", "jpg_offset", "jpg_size"]


class Exported(NamedTuple):
    """A folder that a tool takes as it is, and the files in it that are not the dataset's."""

    folder: Path
    written: list[str]


def export(dataset: ShardedDataset, dialect: Dialect, out: str, *, quiet: bool = False) -> Exported:
    """Write a folder in another tool's dialect: that tool's files, and the dataset's tars as hard links.

    The links take no space. The same export may be made again over itself, also after an interruption. Raises
    UserError for a view, for a dataset behind a URL, and for an `out` that holds something else or lies on another
    file system.
    """
    if dataset.is_view:
        raise UserError(
            f"{dataset.location}: a view, whose tars hold another dataset's labels; "
            "`lmk-shard subset --copy` makes a dataset of it, which can be exported"
        )
    folder = open_folder(out)
    if not isinstance(folder, LocalFolder):
        raise UserError(f"{out}: an export is made of hard links; give a folder of this machine, then upload it")
    if Path(folder.root).resolve().is_relative_to(dataset.shard_path(".").resolve()):
        raise UserError(f"--out {out}: lies within the dataset, where other tools would read it; choose another folder")
    linked = _linked_files(dataset, dialect)
    files = _FILES[dialect](dataset)
    _check_out(folder, {*linked, *files})
    for name in linked:
        _link(dataset.shard_path(name), Path(folder.location(name)))
    for name, write in tqdm(files.items(), desc=dialect, unit=" files", disable=True if quiet else None):
        write(folder, name)
    folder.sweep()
    return Exported(Path(folder.root), sorted(files))


_Write = Callable[[LocalFolder, str], object]


class _Index:
    """The label index by shard; each split is read once."""

    def __init__(self, dataset: ShardedDataset) -> None:
        self._tables = {split: dataset.index_table(split, _COLUMNS) for split in dataset.splits}
        for split, table in self._tables.items():
            if pc.min(table["jpg_offset"]).as_py() < 3 * BLOCK_BYTES or pc.min(table["jpg_size"]).as_py() < 0:
                where = dataset.folder.location(index_name(split))
                raise DatasetError(f"{where}: not of these tars; run `lmk-shard verify`")
        self._places: dict[str, tuple[str, int, int]] = {}
        for split in dataset.splits:
            start = 0
            for shard in dataset.shards(split):
                self._places[shard["name"]] = (split, start, shard["num_samples"])
                start += shard["num_samples"]

    def rows(self, shard: str) -> list[dict[str, Any]]:
        """The rows that describe one shard, in its order."""
        split, start, number = self._places[shard]
        rows: list[dict[str, Any]] = self._tables[split].slice(start, number).to_pylist()
        return rows


def _wids(dataset: ShardedDataset) -> dict[str, _Write]:
    """One descriptor per split."""
    title = dataset.manifest["title"] or "shards"
    return {
        f"{split}.json": _json(
            {
                "__kind__": "wids-shard-index-v1",
                "wids_version": 1,
                "name": f"{title} {split}",
                "shardlist": [
                    {"url": shard["name"], "nsamples": shard["num_samples"], "filesize": shard["num_bytes"]}
                    for shard in dataset.shards(split)
                ],
            }
        )
        for split in dataset.splits
    }


def _timm(dataset: ShardedDataset) -> dict[str, _Write]:
    """`_info.json`, which timm looks for in the root."""
    splits = {
        split: {
            "name": split,
            "filenames": [shard["name"] for shard in dataset.shards(split)],
            "shard_lengths": [shard["num_samples"] for shard in dataset.shards(split)],
            "num_samples": dataset.num_samples(split),
        }
        for split in dataset.splits
    }
    return {"_info.json": _json({"splits": splits})}


def _dali(dataset: ShardedDataset) -> dict[str, _Write]:
    """An `.idx` beside each tar, as `wds2idx` writes it."""
    index = _Index(dataset)

    def write(folder: LocalFolder, name: str) -> None:
        shard = f"{name.removesuffix('.idx')}.tar"
        lines = []
        for row in index.rows(shard):
            members = sample_members(row)
            lines.append(
                " ".join(f"{m.extension} {m.offset} {m.num_bytes} {row['key']}.{m.extension}" for m in members)
            )
        write_file(folder, name, "\n".join([f"v1.2 {len(lines)}", *lines, ""]).encode())

    return {f"{shard['name'].removesuffix('.tar')}.idx": write for shard in _all_shards(dataset)}


def _energon(dataset: ShardedDataset) -> dict[str, _Write]:
    """`.nv-meta` and a `.tar.idx` beside each tar, as `energon prepare` writes them."""
    index = _Index(dataset)

    def write_offsets(folder: LocalFolder, name: str) -> None:
        starts, end = [], 0
        for row in index.rows(name.removesuffix(".idx")):
            members = sample_members(row)
            starts.append(members[0].offset - BLOCK_BYTES)
            end = end_of_members(members)
        write_file(folder, name, struct.pack(f"<{len(starts) + 1}Q", *starts, end))

    sample = {"__module__": "megatron.energon", "__class__": "ImageClassificationSample"}
    counts = {shard["name"]: shard["num_samples"] for shard in _all_shards(dataset)}
    shards = list(counts)
    splits = {split: [shard["name"] for shard in dataset.shards(split)] for split in dataset.splits}
    # YAML takes JSON as it is.
    return {
        **{f"{shard}.idx": write_offsets for shard in shards},
        ".nv-meta/.info.json": _json({"energon_version": "7.4.1", "shard_counts": counts}),
        ".nv-meta/split.yaml": _json({"split_parts": splits, "exclude": []}),
        ".nv-meta/dataset.yaml": _json({"sample_type": sample, "field_map": {"image": "jpg", "label": "cls"}}),
        ".nv-meta/index.sqlite": lambda folder, name: _write_energon_index(shards, index, folder, name),
        ".nv-meta/index.uuid": lambda folder, name: write_file(folder, name, _uuid(dataset).encode()),
    }


def _write_energon_index(shards: list[str], index: _Index, folder: LocalFolder, name: str) -> None:
    """The tables by which Energon finds any sample and any part of one."""
    with folder.atomic(name) as file, sqlite3.connect(file.name) as database:
        database.executescript(
            """
            PRAGMA journal_mode = OFF;
            PRAGMA synchronous = OFF;
            CREATE TABLE samples (
                tar_file_id INTEGER NOT NULL, sample_key TEXT NOT NULL UNIQUE, sample_index INTEGER NOT NULL,
                byte_offset INTEGER, byte_size INTEGER);
            CREATE TABLE sample_parts (
                tar_file_id INTEGER, sample_index INTEGER, part_name TEXT,
                content_byte_offset INTEGER, content_byte_size INTEGER);
            """
        )
        for number, shard in enumerate(shards):
            samples, parts = [], []
            for position, row in enumerate(index.rows(shard)):
                members = sample_members(row)
                start = members[0].offset - BLOCK_BYTES
                samples.append((number, row["key"], position, start, end_of_members(members) - start))
                parts += [(number, position, m.extension, m.offset, m.num_bytes) for m in members]
            database.executemany("INSERT INTO samples VALUES (?, ?, ?, ?, ?)", samples)
            database.executemany("INSERT INTO sample_parts VALUES (?, ?, ?, ?, ?)", parts)
        database.executescript(
            """
            CREATE INDEX idx_samples_by_tar_and_idx ON samples (tar_file_id, sample_index);
            CREATE INDEX idx_sample_parts_seq ON sample_parts (tar_file_id, sample_index, content_byte_offset);
            CREATE INDEX idx_sample_parts_full
                ON sample_parts (tar_file_id, sample_index, part_name, content_byte_offset, content_byte_size);
            """
        )
    database.close()


def _croissant(dataset: ShardedDataset) -> dict[str, _Write]:
    """`croissant.json`: every file with its hash, and one record set per split of pictures with their labels."""
    manifest = dataset.manifest
    files = [name for name in sorted(manifest["files"]) if name in set(_linked_files(dataset, "croissant"))]
    document = {
        "@context": _CROISSANT_CONTEXT,
        "@type": "sc:Dataset",
        "name": manifest["title"] or "Image shards",
        "description": (
            f"{len(dataset):,} images of {dataset.num_classes:,} classes, {dataset.recipe.size}x{dataset.recipe.size} "
            "pixels, as WebDataset tars with Parquet label indexes."
        ),
        "conformsTo": "http://mlcommons.org/croissant/1.1",
        "version": "1.0.0",
        **({"license": manifest["license"]} if manifest["license"] else {}),
        "distribution": [
            *(_croissant_file(name, manifest["files"][name]) for name in files),
            *(_croissant_pictures(split, dataset.shards(split)) for split in dataset.splits),
        ],
        "recordSet": [_croissant_classes(), *(_croissant_samples(split) for split in dataset.splits)],
    }
    return {"croissant.json": _json(document)}


def _croissant_file(name: str, entry: Any) -> dict[str, Any]:
    return {
        "@type": "cr:FileObject",
        "@id": name,
        "name": name.replace("/", "-"),
        "contentUrl": name,
        "contentSize": f"{entry['num_bytes']} B",
        "encodingFormat": "application/x-tar" if name.endswith(".tar") else "application/x-parquet",
        "sha256": entry["sha256"],
    }


def _croissant_pictures(split: str, shards: list[ShardEntry]) -> dict[str, Any]:
    return {
        "@type": "cr:FileSet",
        "@id": f"{split}-pictures",
        "name": f"{split}-pictures",
        "containedIn": [{"@id": shard["name"]} for shard in shards],
        "encodingFormat": "image/jpeg",
        "includes": "*.jpg",
    }


def _croissant_classes() -> dict[str, Any]:
    def field(column: str, kind: str) -> dict[str, Any]:
        source = {"fileObject": {"@id": CLASSES}, "extract": {"column": column}}
        return {
            "@type": "cr:Field",
            "@id": f"classes/{column}",
            "name": column,
            "dataType": kind,
            "source": source,
        }

    return {
        "@type": "cr:RecordSet",
        "@id": "classes",
        "name": "classes",
        "key": {"@id": "classes/label"},
        "field": [field("label", "sc:Integer"), field("landmark_id", "sc:Text"), field("name", "sc:Text")],
    }


def _croissant_samples(split: str) -> dict[str, Any]:
    """Pictures joined with their rows of the index by the key, which is the file's name in the tar."""
    index, pictures = {"@id": f"index/{split}.parquet"}, {"@id": f"{split}-pictures"}

    def field(name: str, kind: str, source: dict[str, Any], **more: Any) -> dict[str, Any]:
        return {
            "@type": "cr:Field",
            "@id": f"{split}/{name}",
            "name": name,
            "dataType": kind,
            "source": source,
            **more,
        }

    by_name = {
        "fileSet": pictures,
        "extract": {"fileProperty": "filename"},
        "transform": {"regex": r"^(?:.*/)?([^/.]+)(?:\.jpg)?$"},
    }
    return {
        "@type": "cr:RecordSet",
        "@id": split,
        "name": split,
        "key": {"@id": f"{split}/key"},
        "field": [
            field("key", "sc:Text", by_name, references={"fileObject": index, "extract": {"column": "key"}}),
            field("label", "sc:Integer", {"fileObject": index, "extract": {"column": "label"}}),
            field("image", "sc:ImageObject", {"fileSet": pictures, "extract": {"fileProperty": "content"}}),
        ],
    }


_CROISSANT_CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "arrayShape": "cr:arrayShape",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "containedIn": "cr:containedIn",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "description": {"@container": "@language"},
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isArray": "cr:isArray",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "name": {"@container": "@language"},
    "parentField": "cr:parentField",
    "path": "cr:path",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}

_FILES: dict[Dialect, Callable[[ShardedDataset], dict[str, _Write]]] = {
    "wids": _wids,
    "timm": _timm,
    "dali": _dali,
    "energon": _energon,
    "croissant": _croissant,
}


def _json(value: Any) -> _Write:
    return lambda folder, name: write_file(folder, name, canonical_json(value) + b"\n")


def _uuid(dataset: ShardedDataset) -> str:
    """An identifier in the form of a UUID that changes with the dataset's content."""
    digest = content_sha256_of(dataset.manifest["files"])
    return "-".join((digest[:8], digest[8:12], digest[12:16], digest[16:20], digest[20:32]))


def _all_shards(dataset: ShardedDataset) -> list[ShardEntry]:
    return [shard for split in dataset.splits for shard in dataset.shards(split)]


def _linked_files(dataset: ShardedDataset, dialect: Dialect) -> list[str]:
    tars = [shard["name"] for shard in _all_shards(dataset)]
    if dialect != "croissant":
        return tars
    return [*tars, CLASSES, *(dataset.manifest["splits"][split]["index"] for split in dataset.splits)]


def _check_out(folder: LocalFolder, expected: set[str]) -> None:
    """Nothing is there but what this export writes."""
    if not os.path.isdir(folder.root):
        return
    for name, _ in folder.walk():
        if name not in expected:
            raise UserError(f"{folder.root}: holds {name}, which is not of this export; choose a new or empty folder")


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        if target.samefile(source):
            return
        target.unlink()
    try:
        os.link(source, target)
    except OSError as error:
        raise UserError(
            f"{target}: cannot be a hard link to {source} ({error.strerror}); choose an --out on the same file "
            "system as the dataset"
        ) from error
