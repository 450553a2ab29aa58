"""The command lines of `lmk-eval`, `lmk-predict`, `lmk-inspect`, `lmk-export` and `lmk-tune`, as frozen dataclasses."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from lmk_data.errors import UserError
from lmk_train.config.arguments import Amp, CacheOptions, DatasetBase, DatasetLocation, Device, Quiet, Workers
from lmk_train.config.defaults import LossName, ModelName
from lmk_train.config.option import Limits, check_limits
from lmk_train.config.training import Metric, one_of

RunLocation = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN", help="Folder of the run.")]
CheckpointName = Annotated[Literal["best", "last"], tyro.conf.arg(help="Checkpoint of the run.")]
_AtLeastOne = Annotated[int | None, tyro.conf.arg(metavar="N"), Limits(at_least=1)]


@dataclass(frozen=True)
class EvalConfig:
    """Evaluate a run's checkpoint on a split: metrics, predictions, per-class figures and the confusion matrix.

    Example: lmk-eval runs/efficientnet-lite0-balanced-softmax --split val
    """

    run: RunLocation
    shards: Annotated[str | None, tyro.conf.arg(metavar="DATASET")] = None
    """Dataset to evaluate on; by default the one that the run was trained on."""
    base: DatasetBase = None
    split: Literal["train", "val", "test"] = "test"
    """Split to evaluate."""
    checkpoint: CheckpointName = "best"
    tau: bool = False
    """Sweep post-hoc methods in the same pass: logit adjustment (logits minus tau times the log prior) and, with a
    linear head, tau-normalised weights. Prints the figures of each tau, and which one is best on validation."""
    class_means: bool = False
    """With --tau: also classify by the nearest class mean of the training features (cosine).
    Runs every training picture through the model once, each time it is asked for."""
    calibrate: bool = False
    """Fit the temperature of the run's probabilities on the validation split of the dataset, and keep it in the run.
    A training does so at its end if it has 30 validation pictures or more."""
    batch_size: _AtLeastOne = None
    """Samples per batch; by default as in training."""
    amp: Amp = "auto"
    device: Device = "auto"
    workers: Workers = None
    cache: tyro.conf.OmitArgPrefixes[CacheOptions] = field(default_factory=CacheOptions)
    quiet: Quiet = False

    def __post_init__(self) -> None:
        check_limits(self)
        if self.class_means and not self.tau:
            raise UserError("--class-means: is a part of the sweep; give --tau too")


@dataclass(frozen=True)
class PredictConfig:
    """Predict the landmark in pictures of any kind that the build accepts, resized as the run's dataset was.

    For a picture that cannot be read, one line is printed to stderr and the exit code is 1; the others are predicted.

    Example: lmk-predict runs/efficientnet-b0-balanced-softmax photo.jpg holiday/
    """

    run: RunLocation
    images: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE ...")]
    """Pictures, folders of pictures, URLs; `-` reads such names from stdin, one per line."""
    top: Annotated[int, tyro.conf.arg(metavar="K"), Limits(at_least=1)] = 5
    """Landmarks to name for each picture, the most probable first."""
    json: bool = False
    """Print one line of JSON for each picture."""
    csv: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Write a CSV instead of printing: a row for each picture, in the order given, folders in sorted order.
    Columns: image, landmark_id_1, probability_1 and so on to K. A picture that cannot be read has an empty row."""
    submission: bool = False
    """Write --csv in the form of Kaggle's landmark recognition challenge: id (the name of the file without its suffix)
    and landmarks (the most probable landmark and its probability, or empty)."""
    min_confidence: Annotated[float, tyro.conf.arg(metavar="X"), Limits(at_least=0, at_most=1)] = 0.0
    """Name no landmark whose probability is below X; a picture may then have no answer."""
    neighbours: Annotated[int | None, tyro.conf.arg(metavar="K"), Limits(at_least=1, at_most=50)] = None
    """Name the K nearest training pictures by the features of the run, and blend their votes with its probabilities, by
    the weight that validation picks. The first time, this writes an index into the run's folder, from its dataset."""
    shards: Annotated[str | None, tyro.conf.arg(metavar="DATASET")] = None
    """Dataset that the run was trained on, for the index; by default the one that the run names."""
    base: DatasetBase = None
    checkpoint: CheckpointName = "best"
    batch_size: Annotated[int, tyro.conf.arg(metavar="N"), Limits(at_least=1)] = 64
    """Pictures per batch."""
    amp: Amp = "auto"
    device: Device = "auto"
    workers: Workers = None
    cache: tyro.conf.OmitArgPrefixes[CacheOptions] = field(default_factory=CacheOptions)
    quiet: Annotated[
        bool, tyro.conf.arg(help="Print no progress and no summary; pictures that cannot be read are still reported.")
    ] = False

    def __post_init__(self) -> None:
        check_limits(self)
        if not self.images:
            raise UserError("no picture is named; give files, folders, or - to read names from stdin")
        if self.submission and self.csv is None:
            raise UserError("--submission: needs the file to write; give --csv FILE too")
        if self.neighbours is None and (self.shards is not None or self.base is not None):
            raise UserError("--shards and --base: name the pictures of --neighbours K; give that too")
        if self.json and self.csv is not None:
            raise UserError("--json and --csv: a prediction is either printed or written; give one of them")


@dataclass(frozen=True)
class InspectConfig:
    """Find wrong labels, outliers, classes that are several things and classes that are the same thing twice.

    Every picture goes once through a network: that of a run, or --model with its ImageNet weights, for which no run is
    needed. Samples and classes are then judged by these features (docs/inspection.md says what each figure means).

    Written are quality.parquet (a row per sample), classes-quality.parquet and a page with pictures of the worst; with
    --marks also a file of proposals for `lmk-shard subset --marks`. After an interruption the same command resumes.

    Example: lmk-inspect --shards shards

    Example: lmk-inspect runs/efficientnet-b0-balanced-softmax --marks marks.csv --min-confidence 0.95
    """

    run: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="[RUN]")] = None
    """Folder of the run whose network is used, with its neck if it has one.
    A run that knows its training pictures by heart also believes their wrong labels; a model that has not seen these
    labels does not."""
    shards: Annotated[str | None, tyro.conf.arg(metavar="DATASET")] = None
    """Dataset to inspect: a path or a URL; by default the one that the run was trained on."""
    base: DatasetBase = None
    model: Annotated[ModelName | None, one_of(ModelName)] = None
    """Network to use without a run; by default efficientnet-lite0, whose weights come with the extra `lite`."""
    weights: Annotated[str | None, tyro.conf.arg(metavar="imagenet|FILE")] = None
    """Weights of --model: those of ImageNet, which are the default, or a file."""
    checkpoint: CheckpointName = "best"
    split: Annotated[tuple[Literal["train", "val", "test"], ...], tyro.conf.arg(metavar="SPLIT ...")] = ()
    """Splits to inspect, such as `--split train val`; by default all. Samples are compared across them."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder of the inspection; by default RUN/inspect, without a run runs/inspect-<model>.
    It also keeps the features: 3.8 GB for 1.49 million pictures of 1,280 features."""
    marks: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Write proposals for the training split to this CSV: exclude, or relabel where the proposed class is clear.
    Marks that are in the file already stay as they are."""
    min_confidence: Annotated[float | None, tyro.conf.arg(metavar="X"), Limits(at_least=0, at_most=1)] = None
    """Lowest score of what --marks proposes to mark, 0 to 1; by default 0.9."""
    amp: Amp = "auto"
    device: Device = "auto"
    workers: Workers = None
    cache: tyro.conf.OmitArgPrefixes[CacheOptions] = field(default_factory=CacheOptions)
    quiet: Quiet = False

    def __post_init__(self) -> None:
        check_limits(self)
        if self.run is None and self.shards is None:
            raise UserError("nothing to inspect; name a run, or a dataset with --shards")
        given = [name for name in ("model", "weights") if getattr(self, name) is not None]
        if self.run is not None and given:
            raise UserError(f"--{given[0]}: {self.run} has its own network; leave out one of the two")
        if self.weights == "none":
            raise UserError("--weights none: random weights give no useful features; give imagenet or a file")
        if self.min_confidence is not None and self.marks is None:
            raise UserError("--min-confidence: chooses what --marks writes; give --marks FILE too")
        if len(set(self.split)) < len(self.split):
            raise UserError("--split: names a split twice; name each once")


@dataclass(frozen=True)
class ExportConfig:
    """Write a run's model as one file for other programs, after checking it against the checkpoint on pictures.

    Input: pixels, uint8 [batch, size, size, 3] in RGB. Output: probabilities. Normalisation and softmax are inside the
    model; resizing is not. Classes and the dataset's recipe are embedded as JSON.

    Example: lmk-export runs/efficientnet-b0-balanced-softmax --to onnx
    """

    run: RunLocation
    to: Literal["onnx", "torch"]
    """ONNX, or a program of torch.export."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """File to write; by default model.onnx or model.pt2 in the run's folder."""
    shards: Annotated[str | None, tyro.conf.arg(metavar="DATASET")] = None
    """Dataset whose pictures are compared on; by default the one that the run was trained on."""
    base: DatasetBase = None
    checkpoint: CheckpointName = "best"
    cache: tyro.conf.OmitArgPrefixes[CacheOptions] = field(default_factory=CacheOptions)
    quiet: Annotated[bool, tyro.conf.arg(help="Print no summary.")] = False


@dataclass(frozen=True)
class TuneConfig:
    """Search for the options that train best on the validation split; the best trial is tested once, at the end.

    Every trial is a run in OUT/trials, which lmk-eval and the other commands accept. After an interruption the same
    command with --resume continues; with a larger --trials it extends the search.

    Example: lmk-tune --shards shards --model efficientnet-lite0 --cached-features
    """

    shards: DatasetLocation
    base: DatasetBase = None
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder of the search; by default runs/tune-<model>-<loss>."""
    strategy: Literal["bayesian", "grid", "random"] = "bayesian"
    """How the next trial is chosen: by a model of the earlier ones (Ax), as the next point of a grid, or at random."""
    trials: _AtLeastOne = None
    """Number of trials, failed ones included; by default 20, and for a grid its number of points."""
    search: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Search space, as TOML (see docs/tuning.md).
    By default rates, decay, jitter, frozen epochs, batch size and what the loss has, around the model's defaults."""
    objective: Metric = "macro_f1"
    """Metric of the validation split to optimise; loss and calibration_error are minimised.
    A trial counts with its best epoch, which is the one it keeps."""
    model: Annotated[ModelName | None, one_of(ModelName)] = None
    """Backbone; by default efficientnet-b0. Leave it out where --search varies it."""
    loss: Annotated[LossName | None, one_of(LossName)] = None
    """Loss; by default balanced-softmax. Leave it out where --search varies it."""
    epochs: _AtLeastOne = None
    """Epochs of each trial; by default the model's."""
    cached_features: bool = False
    """Compute the features of the frozen backbone once and search for the head alone: trials take seconds."""
    poor_trials: Literal["stop", "finish"] = "stop"
    """Stop a trial that is below the median of the others at the same epoch (Ax), or finish every trial."""
    parallel: _AtLeastOne = None
    """Trials at once, each in its own process; by default one per CUDA device, one without CUDA."""
    device: Device = "auto"
    workers: Workers = None
    cache: tyro.conf.OmitArgPrefixes[CacheOptions] = field(default_factory=CacheOptions)
    seed: Annotated[int, Limits(at_least=0, at_most=2**31 - 1)] = 0
    """Decides the proposed trials, and in every trial what a training's seed decides."""
    resume: bool = False
    """Resume the search in --out."""
    quiet: Quiet = False

    def __post_init__(self) -> None:
        check_limits(self)
