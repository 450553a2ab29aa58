"""Checks that a dataset is whole, by its manifest, a listing of its shards and the counts of its tables."""

import os

import pandas as pd
import pyarrow as pa

from lmk_data.dataset.format import CLASSES, MANIFEST, SPLITS, Manifest, content_sha256_of, index_name
from lmk_data.dataset.manifest import read_manifest
from lmk_data.errors import DatasetError
from lmk_data.system.parquet import stated_rows
from lmk_data.system.storage import Folder

_REPAIR_HINT = "copy it again or build the dataset again"


def check_base(folder: Folder, shards_folder: Folder, manifest: Manifest) -> None:
    """Raise DatasetError if the base of a view is another dataset than the one that the view was made of."""
    if "view_of" in manifest:
        base = read_manifest(shards_folder)
        check_content(shards_folder, base)
        stated, actual = manifest["view_of"]["content_sha256"], base["content_sha256"]
        if actual != stated:
            raise DatasetError(
                f"{folder.root}: a view of another dataset than {shards_folder.root} is now (content "
                f"{actual[:12]} instead of {stated[:12]}); name its own with --base, or make the view again with "
                "lmk-shard subset"
            )


def check_content(folder: Folder, manifest: Manifest) -> None:
    """Raise DatasetError if a manifest states the content of other files than those that it lists."""
    stated, actual = manifest["content_sha256"], content_sha256_of(manifest["files"])
    if stated != actual:
        raise DatasetError(
            f"{folder.location(MANIFEST)}: content_sha256 is {stated[:12]}, that of its files {actual[:12]}; "
            f"{_REPAIR_HINT}"
        )


def check_shards(shards_folder: Folder, manifest: Manifest) -> None:
    """Raise DatasetError if a shard is missing or has another size; each folder is listed once."""
    for split in manifest["splits"].values():
        entries = {shard["name"]: shard["num_bytes"] for shard in split["shards"]}
        sizes: dict[str, int] = {}
        for folder in {os.path.dirname(name) for name in entries}:
            sizes |= shards_folder.sizes(folder, entries)
        for name, num_bytes in entries.items():
            location = shards_folder.location(name)
            if name not in sizes:
                raise DatasetError(f"{location}: shard is missing; {_REPAIR_HINT}")
            if sizes[name] != num_bytes:
                raise DatasetError(f"{location}: {sizes[name]:,} bytes instead of {num_bytes:,}; {_REPAIR_HINT}")


def check_counts(folder: Folder, manifest: Manifest, classes: pd.DataFrame) -> None:
    """Raise DatasetError unless manifest, indexes and classes.parquet (`classes`) state the same numbers."""
    location, num_classes = folder.location(CLASSES), manifest["classes"]["num_classes"]
    if len(classes) != num_classes:
        raise DatasetError(f"{location}: {len(classes)} classes, the manifest says {num_classes}; {_REPAIR_HINT}")
    for split in SPLITS:
        entry = manifest["splits"].get(split)
        stated, counted = entry["num_samples"] if entry else 0, int(classes[split].sum())
        if stated != counted:
            raise DatasetError(f"{location}: {counted} {split} samples, the manifest says {stated}; {_REPAIR_HINT}")
        if entry and stated and (rows := _num_rows(folder, entry["index"])) != stated:
            where = folder.location(index_name(split))
            raise DatasetError(f"{where}: {rows} rows, the manifest says {stated}; {_REPAIR_HINT}")


def _num_rows(folder: Folder, name: str) -> int:
    try:
        with folder.open(name) as file:
            return stated_rows(file)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DatasetError(f"{folder.location(name)}: cannot be read; {_REPAIR_HINT}") from error
