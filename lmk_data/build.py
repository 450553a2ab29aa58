"""Run the plan on an engine, resume what an earlier run left, and publish the dataset."""

import fcntl
import json
import os
import shutil
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from joblib.externals.loky import get_reusable_executor
from joblib.externals.loky.process_executor import TerminatedWorkerError

from lmk_data.dataset import read_manifest
from lmk_data.errors import BuildError, StorageError, UserError
from lmk_data.files import remove_durably, sync_folder, write_bytes
from lmk_data.format import BUILD_FOLDER, MANIFEST, SPLITS, Manifest, Recipe, canonical_json, recipe_json
from lmk_data.images import FolderStore, open_stores
from lmk_data.labels import (
    CLASS_FOLDERS,
    LabelTable,
    locate_images,
    read_categories,
    read_class_folders,
    read_labels,
)
from lmk_data.plan import Plan, PlanRule, make_plan, plan_fingerprint
from lmk_data.publish import BuiltShard, Publication, publish
from lmk_data.resize import check_recipe, encoder
from lmk_data.shard import (
    PLAN_TABLE,
    RECEIPTS_FOLDER,
    TEMPORARY_FOLDER,
    Receipt,
    ShardTask,
    build_shard,
    read_receipt,
    read_receipt_table,
)
from lmk_data.terminal import progress_bar

_PLAN_INPUTS = f"{BUILD_FOLDER}/plan.json"
_LOCK = f"{BUILD_FOLDER}/lock"
_SHOWN_DIFFERENCES = 6
_REJECTIONS_ALWAYS_ALLOWED = 2


@dataclass(frozen=True)
class BuildOptions:
    """What to build from and into; paths as given, rule and recipe validated."""

    images: list[str]
    labels: str
    out: Path
    rule: PlanRule = field(default_factory=PlanRule)
    recipe: Recipe = field(default_factory=Recipe)
    categories: str | None = None
    id_column: str | None = None
    label_column: str | None = None
    title: str = ""
    license: str = ""
    workers: int | None = None
    max_rejected: float = 0.05
    overwrite: bool = False
    quiet: bool = False

    def __post_init__(self) -> None:
        check_recipe(self.recipe)
        if self.workers is not None and self.workers < 1:
            raise UserError(f"--workers {self.workers}: must be at least 1")
        if not 0 <= self.max_rejected <= 1:
            raise UserError(f"--max-rejected {self.max_rejected}: must be from 0 to 1")


@dataclass(frozen=True)
class BuildResult:
    """How a build ended: `built_images` were resized now, `already_complete` says that nothing was left to do."""

    manifest: Manifest
    already_complete: bool
    built_images: int
    resumed_images: int
    seconds: float
    workers: int


def plan_build(options: BuildOptions) -> tuple[LabelTable, Plan]:
    """Read the labels and make the plan, without looking for an image unless the labels are class folders."""
    if options.labels == CLASS_FOLDERS:
        labels = read_class_folders(open_stores(options.images))
    else:
        labels = read_labels(options.labels, id_column=options.id_column, label_column=options.label_column)
    return labels, _plan_of(labels.frame, options)


def build(options: BuildOptions) -> BuildResult:
    """Build a dataset, or go on where an earlier run of the same build stopped.

    Raises UserError for input that cannot be used, BuildError or StorageError for a build that had to end; what
    was complete is kept and the same call goes on.
    """
    started = time.monotonic()
    _check_out(options.out)
    stores = open_stores(options.images)
    if options.labels == CLASS_FOLDERS:
        labels = read_class_folders(stores)
    else:
        labels = read_labels(options.labels, id_column=options.id_column, label_column=options.label_column)
    plan = _plan_of(locate_images(labels, stores), options)
    _check_any_found(plan, stores)
    inputs = _inputs(labels, plan, options)
    fingerprint = plan_fingerprint(**inputs)
    workers = options.workers or joblib.cpu_count()
    with _working_in(options.out):
        finished = _finished_manifest(options, inputs, fingerprint)
        if finished is not None:
            return BuildResult(finished, True, 0, len(plan.samples), time.monotonic() - started, workers)
        _prepare(options.out, plan, {**inputs, "fingerprint": fingerprint})
        receipts, built = _run(options, plan, stores, fingerprint, workers)
        manifest = _publish(options, plan, inputs, fingerprint, receipts)
    resumed = len(plan.samples) - built
    return BuildResult(manifest, False, built, resumed, time.monotonic() - started, workers)


def _plan_of(images: pd.DataFrame, options: BuildOptions) -> Plan:
    names = read_categories(options.categories) if options.categories else None
    return make_plan(images, options.rule, names)


def _check_out(out: Path) -> None:
    """Refuse a folder that holds something else, before anything is read or written."""
    if not out.exists():
        return
    if not out.is_dir():
        raise UserError(f"--out {out}: is a file; name a new folder")
    if any(out.iterdir()) and not (out / MANIFEST).exists() and not (out / BUILD_FOLDER).is_dir():
        raise UserError(f"--out {out}: holds something else; name a new or empty folder")


def _check_any_found(plan: Plan, stores: list[FolderStore]) -> None:
    """Some of the planned images are there: a wrong --images must not end as a dataset of missing ones."""
    found = plan.samples[plan.samples["reason"] == ""]
    probes = found.iloc[:: max(1, len(found) // 1000)]
    if not any(os.path.isfile(f"{stores[s].root}/{p}") for s, p in zip(probes["store"], probes["source"], strict=True)):
        folders = ", ".join(store.root for store in stores)
        raise UserError(f"no image of the label table was found below {folders}; is --images right?")


def _inputs(labels: LabelTable, plan: Plan, options: BuildOptions) -> dict[str, Any]:
    """What the fingerprint covers, as the manifest states it."""
    source = {
        "labels": labels.name,
        "labels_sha256": labels.sha256,
        "layout": labels.layout,
        "num_images": labels.num_images,
        "num_classes": labels.num_classes,
        "conflicting": labels.conflicting,
        "duplicate_rows": labels.duplicate_rows,
    }
    return {"source": source, "plan": plan.json(), "recipe": recipe_json(options.recipe, encoder())}


@contextmanager
def _working_in(out: Path) -> Iterator[None]:
    """Hold the folder's lock: two builds never work in one folder at once."""
    try:
        (out / BUILD_FOLDER).mkdir(parents=True, exist_ok=True)
        descriptor = os.open(out / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise UserError(f"--out {out}: another build is at work there; wait for it or stop it") from None
    except OSError as error:
        raise StorageError(
            f"{error.filename or out}: {error.strerror or error}; make room and run again to go on"
        ) from error
    finally:
        os.close(descriptor)


def _finished_manifest(options: BuildOptions, inputs: dict[str, Any], fingerprint: str) -> Manifest | None:
    """The manifest, if this very build is already published; refuses the folder of another build.

    With --overwrite another build's files are removed, the manifest first.
    """
    out = options.out
    earlier = _earlier_inputs(out)
    if earlier is not None and earlier["fingerprint"] != fingerprint:
        if not options.overwrite:
            shown = _differences(earlier, {**inputs, "fingerprint": fingerprint})
            raise UserError(f"--out {out}: holds another build ({shown}); name another folder or give --overwrite")
        _clear(out)
    elif earlier is not None and options.overwrite:
        _clear(out)
    if not (out / MANIFEST).exists():
        return None
    manifest = read_manifest(out / MANIFEST)
    return manifest if (manifest["title"], manifest["license"]) == (options.title, options.license) else None


def _earlier_inputs(out: Path) -> dict[str, Any] | None:
    """What an earlier build in this folder was made of, published or not."""
    if (out / MANIFEST).exists():
        manifest = read_manifest(out / MANIFEST)
        return {name: manifest[name] for name in ("source", "plan", "recipe", "fingerprint")}
    try:
        return dict(json.loads((out / _PLAN_INPUTS).read_bytes()))
    except FileNotFoundError:
        return None


def _differences(earlier: dict[str, Any], now: dict[str, Any]) -> str:
    """The first few settings that differ, as `name: earlier -> now`."""
    flat_earlier, flat_now = _flattened(earlier), _flattened(now)
    names = [name for name in sorted(flat_earlier | flat_now) if flat_earlier.get(name) != flat_now.get(name)]
    names = [name for name in names if name != "fingerprint"] or names
    shown = [f"{name}: {flat_earlier.get(name)} -> {flat_now.get(name)}" for name in names[:_SHOWN_DIFFERENCES]]
    return "; ".join(shown) + (f"; and {len(names) - len(shown)} more" if len(names) > len(shown) else "")


def _flattened(value: dict[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, item in value.items():
        if isinstance(item, dict):
            flat |= _flattened(item, f"{prefix}{name}.")
        else:
            flat[prefix + name] = str(item)
    return flat


def _clear(out: Path) -> None:
    """Remove another build's files, the manifest first, so that a crash leaves an unfinished build behind."""
    remove_durably(out / MANIFEST)
    for name in (_PLAN_INPUTS, PLAN_TABLE):
        (out / name).unlink(missing_ok=True)
    for folder in (RECEIPTS_FOLDER, "shards", "index", "report"):
        shutil.rmtree(out / folder, ignore_errors=True)


def _prepare(out: Path, plan: Plan, inputs: dict[str, Any]) -> None:
    """Lay out the folder: the plan for workers (one row group a shard) and the inputs for the next run."""
    remove_durably(out / MANIFEST)
    shutil.rmtree(out / TEMPORARY_FOLDER, ignore_errors=True)
    for folder in (
        TEMPORARY_FOLDER,
        RECEIPTS_FOLDER,
        *(f"shards/{split}" for split in SPLITS if plan.num_shards[split]),
    ):
        (out / folder).mkdir(parents=True, exist_ok=True)
    write_bytes(out / _PLAN_INPUTS, canonical_json(inputs))
    columns = ["key", "label", "landmark_id", "store", "source", "reason"]
    table = pa.Table.from_pandas(plan.samples[columns], preserve_index=False).replace_schema_metadata(None)
    temporary = out / TEMPORARY_FOLDER / "plan.parquet.tmp"
    with pq.ParquetWriter(temporary, table.schema, compression="zstd") as writer:
        for start, size in _shard_bounds(plan):
            writer.write_table(table.slice(start, size), row_group_size=size)
    os.replace(temporary, out / PLAN_TABLE)
    sync_folder(out / BUILD_FOLDER)


def _shard_bounds(plan: Plan) -> list[tuple[int, int]]:
    """First row and number of rows of each planned shard, in order of `plan.samples`."""
    split, shard = plan.samples["split"].cat.codes.to_numpy(), plan.samples["shard"].to_numpy()
    starts = np.flatnonzero(np.diff(split, prepend=-1) | np.diff(shard, prepend=-1))
    sizes = np.diff(starts, append=len(shard))
    return list(zip(starts.tolist(), sizes.tolist(), strict=True))


def _run(
    options: BuildOptions, plan: Plan, stores: list[FolderStore], fingerprint: str, workers: int
) -> tuple[list[Receipt], int]:
    """Build what has no receipt yet; returns all receipts in order, and the number of images built now."""
    out = options.out
    bounds = _shard_bounds(plan)
    first = plan.samples.iloc[[start for start, _ in bounds]]
    groups: dict[tuple[str, int], int] = {}
    receipts: dict[int, Receipt] = {}
    tasks: list[tuple[int, ShardTask]] = []
    for group, (split, number) in enumerate(zip(first["split"], first["shard"], strict=True)):
        groups[split, int(number)] = group
        receipt = read_receipt(out, split, int(number), fingerprint)
        if receipt is not None:
            receipts[group] = receipt
        else:
            task = ShardTask(str(out), split, int(number), group, tuple(stores), options.recipe, fingerprint)
            tasks.append((bounds[group][1], task))
    tasks.sort(key=lambda sized: -sized[0])
    total, done = len(plan.samples), sum(bounds[group][1] for group in receipts)
    rejections = _Rejections(total, options.max_rejected, receipts.values())
    with progress_bar(total, "building", "images", quiet=options.quiet, initial=done) as bar:
        for receipt in _run_tasks([task for _, task in tasks], workers):
            receipts[groups[receipt.split, receipt.number]] = receipt
            rejections.add(receipt)
            bar.update(receipt.num_planned)
    return [receipts[group] for group in range(len(bounds))], total - done


def _run_tasks(tasks: list[ShardTask], workers: int) -> Iterator[Receipt]:
    """Receipts as they come, from loky's worker processes (or this one, for one worker or one task)."""
    workers = min(workers, len(tasks))
    if workers <= 1:
        yield from map(build_shard, tasks)
        return
    parallel = joblib.Parallel(n_jobs=workers, return_as="generator_unordered", pre_dispatch=2 * workers, batch_size=1)
    try:
        # Ctrl-C reaches the whole process group; workers inherit the mask, and the main process ends them.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            receipts = parallel(joblib.delayed(build_shard)(task) for task in tasks)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        yield from receipts
    except TerminatedWorkerError as error:
        raise BuildError(
            "a worker process was killed (out of memory?); run again, perhaps with fewer --workers"
        ) from error
    finally:
        get_reusable_executor(reuse=True).shutdown(wait=True, kill_workers=True)


class _Rejections:
    """Counts rejections and ends the build as soon as there are too many."""

    def __init__(self, num_planned: int, max_rejected: float, receipts: Any) -> None:
        self._allowed = max(max_rejected * num_planned, _REJECTIONS_ALWAYS_ALLOWED if max_rejected else 0)
        self._limit = max_rejected
        self._reasons: Counter[str] = Counter()
        for receipt in receipts:
            self.add(receipt)

    def add(self, receipt: Receipt) -> None:
        self._reasons.update(receipt.reasons)
        if self._reasons.total() > self._allowed:
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in self._reasons.most_common())
            raise BuildError(
                f"more than {self._limit:.0%} of the images were rejected so far ({reasons}); not published; "
                "mend the source, or allow more with --max-rejected and run again"
            )


def _publish(
    options: BuildOptions, plan: Plan, inputs: dict[str, Any], fingerprint: str, receipts: list[Receipt]
) -> Manifest:
    if not any(receipt.num_samples for receipt in receipts):
        raise BuildError("every image was rejected; nothing to publish")
    shards = [
        BuiltShard(
            r.name, r.split, r.num_samples, r.num_bytes, r.sha256, read_receipt_table(options.out, r.split, r.number)
        )
        for r in receipts
    ]
    publication = Publication(
        fingerprint=fingerprint,
        title=options.title,
        license=options.license,
        counts=plan.counts,
        classes=plan.classes,
        dropped=plan.dropped,
        **inputs,
    )
    return publish(options.out, publication, shards)
