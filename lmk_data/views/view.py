"""Write a view: a manifest, classes and indexes that point into another dataset's shards."""

import posixpath
from dataclasses import replace
from os.path import normpath, relpath
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from lmk_data.build.output import writing
from lmk_data.build.publish import landmark_id_type
from lmk_data.dataset.format import (
    CLASSES,
    FORMAT_VERSION,
    MARKED_SIZE,
    FileEntry,
    Manifest,
    ShardEntry,
    SplitEntry,
    classes_schema,
    fingerprint_of,
    index_name,
    index_schema,
    write_file,
)
from lmk_data.dataset.manifest import Provenance, make_manifest
from lmk_data.dataset.parquet_files import parquet_bytes, table_from
from lmk_data.dataset.reader import ShardedDataset
from lmk_data.errors import UserError
from lmk_data.options import Selection
from lmk_data.system.storage import Folder, LocalFolder, is_url, open_folder, path_within, stored_location
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
    """Write a view: a manifest, classes and indexes that point into the dataset's shards. No picture is copied.

    Raises UserError for a selection that leaves nothing or an `out` that holds something else.

    Args:
        dataset: the dataset or view to select from.
        selection: which classes and images to keep.
        out: the folder or URL to write to.
        workers: threads that compare pictures for near duplicates; by default one per core.
        overwrite: replace whatever build `out` holds.
        quiet: show no progress.
    """
    folder = open_folder(out)
    check_apart(folder, dataset)
    if replace(selection, ignore_unknown=False) == Selection():
        raise UserError(
            "choose something: --top, --min-samples, --classes, --max-per-class, --drop-duplicates, --marks, --exclude "
            "or --include"
        )
    with writing(folder, overwrite=overwrite) as output:
        subset = select(dataset, selection, workers=workers, quiet=quiet)
        provenance = _provenance(dataset, subset, folder)
        finished = output.finished(provenance)
        if finished is not None:
            return finished
        output.begin(provenance)
        splits, files = _write_tables(folder, subset, dataset)
        return output.publish(make_manifest(provenance, subset_counts(subset), splits, len(subset.classes), files))


def _provenance(dataset: ShardedDataset, subset: Subset, folder: Folder) -> Provenance:
    """Return what the manifest of a view in `folder` states of its base and of the selection."""
    base = dataset.manifest
    stated: dict[str, Any] = {
        "source": base["source"],
        "plan": base["plan"],
        "recipe": base["recipe"],
        "title": base["title"],
        "license": base["license"],
        "view_of": {
            "path": _path_of_base(folder, dataset.shards_folder),
            "content_sha256": dataset.shards_content_sha256,
            **subset.origin(),
        },
    }
    return Provenance(view_fingerprint(stated), **stated)


def check_apart(out: Folder, dataset: ShardedDataset) -> None:
    """Raise UserError if `out` is, or contains, the dataset that is read."""
    for base in (dataset.folder, dataset.shards_folder):
        if path_within(base, out) is not None:
            raise UserError(f"--out {out.root}: would overwrite {base.root}, which is read; name another folder")


def view_fingerprint(manifest: Any) -> str:
    """Return the fingerprint of a view, from its manifest: it covers everything that its files do not hold."""
    names = ("source", "plan", "recipe", "view_of", "title", "license")
    return fingerprint_of({**{name: manifest[name] for name in names}, "version": FORMAT_VERSION})


def _write_tables(
    folder: Folder, subset: Subset, dataset: ShardedDataset
) -> tuple[dict[str, SplitEntry], dict[str, FileEntry]]:
    """Write the classes and indexes of a view; return the manifest's splits and files."""
    landmark_id = landmark_id_type(subset.classes)
    schema = classes_schema(landmark_id, is_marked=MARKED_SIZE in subset.classes)
    table = table_from(subset.classes, schema)
    files = {CLASSES: write_file(folder, CLASSES, parquet_bytes(table))}
    splits: dict[str, SplitEntry] = {}
    for split, rows in subset.rows.items():
        names = pc.cast(rows["shard"], pa.string()).combine_chunks().dictionary_encode()
        sizes = dict(zip(names.dictionary.to_pylist(), np.bincount(names.indices.to_numpy()).tolist(), strict=True))
        shards: list[ShardEntry] = [
            {"name": shard["name"], "num_samples": sizes[shard["name"]], "num_bytes": shard["num_bytes"]}
            for shard in dataset.shards(split)
            if shard["name"] in sizes
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


def _local_path(view: Path, base: Path) -> Path:
    """Return the path from a view to its base as they are named, unless a link to the view's folder leads it astray."""
    named = Path(relpath(base, view))
    reached = Path(normpath(view.resolve() / named))
    return named if reached.exists() and reached.samefile(base) else Path(relpath(base.resolve(), view.resolve()))


def _path_of_base(folder: Folder, base: Folder) -> str:
    """Return what a view in `folder` calls its base. Raises UserError for a path that no reader would open."""
    path = _relative_path(folder, base)
    if is_url(path):  # it is opened if a user names it, whatever it is
        return path
    try:
        stored_location(path, folder)
    except ValueError as error:
        raise UserError(f"{base.root}: a view cannot name it ({error}); rename the folder, or give --copy") from None
    return path


def _relative_path(folder: Folder, base: Folder) -> str:
    """Return the path from a view to its base: relative if both are in the same storage, else a URL."""
    if isinstance(folder, LocalFolder) and isinstance(base, LocalFolder):
        return _local_path(Path(folder.root), Path(base.root)).as_posix()
    if is_url(folder.root) and is_url(base.root):
        (scheme, _, path), (base_scheme, _, base_path) = folder.root.partition("://"), base.root.partition("://")
        if scheme == base_scheme and path.split("/", 1)[0] == base_path.split("/", 1)[0]:
            return posixpath.relpath(base_path, path)
    return base.root if is_url(base.root) else f"file://{base.root}"
