"""Verify that a dataset is what its manifest says: every hash, every byte of every tar, every count."""

import json
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lmk_data.build.plan import plan_fingerprint
from lmk_data.build.publish import landmark_id_type, markdown_line
from lmk_data.dataset.format import (
    CARD,
    CLASSES,
    DROP_REASONS,
    DROPPED_CLASSES,
    MANIFEST,
    REJECT_REASONS,
    REJECTS,
    SPLITS,
    Manifest,
    canonical_json,
    content_sha256_of,
    index_name,
    index_schema,
)
from lmk_data.dataset.integrity import check_base
from lmk_data.dataset.manifest import MAX_BYTES, read_manifest
from lmk_data.dataset.reader import ShardedDataset
from lmk_data.errors import DatasetError
from lmk_data.leftovers import left_out
from lmk_data.system.engine import local_engine
from lmk_data.system.storage import Folder, open_folder
from lmk_data.system.terminal import progress_bar
from lmk_data.verify.shard import Problem, ShardToCheck, check_shard, first_difference
from lmk_data.verify.view import check_against_base, hashed
from lmk_data.views.view import view_fingerprint

_DECODED_PICTURES = 2_000
_WALKED_SHARDS = 16  # their bytes are compared in any case, and all shards are written alike
_MAX_CARD_BYTES = 16 << 20
_NO_LABELS = np.empty(0, dtype=np.int32)


@dataclass(frozen=True)
class Verification:
    """How much was checked, and all problems that were found."""

    num_files: int
    num_bytes: int
    num_samples: int
    num_decoded: int
    problems: list[Problem]


def verify(
    path: str,
    *,
    base: str | None = None,
    quick: bool = False,
    thorough: bool = False,
    workers: int | None = None,
    quiet: bool = False,
) -> Verification:
    """Check every byte of a dataset or a view, and decode a sample of its pictures unless `quick`.

    Args:
        path: the dataset or view.
        base: for a view, the dataset that has its shards; by default the one that the view names.
        quick: decode no picture.
        thorough: read every tar with webdataset too; by default some of them, spread evenly.
        workers: worker processes; by default one per core.
        quiet: show no progress.

    Raises DatasetError if there is no readable manifest, or if the base of a view is another dataset.
    """
    folder = open_folder(path)
    manifest = read_manifest(folder)
    dataset = ShardedDataset(folder, manifest, base)
    check_base(folder, dataset.shards_folder, manifest)
    problems = [*_check_manifest(folder, manifest), *_check_files(folder, manifest)]
    if not dataset.is_view:
        problems += _check_strays(folder, manifest)
    if set(manifest["files"]) != _expected_files(manifest):
        return Verification(len(manifest["files"]), 0, 0, 0, problems)  # it is unknown which files belong to it
    damaged = {problem.location for problem in problems}
    if damaged.isdisjoint(map(folder.location, _tables_of_samples(manifest))):
        problems += _check_indexes(dataset)
    if {problem.location for problem in problems} & set(map(folder.location, _tables_of_samples(manifest))):
        return Verification(len(manifest["files"]), 0, 0, 0, problems)  # there is nothing to compare the tars with
    if dataset.is_view:
        problems += check_against_base(dataset)
    if damaged.isdisjoint(map(folder.location, (REJECTS, DROPPED_CLASSES))):
        problems += _check_counts(dataset)
    tasks = list(_tasks(dataset, quick, thorough))
    # webdataset imports torch where it is installed, and joblib replaces workers whose memory grows after a first task.
    tasks.sort(key=lambda task: not task.as_others_read)
    total = sum(task.num_bytes for task in tasks)
    num_decoded = 0
    with progress_bar(total, "verifying", "bytes", quiet=quiet) as bar:
        for of_shard in local_engine(workers).run(check_shard, tasks):
            problems += of_shard.problems
            num_decoded += of_shard.num_decoded
            bar.update(of_shard.num_bytes)
    problems.sort(key=lambda problem: (problem.location, problem.start or 0))
    small = sum(entry["num_bytes"] for name, entry in manifest["files"].items() if not name.endswith(".tar"))
    return Verification(len(manifest["files"]), total + small, len(dataset), num_decoded, problems)


def _tables_of_samples(manifest: Manifest) -> list[str]:
    """Return the names of the tables that the tars are compared with."""
    return [CLASSES, *(split["index"] for split in manifest["splits"].values())]


def _check_manifest(folder: Folder, manifest: Manifest) -> Iterator[Problem]:
    """Check that the manifest is canonical, that its hashes follow from its content, and that the card agrees."""
    location, data = folder.location(MANIFEST), folder.read(MANIFEST, MAX_BYTES)
    canonical = canonical_json(json.loads(data)) + b"\n"
    if data != canonical:
        start = first_difference(data, canonical)
        yield Problem(location, "not canonical JSON", start, start + 1)
    if content_sha256_of(manifest["files"]) != manifest["content_sha256"]:
        yield Problem(location, "content_sha256 does not follow from files")
    is_view = "view_of" in manifest
    if is_view:
        fingerprint = view_fingerprint(manifest)
    else:
        fingerprint = plan_fingerprint(dict(manifest["source"]), dict(manifest["plan"]), manifest["recipe"])
    if fingerprint != manifest["fingerprint"]:
        yield Problem(location, "fingerprint does not follow from what it covers")
    if set(manifest["files"]) != _expected_files(manifest):
        yield Problem(location, "files are not those that splits and classes name")
    for split, entry in manifest["splits"].items():
        if entry["num_bytes"] != sum(shard["num_bytes"] for shard in entry["shards"]):
            yield Problem(location, f"splits.{split}.num_bytes is not the sum of its shards")
        for shard in entry["shards"]:
            stated = manifest["files"].get(shard["name"])
            if stated is not None and stated["num_bytes"] != shard["num_bytes"]:
                yield Problem(location, f"files and splits differ in the size of {shard['name']}")
    if not is_view and folder.exists(CARD):
        card = folder.read_range(CARD, 0, _MAX_CARD_BYTES).decode("utf-8", "replace")
        for words in (manifest["title"], manifest["license"]):
            if markdown_line(words) not in card and " ".join(words.split()) not in card:  # 0.1.0 did not escape
                yield Problem(location, f"the card does not say {words!r}")


def _expected_files(manifest: Manifest) -> set[str]:
    if "view_of" in manifest:
        return set(_tables_of_samples(manifest))
    shards = {shard["name"] for split in manifest["splits"].values() for shard in split["shards"]}
    return {*_tables_of_samples(manifest), CARD, DROPPED_CLASSES, REJECTS, *shards}


def _check_files(folder: Folder, manifest: Manifest) -> Iterator[Problem]:
    """Check size and hash of every file except the tars."""
    for name, entry in manifest["files"].items():
        if name.endswith(".tar"):
            continue
        try:
            num_bytes, sha256 = hashed(folder, name, entry["num_bytes"])
        except OSError as error:
            yield Problem(folder.location(name), f"cannot be read: {error.strerror or error}")
            continue
        if (num_bytes, sha256) != (entry["num_bytes"], entry["sha256"]):
            what = f"its sha256 is not that of the manifest ({num_bytes:,} bytes, {entry['num_bytes']:,} expected)"
            yield Problem(folder.location(name), what, 0, max(1, num_bytes))


def _check_strays(folder: Folder, manifest: Manifest) -> Iterator[Problem]:
    """Check that there is no other file among the tars and indexes: tools that read a whole folder would read it."""
    known = set(manifest["files"])
    pending = ["index", "shards"]
    while pending:
        inside = pending.pop()
        pending += folder.folders(inside)
        for name in sorted(set(folder.files(inside)) - known):
            if not left_out(name.rsplit("/", 1)[-1]):
                yield Problem(folder.location(name), "is not in the manifest; remove it")


def _check_counts(dataset: ShardedDataset) -> Iterator[Problem]:
    """Check that manifest, classes, indexes, rejects and dropped classes state the same numbers, class by class."""
    folder, classes, counts = dataset.folder, dataset.classes, dataset.manifest["counts"]
    where = folder.location(CLASSES)
    if len(classes) != dataset.num_classes or classes["label"].tolist() != list(range(len(classes))):
        yield Problem(where, f"labels are not 0 to {dataset.num_classes - 1}")
        return
    if (classes["listed"] != classes[[*SPLITS, "rejected"]].sum(axis=1)).any():
        yield Problem(where, "listed is not train + val + test + rejected for every class")
    for split in SPLITS:
        labels = dataset.index(split, ["label"])["label"].to_numpy() if split in dataset.splits else _NO_LABELS
        if (np.bincount(labels, minlength=len(classes)) != classes[split].to_numpy()).any():
            yield Problem(where, f"{split} is not what index/{split}.parquet counts")
    try:
        rejects, dropped_classes = dataset.rejects(), dataset.dropped_classes()
    except DatasetError as error:
        yield Problem(where, str(error))
        return
    yield from _check_rejects(dataset, rejects)
    rejected = rejects["label"].to_numpy(dtype=np.int64)
    if (np.bincount(rejected, minlength=len(classes)) != classes["rejected"].to_numpy()).any():
        yield Problem(where, f"rejected is not what {REJECTS} counts")
    dropped = dropped_classes.groupby("reason")["listed"].sum()
    expected = {
        "written": len(dataset),
        "rejected": len(rejected),
        **{
            name: int(dropped.get(reason, 0))
            for name, reason in zip(("below_min_samples", "outside_top"), DROP_REASONS, strict=True)
        },
    }
    expected["listed"] = sum(expected.values())
    if counts != expected:
        yield Problem(folder.location(MANIFEST), f"counts are {counts}, the files say {expected}")


def _check_rejects(dataset: ShardedDataset, rejects: pd.DataFrame) -> Iterator[Problem]:
    """Check that each rejected image has a reason of the format, a split, the id of its label, and a key of its own."""
    location, ids = dataset.folder.location(REJECTS), dataset.classes["landmark_id"].to_numpy()
    if not rejects["reason"].isin(REJECT_REASONS).all():
        yield Problem(location, "has a reason that the format does not have")
    if not rejects["split"].isin(SPLITS).all():
        yield Problem(location, f"has a split that is none of {', '.join(SPLITS)}")
    if (ids[rejects["label"].to_numpy(np.int64)] != rejects["landmark_id"].to_numpy()).any():
        yield Problem(location, "has a landmark_id that is not its label's")
    keys = pa.array(rejects["key"], pa.string())
    written = (pc.cast(dataset.index_table(split, ["key"])["key"], pa.string()) for split in dataset.splits)
    if len(keys) != pc.count_distinct(keys).as_py() or any(pc.any(pc.is_in(keys, named)).as_py() for named in written):
        yield Problem(location, "has a key that occurs twice, or that is in an index too")


def _check_indexes(dataset: ShardedDataset) -> Iterator[Problem]:
    """Check that every row of the indexes names a class, a shard and a place in it, and that keys are unique."""
    keys = []
    for split in dataset.splits:
        location = dataset.folder.location(index_name(split))
        index = dataset.read_table(index_name(split))
        landmark_id = landmark_id_type(dataset.classes)
        if index.schema.remove_metadata() != index_schema(landmark_id):
            yield Problem(location, "does not have the columns of the format")
            return
        if any(column.null_count for column in index.columns):
            yield Problem(location, "has empty fields")
            return
        try:
            dataset.checked_index(split, index)
        except DatasetError as error:
            yield Problem(location, str(error).removeprefix(f"{location}: "))
            return
        labels, names = index["label"].to_numpy(), pa.array(dataset.classes["landmark_id"]).cast(landmark_id)
        if not pc.all(pc.equal(names.take(pa.array(labels)), index["landmark_id"].combine_chunks())).as_py():
            yield Problem(location, "has a landmark_id that is not its label's")
        keys.append(index["key"])
        yield from _check_places(dataset, split, index)
    if (
        len(all_keys := pa.chunked_array([chunk for key in keys for chunk in key.chunks]))
        != pc.count_distinct(all_keys).as_py()
    ):
        yield Problem(dataset.folder.location(CLASSES), "a key occurs twice in the indexes")


def _check_places(dataset: ShardedDataset, split: str, index: pa.Table) -> Iterator[Problem]:
    """Check that the samples of an index are in the order of the shards, inside them, and as many as stated."""
    location, shards = dataset.folder.location(index_name(split)), dataset.shards(split)
    unknown = set(index["shard"].combine_chunks().dictionary.to_pylist()) - {entry["name"] for entry in shards}
    if unknown:
        yield Problem(location, f"names the shard {min(unknown)}, which the manifest does not")
        return
    of_row = _shard_of_row(dataset, split, index)
    if (np.diff(of_row) < 0).any():
        yield Problem(location, "is not in the order of the shards")
    num_bytes = np.array([entry["num_bytes"] for entry in shards])[of_row]
    start, size = index["jpg_offset"].to_numpy(), index["jpg_size"].to_numpy()
    if ((start < 0) | (size < 1) | (start + size > num_bytes)).any():
        yield Problem(location, "has a picture that lies outside its shard")
    if np.bincount(of_row, minlength=len(shards)).tolist() != [entry["num_samples"] for entry in shards]:
        yield Problem(location, "does not have as many samples in each shard as the manifest says")


def _shard_of_row(dataset: ShardedDataset, split: str, index: pa.Table) -> NDArray[np.int64]:
    """Return the position in the manifest of each row's shard, int64 [N]."""
    number = {entry["name"]: i for i, entry in enumerate(dataset.shards(split))}
    shard = index["shard"].combine_chunks()
    numbers = np.array([number[name] for name in shard.dictionary.to_pylist()], dtype=np.int64)
    of_row: NDArray[np.int64] = numbers[shard.indices.to_numpy()]
    return of_row


def _tasks(dataset: ShardedDataset, quick: bool, thorough: bool) -> Iterator[ShardToCheck]:
    """Yield the check of each shard, with the rows of the index that describe it."""
    decode_every = 0 if quick else max(1, len(dataset) // _DECODED_PICTURES)
    num_shards = sum(len(dataset.shards(split)) for split in dataset.splits)
    walk_every = 1 if thorough else -(-num_shards // _WALKED_SHARDS)
    number = 0
    for split in dataset.splits:
        index = dataset.read_table(index_name(split))
        bounds = np.searchsorted(_shard_of_row(dataset, split, index), np.arange(len(dataset.shards(split)) + 1))
        index = index.drop_columns(["shard"])
        for i, shard in enumerate(dataset.shards(split)):
            rows = index.slice(bounds[i], bounds[i + 1] - bounds[i])
            entry = dataset.manifest["files"].get(shard["name"])  # missing in a view or a damaged manifest
            yield ShardToCheck(
                folder=dataset.shards_folder,
                name=shard["name"],
                num_bytes=shard["num_bytes"],
                sha256=entry["sha256"] if entry else "",
                rows=_as_stream(rows),
                size=dataset.recipe.size,
                as_others_read=not dataset.is_view and number % walk_every == 0,
                decode_every=decode_every,
                is_view=dataset.is_view,
            )
            number += 1


def _as_stream(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())
