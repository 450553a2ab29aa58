"""Write a view: a manifest, classes and indexes that point into another dataset's shards."""

import posixpath
from os.path import relpath
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from lmk_data.build.output import begin, claim, holding
from lmk_data.build.publish import write_manifest
from lmk_data.dataset.format import (
    CLASSES,
    FORMAT_NAME,
    FORMAT_VERSION,
    FileEntry,
    Manifest,
    ShardEntry,
    SplitEntry,
    classes_schema,
    content_sha256_of,
    fingerprint_of,
    index_name,
    index_schema,
    parquet_bytes,
    write_file,
)
from lmk_data.dataset.reader import ShardedDataset
from lmk_data.errors import UserError
from lmk_data.options import Selection
from lmk_data.system.storage import BUILD_FOLDER, Folder, LocalFolder, is_url, open_folder, path_within
from lmk_data.views.selection import Subset, select, subset_counts


def write_view(
    dataset: ShardedDataset,
    selection: Selection,
    out: str,
    *,
    workers: int | None = None,
    overwrite: bool = False,
    quiet: bool = True,
) -> Manifest:
    """Write a view: a manifest, classes and indexes that point into the dataset's shards; no picture is copied.

    Raises UserError for a selection that makes no sense or an `out` that holds something else.
    """
    folder = open_folder(out)
    check_apart(folder, dataset)
    if selection == Selection():
        raise UserError("choose something: --top, --min-samples, --classes, --max-per-class or --drop-duplicates")
    with holding(folder):
        subset = select(dataset, selection, workers=workers, quiet=quiet)
        view_of = {
            "path": _way(folder, dataset.shards_folder),
            "content_sha256": dataset.shards_content_sha256,
            "selection": subset.steps,
            "removed": subset.removed,
        }
        base = dataset.manifest
        inputs = {"source": base["source"], "plan": base["plan"], "recipe": base["recipe"], "view_of": view_of}
        words = {"title": base["title"], "license": base["license"]}
        fingerprint = view_fingerprint({**inputs, **words})
        finished = claim(folder, {**inputs, "fingerprint": fingerprint}, overwrite=overwrite)
        if finished is not None:
            return finished
        begin(folder, {**inputs, "fingerprint": fingerprint}, overwrite=overwrite)
        splits, files = _write_view_files(folder, subset, dataset)
        manifest: Manifest = {
            "format": FORMAT_NAME,
            "version": FORMAT_VERSION,
            "fingerprint": fingerprint,
            "content_sha256": content_sha256_of(files),
            "title": base["title"],
            "license": base["license"],
            "source": base["source"],
            "plan": base["plan"],
            "recipe": base["recipe"],
            "counts": subset_counts(subset),
            "splits": splits,
            "classes": {"path": CLASSES, "num_classes": len(subset.classes)},
            "files": files,
            "view_of": view_of,
        }
        write_manifest(folder, manifest)
        folder.remove_tree(BUILD_FOLDER)
    return manifest


def check_apart(out: Folder, dataset: ShardedDataset) -> None:
    """Refuse to write over, or around, the dataset that is read; UserError."""
    for base in (dataset.folder, dataset.shards_folder):
        if path_within(base, out) is not None:
            raise UserError(f"--out {out.root}: holds {base.root}, which this reads; name another folder")


def view_fingerprint(manifest: Any) -> str:
    """The fingerprint of a view, of its manifest: everything that it states beside what its files say."""
    names = ("source", "plan", "recipe", "view_of", "title", "license")
    return fingerprint_of({**{name: manifest[name] for name in names}, "version": FORMAT_VERSION})


def _write_view_files(
    folder: Folder, subset: Subset, dataset: ShardedDataset
) -> tuple[dict[str, SplitEntry], dict[str, FileEntry]]:
    """Write a view's classes and indexes; returns the manifest's splits and files."""
    integers = pd.api.types.is_integer_dtype(subset.classes["landmark_id"])
    landmark_id = pa.int64() if integers else pa.string()
    table = pa.Table.from_pandas(subset.classes, classes_schema(landmark_id), preserve_index=False)
    files = {CLASSES: write_file(folder, CLASSES, parquet_bytes(table))}
    splits: dict[str, SplitEntry] = {}
    for split, rows in subset.rows.items():
        names = pc.cast(rows["shard"], pa.string()).combine_chunks().dictionary_encode()
        held = dict(zip(names.dictionary.to_pylist(), np.bincount(names.indices.to_numpy()).tolist(), strict=True))
        shards: list[ShardEntry] = [
            {"name": shard["name"], "num_samples": held[shard["name"]], "num_bytes": shard["num_bytes"]}
            for shard in dataset.shards(split)
            if shard["name"] in held
        ]
        index = rows.set_column(rows.column_names.index("shard"), "shard", names).cast(index_schema(landmark_id))
        files[index_name(split)] = write_file(folder, index_name(split), parquet_bytes(index.combine_chunks()))
        splits[split] = {
            "num_samples": rows.num_rows,
            "num_bytes": sum(shard["num_bytes"] for shard in shards),
            "index": index_name(split),
            "shards": shards,
        }
    return splits, files


def _way(folder: Folder, base: Folder) -> str:
    """The path from a view to its base: relative where both lie in the same storage, else a URL."""
    if isinstance(folder, LocalFolder) and isinstance(base, LocalFolder):
        return Path(relpath(base.root, folder.root)).as_posix()
    if is_url(folder.root) and is_url(base.root):
        (scheme, _, here), (base_scheme, _, there) = folder.root.partition("://"), base.root.partition("://")
        if scheme == base_scheme and here.split("/", 1)[0] == there.split("/", 1)[0]:
            return posixpath.relpath(there, here)
    return base.root if is_url(base.root) else Path(base.root).as_uri()
