"""The options of `lmk-shard`: one frozen dataclass per command, made of the parts that the work itself takes.

Every option is declared here, once. The line under a field is its text in --help, and the class checks its own values.
`PlanRule`, `Recipe`, `BuildOptions` and `Selection` are also what callers from Python pass to `build`, `write_view`
and `write_copy`. This module imports nothing heavy, because every start of `lmk-shard` imports it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from math import gcd, lcm
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Fixed, OmitArgPrefixes, Positional, Suppress, UseAppendAction, arg

from lmk_data.errors import UserError
from lmk_data.mark import Mark

Fit = Literal["squash", "crop", "pad"]
Subsampling = Literal["4:2:0", "4:4:4"]
Dialect = Literal["wids", "timm", "dali", "energon", "croissant"]
DuplicateKind = Literal["exact", "near"]
_MIN_SIZE, _MAX_SIZE = 8, 4096  # pixels
_MAX_SPLIT_ERROR = Decimal("1e-6")
_Base = Annotated[
    str | None,
    arg(
        metavar="DIR_OR_URL",
        help="Dataset that has the pictures of a view; by default the one that the view names. Needed if that is on "
        "another host, because nothing that only a file names is opened there.",
    ),
]
_Workers = Annotated[int | None, arg(metavar="N")]
_Files = Annotated[tuple[tuple[str, ...], ...], arg(metavar="FILE ..."), UseAppendAction]
_INLINE = arg(name="", prefix_name=False)  # the fields of a nested dataclass are options of the command itself


@dataclass(frozen=True, slots=True)
class PlanRule:
    """Which classes are kept, how each is split, and how many samples a shard holds."""

    min_samples: int = 6
    """Keep classes with at least this many images."""
    top: Annotated[int | None, arg(metavar="K")] = None
    """Of these classes, keep only the K with the most images."""
    split: Annotated[tuple[float, float, float], arg(metavar="TRAIN VAL TEST")] = (0.72, 0.18, 0.1)
    """Ratios of the three splits, which sum to 1; each class is split on its own."""
    seed: int = 0
    """Seed of the split and of the order of samples, from 0 to 2^63 - 1."""
    samples_per_shard: Annotated[int | None, arg(metavar="N")] = None
    """Samples in a shard; by default images // 256, but at least 256 and at most 4096."""

    def __post_init__(self) -> None:
        _check_positive("--min-samples", self.min_samples)
        _check_positive("--top", self.top, "; leave it out to keep every class")
        if not 0 <= self.seed < 2**63:
            raise UserError(f"--seed {self.seed}: must be from 0 to 2^63 - 1")
        _check_positive("--samples-per-shard", self.samples_per_shard)
        split_weights(self.split)


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one picture becomes one stored JPEG."""

    size: int = 224
    """Side of the stored square pictures, 8 to 4096 pixels."""
    fit: Fit = "squash"
    """How a picture fills the square: squashed to it, cropped at the centre, or padded with white."""
    quality: int = 90
    """JPEG quality of the stored pictures, 1 to 100."""
    subsampling: Subsampling = "4:2:0"
    """Chroma subsampling of the stored pictures; 4:4:4 keeps colour at full resolution and takes more space."""
    # The manifest states the rest, and no command line changes it.
    filter: Suppress[Fixed[str]] = "bicubic"
    """The resampling filter, for the manifest."""
    exif_transpose: Suppress[Fixed[bool]] = True
    """Whether the EXIF orientation is applied."""
    max_pixels: Suppress[Fixed[int]] = 100_000_000
    """Pictures with more pixels are rejected without being decoded."""


@dataclass(frozen=True)
class BuildOptions:
    """Everything that a build is told: what `lmk-shard build` parses, and what `lmk_data.build.build` takes.

    Paths are local paths or fsspec URLs. Raises UserError for a value that no build can use.
    """

    images: Annotated[Sequence[str], arg(metavar="PATH ...")] = ("train",)
    """Where the images are: folders, tars, zips, globs of these, or URLs of these such as s3://bucket/train.
    Folders may be a/b/c/<id>.jpg, flat, nested, or one per class. Tars and zips are read without unpacking them."""
    labels: Annotated[str, arg(metavar="FILE")] = "train.csv"
    """Label table, CSV or Parquet, a path or a URL. `classes` uses the names of the image folders as labels."""
    out: Annotated[str | Path, arg(metavar="DIR")] = "shards"
    """Folder to write, a path or a URL. It must be new, empty, or left by an earlier run of the same build."""
    rule: Annotated[PlanRule, arg(name="plan"), OmitArgPrefixes] = field(default_factory=PlanRule)
    recipe: Annotated[Recipe, arg(name="picture"), OmitArgPrefixes] = field(default_factory=Recipe)
    categories: Annotated[str | None, arg(metavar="FILE")] = None
    """Names of the classes: a table with the columns landmark_id and category."""
    id_column: Annotated[str | None, arg(metavar="NAME")] = None
    """Column of your own label table with the image's id, file name or path."""
    label_column: Annotated[str | None, arg(metavar="NAME")] = None
    """Column of your own label table with the class."""
    class_level: Annotated[int | None, arg(metavar="N")] = None
    """With --labels classes, which folders are the classes: 1 for those directly below --images, 2 for those in them.
    By default 1, or deeper where the folders above are one alone, or train, val and test, and hold no picture."""
    md5: Annotated[str | None, arg(metavar="DIR")] = None
    """Folder of checksum files (md5.images_000.txt ...). Archives that do not match theirs are named."""
    title: Annotated[str, arg(metavar="TEXT")] = ""
    """Title of the dataset, for its card."""
    license: Annotated[str, arg(metavar="TEXT")] = ""
    """Licence of the pictures, for the card, such as CC-BY-4.0."""
    workers: _Workers = None
    """Worker processes on this machine; by default one per core."""
    scheduler: Annotated[str | None, arg(metavar="ADDRESS")] = None
    """Build on the Dask cluster of this scheduler, such as tcp://host:8786. Its workers need the same storage."""
    max_rejected: Annotated[float, arg(metavar="SHARE")] = 0.05
    """Stop as soon as more than this fraction of the images is rejected, 0 to 1."""
    retry_rejected: bool = False
    """Try rejected images again, and rewrite the shards that they belong to."""
    overwrite: bool = False
    """Delete what another build left in --out and start again."""
    quiet: bool = False
    """Print no progress and no summary."""

    def __post_init__(self) -> None:
        if not _MIN_SIZE <= self.recipe.size <= _MAX_SIZE:
            raise UserError(f"--size {self.recipe.size}: must be from {_MIN_SIZE} to {_MAX_SIZE} pixels")
        if not 1 <= self.recipe.quality <= 100:
            raise UserError(f"--quality {self.recipe.quality}: must be from 1 to 100")
        if any("\ud800" <= letter <= "\udfff" for letter in self.title + self.license):
            raise UserError("--title and --license: must be text in UTF-8")
        _check_positive("--class-level", self.class_level)
        if self.class_level is not None and self.labels != "classes":
            raise UserError(f"--class-level {self.class_level}: is for --labels classes; a label table has its own")
        for flag, column in (("--id-column", self.id_column), ("--label-column", self.label_column)):
            if column is not None and self.labels == "classes":
                raise UserError(f"{flag} {column}: is for a label table; --labels classes has no columns")
        _check_positive("--workers", self.workers)
        if self.workers is not None and self.scheduler is not None:
            raise UserError(f"--workers {self.workers}: is for one machine; a Dask cluster uses all its workers")
        if not 0 <= self.max_rejected <= 1:
            raise UserError(f"--max-rejected {self.max_rejected}: must be from 0 to 1")


@dataclass(frozen=True, slots=True)
class Selection:
    """Rules that choose classes and images. They apply in the order in which they stand here."""

    include: Suppress[Fixed[tuple[str, ...] | None]] = None
    """Keys of the samples to choose from, which the command line reads from files; None means all."""
    exclude: Suppress[Fixed[tuple[str, ...] | None]] = None
    """Keys of samples to leave out, which the command line reads from files."""
    marks: Suppress[Fixed[Mapping[str, Mark] | None]] = None
    """Samples to leave out or to give another class, by key; the command line reads them from files."""
    ignore_unknown: Suppress[Fixed[bool]] = False
    """Ignore keys that the dataset does not have, and those that are left out and relabelled; else an error."""
    classes: Suppress[Fixed[tuple[str, ...] | None]] = None
    """Landmark ids as strings, which the command line reads from a file."""
    min_samples: Annotated[int | None, arg(metavar="N")] = None
    """Keep classes with at least this many listed images in the original dataset, after marks."""
    top: Annotated[int | None, arg(metavar="K")] = None
    """Of these classes, keep only the K with the most listed images."""
    drop_duplicates: Annotated[DuplicateKind | None, arg(metavar="{exact,near}")] = None
    """Drop validation and test images with a duplicate in train, and all but one of each group within a split."""
    max_per_class: Annotated[int | None, arg(metavar="N")] = None
    """Keep at most this many training images per class."""

    def __post_init__(self) -> None:
        _check_positive("--min-samples", self.min_samples)
        _check_positive("--top", self.top)
        _check_positive("--max-per-class", self.max_per_class)


@dataclass(frozen=True)
class OldBuildFlags:
    """Flags of earlier releases. They still work, and nothing needs them."""

    engine: Annotated[Literal["local", "dask"] | None, arg(metavar="{local,dask}")] = None
    """`--engine dask --scheduler ADDRESS` is now `--scheduler ADDRESS`; `--engine local` is the default."""


@dataclass(frozen=True)
class Build:
    """Resize every image of a label table once and write shards, label indexes and a manifest.

    No finished shard is ever lost: after an interruption the same command resumes, and after a finished build it says
    that nothing is left to do. An image that cannot be read is rejected with a reason and counted.

    Example: lmk-shard build --images train --labels train.csv --out shards --min-samples 6
    """

    options: Annotated[BuildOptions, _INLINE] = field(default_factory=BuildOptions)
    old: Annotated[OldBuildFlags, OmitArgPrefixes] = field(default_factory=OldBuildFlags)
    dry_run: bool = False
    """Plan from the label table alone, and print what a build would write."""
    no_report: bool = False
    """Do not write the HTML report; `lmk-shard report` can write it later."""

    def __post_init__(self) -> None:
        if self.old.engine == "dask" and self.options.scheduler is None:
            raise UserError("--engine dask needs --scheduler ADDRESS, which is enough by itself")
        if self.old.engine == "local" and self.options.scheduler is not None:
            raise UserError("--engine local contradicts --scheduler, which builds on a Dask cluster; give one of them")


@dataclass(frozen=True)
class Report:
    """Write the HTML report of a dataset (report/index.html) and print its summary.

    Example: lmk-shard report shards
    """

    dataset: Annotated[Positional[str], arg(metavar="DATASET")]
    """The dataset or view: a path or a URL."""
    out: Annotated[str | None, arg(metavar="DIR")] = None
    """Folder for the report; by default `report` inside the dataset."""
    base: _Base = None
    workers: _Workers = None
    """Threads that compare pictures for near duplicates; by default one per core."""
    quiet: bool = False
    """Print no progress and no summary."""


@dataclass(frozen=True)
class Verify:
    """Prove that a dataset is what its manifest says, to the last byte.

    Every file is hashed, every tar is compared with the index byte by byte, the counts are reconciled. Some tars are
    read with webdataset, some pictures are decoded. Exits with 1 and names files and bytes if anything differs.

    Example: lmk-shard verify shards
    """

    dataset: Annotated[Positional[str], arg(metavar="DATASET")]
    """The dataset or view: a path or a URL."""
    base: _Base = None
    quick: bool = False
    """Do not decode the sample of pictures."""
    thorough: bool = False
    """Read every tar with webdataset, not 16 at most. The bytes of all are compared in any case."""
    workers: _Workers = None
    """Worker processes; by default one per core."""
    quiet: bool = False
    """Print no progress and no summary."""


@dataclass(frozen=True)
class Subset:
    """Choose classes and images of a dataset and write a view: made in seconds, opens as a dataset, copies no picture.

    The rules combine: first --include, --exclude and --marks, then the listed classes, then those with enough images,
    then the largest of these. With --copy the result is an independent dataset with the same JPEG bytes.

    Example: lmk-shard subset shards --out shards-top20 --top 20 --max-per-class 500

    Marks leave samples out or give them another class. They are a CSV, such as these three lines:

    key,action,landmark_id,note
    0a1b2c3d4e5f6071,exclude,,a floor plan
    17234fa0b1c2d3e4,relabel,138982,the other church

    Example: lmk-shard subset shards --out shards-clean --marks marks.csv --min-samples 6
    """

    dataset: Annotated[Positional[str], arg(metavar="DATASET")]
    """The dataset or view to choose from: a path or a URL."""
    out: Annotated[str, arg(metavar="VIEW")]
    """Folder to write, a path or a URL. It must be new, empty, or left by an earlier run."""
    selection: Annotated[Selection, OmitArgPrefixes] = field(default_factory=Selection)
    classes: Annotated[str | None, arg(metavar="FILE")] = None
    """Keep the landmark ids in this file: one per line, or the column landmark_id of a CSV or Parquet file."""
    marks: _Files = ()
    """Apply the marks in these CSV files: samples marked `exclude` are left out, `relabel` gives another class."""
    exclude: _Files = ()
    """Leave out the samples with these keys: one per line, or the column key of a CSV or Parquet file."""
    include: _Files = ()
    """Choose from the samples with these keys only, from files as for --exclude."""
    ignore_unknown: bool = False
    """Ignore keys in these files that the dataset does not have, and those with two different marks."""
    base: _Base = None
    copy: bool = False
    """Write shards with new labels instead of a view."""
    workers: _Workers = None
    """Worker processes for --copy, and threads that compare pictures; by default one per core."""
    overwrite: bool = False
    """Delete what another build or view left in --out."""
    quiet: bool = False
    """Print no progress and no summary."""

    def __post_init__(self) -> None:
        if self.ignore_unknown and not (self.marks or self.exclude or self.include):
            raise UserError("--ignore-unknown: is for --marks, --exclude and --include; leave it out")


@dataclass(frozen=True)
class Browse:
    """Look at a dataset in a web browser, and mark what is wrong. Needs the extra `browse`.

    The pages come from this machine alone and are for the browser that opens the printed address. Marks are saved at
    once; `lmk-shard subset --marks` makes a view of them. Ctrl-C ends it.

    Example: lmk-shard browse shards --run runs/efficientnet-b0-balanced-softmax --marks marks.csv
    """

    dataset: Annotated[Positional[str], arg(metavar="DATASET")]
    """The dataset or view: a path or a URL."""
    run: Annotated[Path | None, arg(metavar="RUN")] = None
    """A run that `lmk-eval` evaluated: shows what it predicts."""
    quality: Annotated[Path | None, arg(metavar="DIR")] = None
    """What `lmk-inspect` wrote: shows suspects, outliers, and the nearest pictures."""
    marks: Annotated[str | None, arg(metavar="FILE")] = None
    """The marks, a CSV file that the first mark creates; by default NAME-marks.csv in the current folder, where NAME is
    the folder of the dataset."""
    base: _Base = None
    port: Annotated[int, arg(metavar="N")] = 0
    """Port to listen at; 0 takes a free one."""
    host: Annotated[str, arg(metavar="ADDRESS")] = "127.0.0.1"
    """Address to listen at. Any but one of this machine alone lets others of your network reach the pages, without
    encryption; `ssh -L` is safer."""
    no_open: bool = False
    """Do not open a browser, only print the address."""
    quiet: bool = False
    """Print nothing but the address."""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise UserError(f"--port {self.port}: must be from 0 to 65535")


@dataclass(frozen=True)
class Export:
    """Write a folder that another tool reads as it is: hard links to the shards, and that tool's own index.

    wids: a descriptor per split for webdataset's ShardListDataset. timm: _info.json for its wds/ reader. dali: an .idx
    per shard for fn.readers.webdataset. energon: .nv-meta as `energon prepare` makes it. croissant: croissant.json.
    Hugging Face datasets, webdataset, DuckDB and others need no export; docs/reuse.md shows each of them.

    Example: lmk-shard export shards --to timm
    """

    dataset: Annotated[Positional[str], arg(metavar="DATASET")]
    """The dataset, a local path. `lmk-shard subset --copy` turns a view into a dataset that can be exported."""
    to: Dialect
    """The tool that will read the export."""
    out: Annotated[str | None, arg(metavar="DIR")] = None
    """Folder to write, on the file system of the dataset; by default DATASET-TOOL."""
    quiet: bool = False
    """Print no progress and no summary."""


@dataclass(frozen=True)
class Sample:
    """Draw a long-tailed set of synthetic landmarks in the layout of Google Landmark Recognition.

    Some classes have fewer than 6 images, one listed file is unreadable and one is missing, as in real collections.

    Example: lmk-shard sample demo/images && lmk-shard build --images demo/images/train --labels demo/images/train.csv
    """

    out: Annotated[Positional[Path], arg(metavar="OUT")]
    """Folder to write."""
    classes: int = 24
    """Number of landmarks."""
    images: int = 900
    """Number of photos over all landmarks."""
    seed: int = 0
    """Seed of everything that is drawn."""
    workers: _Workers = None
    """Worker processes; by default one per core."""
    quiet: bool = False
    """Print no progress and no summary."""


def split_weights(split: tuple[float, float, float]) -> tuple[list[int], int]:
    """Return the three ratios of a split as exact integers, and their sum.

    Raises UserError unless they are ratios from 0 to 1 that sum to 1.
    """
    shown = " ".join(str(ratio) for ratio in split)
    try:
        ratios = [Decimal(str(ratio)) for ratio in split]
    except InvalidOperation:
        raise UserError(f"--split {shown}: not numbers") from None
    if any(not ratio.is_finite() or not 0 <= ratio <= 1 for ratio in ratios) or len(ratios) != 3:
        raise UserError(f"--split {shown}: must be three ratios from 0 to 1, for train, val and test")
    if abs(sum(ratios, Decimal(0)) - 1) > _MAX_SPLIT_ERROR:
        raise UserError(f"--split {shown}: sums to {sum(ratios)}, must sum to 1")
    scale = lcm(*(ratio.as_integer_ratio()[1] for ratio in ratios))
    weights = [int(ratio * scale) for ratio in ratios]
    divisor = gcd(*weights)
    return [weight // divisor for weight in weights], sum(weights) // divisor


def _check_positive(flag: str, value: int | None, advice: str = "") -> None:
    if value is not None and value < 1:
        raise UserError(f"{flag} {value}: must be at least 1{advice}")
