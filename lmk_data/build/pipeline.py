"""Make the plan, run it on an engine, resume where an earlier run stopped, and publish the dataset."""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from lmk_data.build.cluster import check_workers, connect
from lmk_data.build.crashes import Crashes, notes_folder
from lmk_data.build.output import Output, writing
from lmk_data.build.plan import Plan, class_names, make_plan, plan_fingerprint, rule_json
from lmk_data.build.publish import Publication, write_tables
from lmk_data.build.receipts import PlannedShard, Work, built_shards, finish_shards
from lmk_data.build.shard import Receipt, ShardPlace, ShardTask, build_shard
from lmk_data.dataset.format import (
    CLASSES,
    DROPPED_CLASSES,
    MANIFEST,
    SPLITS,
    Manifest,
    PlanEntry,
    SourceEntry,
    recipe_json,
)
from lmk_data.dataset.manifest import Provenance, read_manifest
from lmk_data.dataset.parquet_files import table_from
from lmk_data.dataset.tables import read_table
from lmk_data.errors import BuildError, UserError
from lmk_data.options import BuildOptions
from lmk_data.resize import encoder
from lmk_data.sources.archives import Place
from lmk_data.sources.class_folders import read_class_folders
from lmk_data.sources.labels import CLASS_FOLDERS, LabelTable, is_table_of, read_categories, read_labels
from lmk_data.sources.locate import locate, none_found
from lmk_data.sources.members import MEMBER_COLUMNS, Ignored, Members, read_members
from lmk_data.sources.stores import ArchiveStore, FolderStore, Store, open_stores
from lmk_data.sources.unread import first_names, unread_formats
from lmk_data.system.engine import Engine, local_engine
from lmk_data.system.storage import PLAN_TABLE, Folder, is_url, open_folder
from lmk_data.system.terminal import notice

_PLANNED_COLUMNS = ["key", "label", "landmark_id", *MEMBER_COLUMNS, "reason"]
_REJECTIONS_ALWAYS_ALLOWED = 2
_PROBES = 100


@dataclass(frozen=True)
class BuildResult:
    """How a build ended: `built_images` were resized by this run; `already_complete` if nothing was left to do.

    `ignored` counts the files of the sources that are not images of the build; None if these were not scanned.
    """

    manifest: Manifest
    already_complete: bool
    built_images: int
    resumed_images: int
    ignored: list[Ignored] | None
    seconds: float
    workers: int


def plan_build(options: BuildOptions) -> tuple[LabelTable, Plan]:
    """Read the labels and make the plan, without looking for an image unless the labels are class folders."""
    if options.labels == CLASS_FOLDERS:
        labels = _read_labels(options, open_stores(options.images, open_folder(options.out)), None)[0]
        _name_unread(labels.frame["source"])
    else:
        labels = read_labels(options.labels, id_column=options.id_column, label_column=options.label_column)
        with suppress(UserError, OSError):  # there may be no images yet
            _name_unread(first_names(open_stores([path for path in options.images if not is_url(path)])))
    return labels, _plan_of(labels.frame, options)


@dataclass(frozen=True)
class _Planned:
    """A build before its first file is written: the plan, the stores of its images, what the manifest states of it."""

    plan: Plan
    stores: list[Store]
    provenance: Provenance


@dataclass(frozen=True)
class _Job:
    """A build whose plan is written: its shards, and what publishing them needs.

    The planned images are in the folder only: in memory they would take 0.5 KB each as long as the build lasts.
    """

    shards: list[PlannedShard]
    stores: list[Store]
    publication: Publication

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the build."""
        return self.publication.provenance.fingerprint


def build(options: BuildOptions) -> BuildResult:
    """Build a dataset, or resume an earlier run of the same build.

    Raises UserError for input that cannot be used, BuildError or StorageError for a build that had to end. Finished
    shards are kept, and the same call resumes.
    """
    started = time.monotonic()
    out = open_folder(options.out)
    with writing(out, overwrite=options.overwrite) as output:
        stores = open_stores(options.images, out)
        if (done := _finished_before(options, output)) is not None:
            return _nothing_to_do(done, started)
        planned, ignored = _planned(options, stores, out)
        finished = output.finished(planned.provenance)
        if finished is not None and _is_wanted(finished, out, options):
            return _nothing_to_do(finished, started)
        shown = _shown_images(planned) if options.scheduler else []
        with _engine(options, out, shown) as engine:
            job = _begin(output, planned)
            del planned
            pa.default_memory_pool().release_unused()  # to the machine, which needs it for the workers
            workers = engine.workers
            receipts, built = _run(options, engine, out, job)
        manifest = output.publish(_write_tables(out, job, receipts))
    return BuildResult(
        manifest=manifest,
        already_complete=False,
        built_images=built,
        resumed_images=sum(shard.num_samples for shard in job.shards) - built,
        ignored=ignored,
        seconds=time.monotonic() - started,
        workers=workers,
    )


def _planned(options: BuildOptions, stores: list[Store], out: Folder) -> tuple[_Planned, list[Ignored] | None]:
    """Read the labels, look for the images and make the plan; return it with what the sources hold besides."""
    labels, located, ignored = _read_labels(options, stores, out)
    _name_what_may_be_missed(ignored or [])
    plan = _plan_of(located, options)
    _name_unread(plan.samples.loc[plan.samples["reason"] == "", "source"])
    _check_any_found(plan, stores)
    return _Planned(plan, stores, _provenance(labels.source, len(plan.samples), options)), ignored


def _begin(output: Output, planned: _Planned) -> _Job:
    """Write the plan, as the first file of the build."""
    plan = planned.plan
    output.begin(planned.provenance)
    shards = _planned_shards(plan)
    _write_plan(output.folder, plan, shards)
    return _Job(shards, planned.stores, Publication(planned.provenance, plan.counts, plan.classes, plan.dropped))


def _finished_before(options: BuildOptions, output: Output) -> Manifest | None:
    """Return the manifest of a dataset that these options have built before, without making the plan again.

    The plan follows from the bytes of the label table and from the options. None if something else is there (a copy of
    some samples, too), if there is something to do, or if the labels are class folders.
    """
    if options.overwrite or options.labels == CLASS_FOLDERS or not output.folder.exists(MANIFEST):
        return None
    manifest = read_manifest(output.folder)
    source, counts = manifest["source"], manifest["counts"]
    same = "subset_of" not in source and is_table_of(
        source, options.labels, id_column=options.id_column, label_column=options.label_column
    )
    if not same:
        return None
    provenance = _provenance(dict(source), counts["written"] + counts["rejected"], options)
    is_done = provenance.fingerprint == manifest["fingerprint"] and _is_wanted(manifest, output.folder, options)
    return manifest if is_done else None


def _nothing_to_do(manifest: Manifest, started: float) -> BuildResult:
    counts = manifest["counts"]
    return BuildResult(
        manifest=manifest,
        already_complete=True,
        built_images=0,
        resumed_images=counts["written"] + counts["rejected"],
        ignored=None,
        seconds=time.monotonic() - started,
        workers=0,
    )


@contextmanager
def _engine(options: BuildOptions, out: Folder, shown: list[tuple[Store, str, Place]]) -> Iterator[Engine]:
    """Yield what builds the shards: this machine, or a cluster whose workers proved that they see the same storage.

    `shown` are images that the workers of a cluster have to see.
    """
    if options.scheduler is None:
        yield local_engine(options.workers)
        return
    with connect(options.scheduler) as engine:
        check_workers(engine, out, shown)
        yield engine


def _shown_images(planned: _Planned) -> list[tuple[Store, str, Place]]:
    """Return one readable image from each folder that holds a store."""
    samples, stores = planned.plan.samples, planned.stores
    found = samples[samples["reason"] == ""]
    shown = []
    folders = found["store"].map({number: store.folder.root for number, store in enumerate(stores)})
    for _, images in found.groupby(folders):
        for _, image in images.iloc[:: max(1, len(images) // _PROBES)].iterrows():
            place = Place(*(int(image[name]) for name in ("offset", "num_bytes", "method", "crc32")))
            store, source = stores[image["store"]], str(image["source"])
            if isinstance(store.read(source, place), bytes):
                shown.append((store, source, place))
                break
    return shown


def _read_labels(
    options: BuildOptions, stores: list[Store], cache: Folder | None
) -> tuple[LabelTable, pd.DataFrame, list[Ignored] | None]:
    """Return the label table, the same with the place of each image, and what the sources hold besides."""
    if options.md5 is not None and not any(isinstance(store, ArchiveStore) for store in stores):
        raise UserError(f"--md5 {options.md5}: is for archives, and --images names none; leave it out")

    def members() -> Members:
        workers = local_engine(options.workers).workers
        return read_members(stores, cache=cache, md5=options.md5, workers=workers, quiet=options.quiet)

    if options.labels == CLASS_FOLDERS:
        labels, ignored = read_class_folders(stores, members(), options.class_level)
        return labels, labels.frame, ignored
    labels = read_labels(options.labels, id_column=options.id_column, label_column=options.label_column)
    located = locate(labels.frame, stores, members)
    labels = replace(
        labels,
        num_images=labels.num_images - located.repeated,
        conflicting=labels.conflicting + located.conflicting,
        duplicate_rows=labels.duplicate_rows + located.repeated,
    )
    return labels, located.frame, located.ignored


def _name_what_may_be_missed(ignored: list[Ignored]) -> None:
    """Name on stderr what was ignored and may be pictures; the summary has the rest."""
    for entry in ignored:
        if entry.may_be_missed:
            notice(f"ignored: {entry}")


def _name_unread(names: "pd.Series[str]") -> None:
    """Name on stderr the pictures that will be rejected because their format is not decoded here."""
    for sentence in unread_formats(names):
        notice(sentence)


def _plan_of(images: pd.DataFrame, options: BuildOptions) -> Plan:
    names = read_categories(options.categories) if options.categories else None
    plan = make_plan(images, options.rule, names)
    if names is not None and not plan.classes["landmark_id"].astype(str).isin(names.index).any():
        example = f"it names {names.index[0]!a}, a class is " if len(names) else "a class is "
        notice(f"{options.categories}: names none of the classes: {example}{str(plan.classes['landmark_id'][0])!a}")
    return plan


def _check_any_found(plan: Plan, stores: list[Store]) -> None:
    """Raise UserError if none of the planned images is there: a wrong --images must not give a dataset of none."""
    found = plan.samples[plan.samples["reason"] == ""]
    probes = found.iloc[:: max(1, len(found) // _PROBES)]
    for number, source in zip(probes["store"], probes["source"], strict=True):
        store = stores[number]
        if not isinstance(store, FolderStore) or store.folder.is_file(source):
            return
    wanted = str(found["source"].iloc[0]) if len(found) else str(plan.samples["source"].iloc[0])
    raise UserError(none_found(wanted, "which is not there", stores))


def _provenance(source: dict[str, Any], num_images: int, options: BuildOptions) -> Provenance:
    """Return what the manifest states of labels, plan, recipe and words, for a plan of `num_images` images."""
    rule, recipe = rule_json(options.rule, num_images), recipe_json(options.recipe, encoder())
    return Provenance(
        fingerprint=plan_fingerprint(source, rule, recipe),
        source=cast(SourceEntry, source),
        plan=cast(PlanEntry, rule),
        recipe=recipe,
        title=options.title,
        license=options.license,
    )


def _is_wanted(manifest: Manifest, out: Folder, options: BuildOptions) -> bool:
    """Return whether a published dataset has the words of these options, and no rejections to retry."""
    same_words = (manifest["title"], manifest["license"]) == (options.title, options.license)
    has_to_retry = options.retry_rejected and manifest["counts"]["rejected"]
    return same_words and not has_to_retry and _has_names_of(out, options)


def _has_names_of(out: Folder, options: BuildOptions) -> bool:
    """Return whether the classes of a published dataset have the names that these options give them."""
    names = read_categories(options.categories) if options.categories else None
    for table in (CLASSES, DROPPED_CLASSES):
        published = read_table(out, table, ["landmark_id", "name"]).to_pandas()
        if published["name"].to_list() != class_names(published["landmark_id"], names).to_list():
            return False
    return True


def _write_plan(out: Folder, plan: Plan, shards: list[PlannedShard]) -> None:
    """Write the plan for the workers, one row group per shard."""
    table = table_from(plan.samples[_PLANNED_COLUMNS])
    with out.atomic(PLAN_TABLE) as file, pq.ParquetWriter(file, table.schema, compression="zstd") as writer:
        start = 0
        for shard in shards:
            writer.write_table(table.slice(start, shard.num_samples), row_group_size=shard.num_samples)
            start += shard.num_samples


def _planned_shards(plan: Plan) -> list[PlannedShard]:
    """Return the shards of a plan, in order of `plan.samples`."""
    split, shard = plan.samples["split"].cat.codes.to_numpy(), plan.samples["shard"].to_numpy()
    starts = np.flatnonzero(np.diff(split, prepend=-1) | np.diff(shard, prepend=-1))
    sizes = np.diff(starts, append=len(shard))
    return [
        PlannedShard(SPLITS[split[start]], int(shard[start]), int(size), group)
        for group, (start, size) in enumerate(zip(starts, sizes, strict=True))
    ]


def _run(options: BuildOptions, engine: Engine, out: Folder, job: _Job) -> tuple[list[Receipt], int]:
    """Build the shards that have no receipt yet; return all receipts in order, and the number of images built now."""
    fingerprint = job.fingerprint
    with notes_folder(out, on_cluster=options.scheduler is not None) as notes:
        crashes = Crashes(out, fingerprint, notes, job.stores, options.recipe)
        crashes.load(forget=options.retry_rejected)
        work = Work(
            out=out,
            fingerprint=fingerprint,
            shards=job.shards,
            engine=engine,
            description="building",
            quiet=options.quiet,
            retry_rejected=options.retry_rejected,
            after_death=crashes.after_death,
        )

        def task_of(shard: PlannedShard) -> ShardTask:
            place = ShardPlace(out, shard.split, shard.number, fingerprint)
            return ShardTask(place, shard.row_group, tuple(job.stores), options.recipe, notes, crashes.known)

        rejections = _Rejections(sum(shard.num_samples for shard in job.shards), options.max_rejected)
        return finish_shards(work, build_shard, task_of, rejections.add)


class _Rejections:
    """A count of rejections that ends the build, with BuildError, as soon as there are too many."""

    def __init__(self, num_planned: int, max_rejected: float) -> None:
        self._allowed = max(max_rejected * num_planned, _REJECTIONS_ALWAYS_ALLOWED if max_rejected else 0)
        self._limit = max_rejected
        self._reasons: Counter[str] = Counter()

    def add(self, receipt: Receipt) -> None:
        self._reasons.update(receipt.reasons)
        if self._reasons.total() > self._allowed:
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in self._reasons.most_common())
            share = f"{100 * self._limit:g} %"
            raise BuildError(
                f"more than {share} of the images were rejected so far ({reasons}); not published; repair the source "
                "and run again with --retry-rejected, or allow more with --max-rejected"
            )


def _write_tables(out: Folder, job: _Job, receipts: list[Receipt]) -> Manifest:
    """Write everything beside the shards; return the manifest. Raises BuildError if no image is left."""
    if not any(receipt.num_samples for receipt in receipts):
        raise BuildError("every image was rejected; repair the source and run again with --retry-rejected")
    return write_tables(out, job.publication, built_shards(out, job.fingerprint, receipts))
