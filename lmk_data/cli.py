"""`lmk-shard`: parse, call, summarise; a thin shell over the modules that do the work."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from lmk_data import __version__
from lmk_data.dataset.format import Dialect, Fit, Subsampling
from lmk_data.system.terminal import run_command

if TYPE_CHECKING:
    from lmk_data.build.pipeline import BuildResult
    from lmk_data.build.plan import Plan
    from lmk_data.sources.labels import LabelTable

_PROGRAM = "lmk-shard"
_SHOWN_PROBLEMS = 20
_SHOWN_FILES = 4
_DESCRIPTION = """Turn a labelled pile of images into WebDataset shards, once, and look at what came out.

In the folder that Kaggle's Google Landmark Recognition archive was unpacked to, this is all there is to type:

    lmk-shard build --min-samples 6

`lmk-shard --version` says which version this is.
"""


@dataclass(frozen=True)
class Build:
    """Resize every image of a label table once and write shards, indexes and a manifest.

    Nothing complete is ever lost: interrupt it, and the same command goes on; run it again when it is
    finished, and it says so. A picture that cannot be read is rejected with a reason and counted.

    Example: lmk-shard build --images train --labels train.csv --out shards --min-samples 6
    """

    images: Annotated[tuple[str, ...], tyro.conf.arg(metavar="PATH ...")] = ("train",)
    """Where the images are: folders (a/b/c/<id>.jpg, flat, nested, or one per class), tars, zips, globs of these,
    or URLs such as s3://bucket/train; tars and zips are read where they lie."""
    labels: Annotated[str, tyro.conf.arg(metavar="FILE")] = "train.csv"
    """Label table (CSV or Parquet, a path or a URL); `classes` takes the names of the folders as labels."""
    out: Annotated[str, tyro.conf.arg(metavar="DIR")] = "shards"
    """Folder to write, a path or a URL; new, empty, or one that an earlier run of this build left."""
    min_samples: int = 6
    """Keep classes with at least this many images."""
    top: int | None = None
    """Of these, keep only the K largest."""
    split: Annotated[tuple[float, float, float], tyro.conf.arg(metavar="TRAIN VAL TEST")] = (0.72, 0.18, 0.1)
    """Ratios of the three splits; each class is split on its own."""
    seed: int = 0
    """Decides the split and the order of samples."""
    size: int = 224
    """Side of the stored square pictures in pixels."""
    fit: Fit = "squash"
    """How a picture meets the square: squashed, cropped at the centre, or padded with white."""
    quality: int = 90
    """JPEG quality of the stored pictures."""
    subsampling: Subsampling = "4:2:0"
    """Chroma subsampling of the stored pictures."""
    samples_per_shard: int | None = None
    """Samples in a shard; by default a 256th of the images, within 256..4096."""
    categories: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """Names of the classes: a table `landmark_id,category`."""
    id_column: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """Column of a label table of your own that holds the image's id, name or path."""
    label_column: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """Column of a label table of your own that holds the class."""
    md5: Annotated[str | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder of checksum files (md5.images_000.txt ...): archives that do not match theirs are named."""
    title: str = ""
    """Title of the dataset, for its card."""
    license: str = ""
    """Licence of the pictures, for the card."""
    workers: int | None = None
    """Worker processes; by default one per core."""
    engine: Literal["local", "dask"] = "local"
    """This machine, or a Dask cluster whose workers see the same storage."""
    scheduler: Annotated[str | None, tyro.conf.arg(metavar="ADDRESS")] = None
    """The cluster's scheduler, such as tcp://host:8786."""
    max_rejected: float = 0.05
    """Give up as soon as more than this share of the images is rejected."""
    retry_rejected: bool = False
    """Try the rejected images again, and write the shards that they belong to anew."""
    overwrite: bool = False
    """Remove what another build left in --out and start again."""
    dry_run: bool = False
    """Only plan, from the labels alone, and print what a build would write."""
    quiet: bool = False
    """No progress, no summary."""


@dataclass(frozen=True)
class Report:
    """Write the HTML report of a dataset (report/index.html) and print its summary.

    Example: lmk-shard report shards
    """

    dataset: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DATASET")]
    """The dataset: a path or a URL."""
    out: Annotated[str | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder for the report; by default `report` inside the dataset."""
    workers: int | None = None
    """Threads that compare pictures for near duplicates; by default one per core."""
    quiet: bool = False
    """No progress, no summary."""


@dataclass(frozen=True)
class Verify:
    """Prove that a dataset is what its manifest says, to the last byte.

    Every file is hashed, every tar held against the index byte by byte and read with webdataset, counts are
    reconciled, and a sample of the pictures is decoded. Exits with 1 and names file and bytes if anything differs.

    Example: lmk-shard verify shards
    """

    dataset: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DATASET")]
    """The dataset or view: a path or a URL."""
    quick: bool = False
    """Leave out decoding."""
    workers: int | None = None
    """Worker processes; by default one per core."""
    quiet: bool = False
    """No progress, no summary."""


@dataclass(frozen=True)
class Subset:
    """Choose classes of a dataset: a view, made in seconds, that opens as a dataset and copies no picture.

    The rules combine: of the classes listed, those with enough images, of these the largest. With --copy the
    result is a dataset of its own around the same JPEG bytes.

    Example: lmk-shard subset shards --out shards-top20 --top 20 --max-per-class 500
    """

    dataset: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DATASET")]
    """The dataset or view to choose from: a path or a URL."""
    out: Annotated[str, tyro.conf.arg(metavar="VIEW")]
    """Folder to write, a path or a URL; new, empty, or one that an earlier run left."""
    classes: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """Keep the landmark ids in this file: one a line, or the column landmark_id of a CSV or Parquet."""
    min_samples: int | None = None
    """Keep classes for which at least this many images are listed."""
    top: int | None = None
    """Keep only the K largest classes."""
    max_per_class: int | None = None
    """Keep at most this many training images of a class."""
    drop_duplicates: Literal["exact", "near"] | None = None
    """Leave out validation and test images with a duplicate in training, and all but one of each group in a split."""
    copy: bool = False
    """Write shards of its own, with new labels, instead of a view."""
    workers: int | None = None
    """Worker processes for --copy and for comparing pictures; by default one per core."""
    overwrite: bool = False
    """Remove what another build or view left in --out."""
    quiet: bool = False
    """No progress, no summary."""


@dataclass(frozen=True)
class Export:
    """Write a folder that another tool takes as it is: hard links to the shards, and that tool's own index.

    wids: a descriptor per split for webdataset's ShardListDataset. timm: _info.json for its wds/ reader. dali: an .idx
    per shard for fn.readers.webdataset. energon: .nv-meta as `energon prepare` makes it. croissant: croissant.json.
    Hugging Face datasets, webdataset, DuckDB and the like need no export; docs/reuse.md shows each of them.

    Example: lmk-shard export shards --to timm
    """

    dataset: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DATASET")]
    """The dataset; a view has to become a dataset of its own first, by `subset --copy`."""
    to: Dialect
    """The tool."""
    out: Annotated[str | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder to write, on the file system of the dataset; by default DATASET-TOOL."""
    quiet: bool = False
    """No progress, no summary."""


@dataclass(frozen=True)
class Sample:
    """Draw a long-tailed set of synthetic landmarks in the layout of Google Landmark Recognition.

    Some classes have fewer than 6 images, one listed file is unreadable and one is missing, as in real life.

    Example: lmk-shard sample demo/images && lmk-shard build --images demo/images/train --labels demo/images/train.csv
    """

    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT")]
    """Folder to write."""
    classes: int = 24
    """Number of landmarks."""
    images: int = 900
    """Number of photos, over all landmarks."""
    seed: int = 0
    """Decides what is drawn."""
    workers: int | None = None
    """Worker processes; by default one per core."""
    quiet: bool = False
    """No progress, no summary."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `lmk-shard`; returns the exit code (a command line that does not parse exits with 2)."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given == ["--version"]:
        print(f"{_PROGRAM} {__version__}")
        return 0
    command = tyro.extras.subcommand_cli_from_dict(
        {"build": Build, "report": Report, "verify": Verify, "subset": Subset, "export": Export, "sample": Sample},
        prog=_PROGRAM,
        description=_DESCRIPTION,
        args=given,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    runners: dict[type, Callable[[Any], None]] = {
        Build: _build,
        Report: _report,
        Verify: _verify,
        Subset: _subset,
        Export: _export,
        Sample: _sample,
    }
    return run_command(_PROGRAM, lambda: runners[type(command)](command))


def _build(command: Build) -> None:
    from lmk_data.build.pipeline import BuildOptions, build, plan_build
    from lmk_data.build.plan import PlanRule
    from lmk_data.dataset.format import Recipe

    rule = PlanRule(command.min_samples, command.top, command.split, command.seed, command.samples_per_shard)
    options = BuildOptions(
        images=list(command.images),
        labels=command.labels,
        out=command.out,
        rule=rule,
        recipe=Recipe(command.size, command.fit, command.quality, command.subsampling),
        categories=command.categories,
        id_column=command.id_column,
        label_column=command.label_column,
        md5=command.md5,
        title=command.title,
        license=command.license,
        workers=command.workers,
        scheduler=_scheduler(command),
        max_rejected=command.max_rejected,
        retry_rejected=command.retry_rejected,
        overwrite=command.overwrite,
        quiet=command.quiet,
    )
    if command.dry_run:
        _print_plan(command, *plan_build(options))
        return
    result = build(options)
    if not command.quiet:
        _print_built(command, result)
    _write_report(command.out, None, command.workers, command.quiet)
    if not command.quiet:
        print(f"next: lmk-train --shards {command.out}")


def _scheduler(command: Build) -> str | None:
    from lmk_data.errors import UserError

    if (command.engine == "dask") != (command.scheduler is not None):
        raise UserError("--engine dask and --scheduler ADDRESS go together; give both or neither")
    return command.scheduler


def _report(command: Report) -> None:
    _write_report(command.dataset, command.out, command.workers, command.quiet)


def _verify(command: Verify) -> None:
    from lmk_data.errors import DatasetError
    from lmk_data.verify.dataset import verify

    found = verify(command.dataset, quick=command.quick, workers=command.workers, quiet=command.quiet)
    if found.problems:
        for problem in found.problems[:_SHOWN_PROBLEMS]:
            print(problem)
        more = len(found.problems) - _SHOWN_PROBLEMS
        if more > 0:
            print(f"and {more:,} more")
        raise DatasetError(
            f"{command.dataset}: {len(found.problems):,} problems, see above; copy what is damaged again from a good "
            "copy, or delete dataset.json and the damaged shards and run the build again"
        )
    if not command.quiet:
        decoded = "" if command.quick else f", {found.num_decoded:,} pictures decoded"
        print(
            f"{command.dataset}: good: {found.num_files:,} files, {found.num_bytes / 1e6:,.1f} MB, every byte of "
            f"{found.num_samples:,} samples accounted for{decoded}"
        )


def _subset(command: Subset) -> None:
    from lmk_data.dataset.reader import ShardedDataset
    from lmk_data.views.copy import write_copy
    from lmk_data.views.selection import Selection, read_class_list
    from lmk_data.views.view import write_view

    classes = read_class_list(command.classes) if command.classes else None
    selection = Selection(classes, command.min_samples, command.top, command.drop_duplicates, command.max_per_class)
    with ShardedDataset.open(command.dataset) as dataset:
        write = write_copy if command.copy else write_view
        manifest = write(
            dataset,
            selection,
            command.out,
            workers=command.workers,
            overwrite=command.overwrite,
            quiet=command.quiet,
        )
    if not command.quiet:
        num_classes, written = manifest["classes"]["num_classes"], manifest["counts"]["written"]
        kind = "copy" if command.copy else "view"
        print(f"{command.out}: a {kind} of {written:,} images of {num_classes:,} classes")
        for split, entry in manifest["splits"].items():
            print(f"  {split:5} {entry['num_samples']:>9,} images in {len(entry['shards']):,} shards")
        origin = manifest["source"]["subset_of"] if command.copy else manifest["view_of"]
        if dropped := origin["removed"].get("duplicates"):
            print(f"  duplicates left out: {', '.join(f'{number:,} of {split}' for split, number in dropped.items())}")
        print(f"next: lmk-train --shards {command.out}")


def _export(command: Export) -> None:
    from lmk_data.dataset.reader import ShardedDataset
    from lmk_data.export.export import export

    with ShardedDataset.open(command.dataset) as dataset:
        exported = export(dataset, command.to, command.out or f"{dataset.location}-{command.to}", quiet=command.quiet)
    if not command.quiet:
        names = exported.written
        shown = ", ".join(names[:_SHOWN_FILES]) + (
            f" and {len(names) - _SHOWN_FILES:,} more" * (len(names) > _SHOWN_FILES)
        )
        print(f"{exported.folder}: {shown}; the tars are hard links")
        print("next: the snippet for this tool in docs/reuse.md")


def _sample(command: Sample) -> None:
    from lmk_data.sample import draw_sample

    drawn = draw_sample(
        command.out,
        num_classes=command.classes,
        num_images=command.images,
        seed=command.seed,
        workers=command.workers,
        quiet=command.quiet,
    )
    if not command.quiet:
        print(
            f"{drawn.folder}: {drawn.num_images:,} images of {drawn.num_classes:,} landmarks, "
            "one unreadable, one missing"
        )
        folder = drawn.folder
        print(f"next: lmk-shard build --images {folder}/train --labels {folder}/train.csv --out {folder}/shards")


def _write_report(path: str, out: str | None, workers: int | None, quiet: bool) -> None:
    from lmk_data.dataset.format import REPORT_FOLDER
    from lmk_data.dataset.reader import ShardedDataset
    from lmk_data.report import terminal_summary, write_report
    from lmk_data.system.storage import open_folder

    folder = out or f"{path.rstrip('/')}/{REPORT_FOLDER}"
    with ShardedDataset.open(path) as dataset:
        report = write_report(dataset, open_folder(folder), workers=workers, quiet=quiet)
    if not quiet:
        print(terminal_summary(report))
        print(f"report: {folder}/index.html")


def _print_plan(command: Build, labels: "LabelTable", plan: "Plan") -> None:
    counts, num_samples = plan.counts, plan.samples["split"].value_counts()
    print(f"{labels.name} ({labels.layout}): {labels.num_images:,} images of {labels.num_classes:,} classes")
    print(
        f"  {labels.conflicting:,} ids with two labels left out, {labels.duplicate_rows:,} repeated rows counted once"
    )
    print(
        f"  {counts['below_min_samples']:,} images in classes under {command.min_samples}, "
        f"{counts['outside_top']:,} outside the largest classes"
    )
    print(f"would write {len(plan.samples):,} images of {len(plan.classes):,} classes to {command.out}:")
    for split, num_shards in plan.num_shards.items():
        share = num_samples[split] / len(plan.samples)
        print(f"  {split:5} {num_samples[split]:>9,} images ({share:6.2%}) in {num_shards:,} shards")


def _print_built(command: Build, result: "BuildResult") -> None:
    if result.already_complete:
        print(f"{command.out}: this build is already complete; nothing to do")
        return
    if result.num_ignored:
        print(f"{result.num_ignored:,} files belong to no row of the labels and were ignored")
    encoder = result.manifest["recipe"]["encoder"]
    rate = result.built_images / max(result.seconds, 1e-9)
    went_on = f", going on after {result.resumed_images:,} built earlier" if result.resumed_images else ""
    print(
        f"{command.out}: {result.built_images:,} images in {result.seconds:,.1f} s ({rate:,.0f} a second on "
        f"{result.workers} workers, {encoder['distribution']} {encoder['version']}){went_on}"
    )


if __name__ == "__main__":
    sys.exit(main())
