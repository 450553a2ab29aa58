"""The command lines of `lmk-eval`, `lmk-predict`, `lmk-export` and `lmk-tune`, as frozen dataclasses."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from lmk_data.errors import UserError
from lmk_train.config.training import Amp, Cache, Device, LossName, Metric, ModelName, cache_of, require


@dataclass(frozen=True)
class EvalConfig:
    """Evaluate a run's checkpoint on a split: metrics, predictions, per-class figures and the confusion matrix.

    Example: lmk-eval runs/efficientnet-lite0-ldam --split val
    """

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder of the run."""
    shards: Annotated[str | None, tyro.conf.arg(metavar="DATASET")] = None
    """Dataset to evaluate on; by default the one that the run was trained on."""
    split: Literal["train", "val", "test"] = "test"
    """Split to evaluate."""
    checkpoint: Literal["best", "last"] = "best"
    """Which checkpoint."""
    tau: bool = False
    """Sweep post-hoc logit adjustment (logits minus tau times the log prior) in the same pass: accuracy against macro
    F1, and the tau that validation picks, where there is a validation split."""
    batch_size: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Samples at once; by default as in training."""
    amp: Amp = "auto"
    """Mixed precision, as in training."""
    device: Device = "auto"
    """Where to compute; auto takes CUDA if there is one."""
    workers: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Threads that read and decode; by default one per core (of a process's share under torchrun), 8 at most."""
    cache: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Where the shards of a dataset behind a URL are kept; by default ~/.cache/lmk."""
    cache_gb: Annotated[float, tyro.conf.arg(metavar="GB")] = 100.0
    """How much may lie there; what was used longest ago goes first."""
    quiet: bool = False
    """No progress, no summary."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "workers"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"--{name.replace('_', '-')}", value, "at least 1")
        require(0 < self.cache_gb < math.inf, "--cache-gb", self.cache_gb, "above 0 and finite")

    @property
    def shard_cache(self) -> Cache:
        """Where fetched shards are kept."""
        return cache_of(self.cache, self.cache_gb)


@dataclass(frozen=True)
class PredictConfig:
    """Say which landmark is in pictures: any that the build would take, resized as the run's dataset was.

    A picture that cannot be read is one line on stderr; the others go on, and the exit code is 1.

    Example: lmk-predict runs/efficientnet-b0-ldam photo.jpg holiday/
    """

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder of the run."""
    images: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE")]
    """Pictures, folders of them, URLs; `-` reads such names from stdin, one a line."""
    top: Annotated[int, tyro.conf.arg(metavar="K")] = 5
    """How many landmarks to name for each picture."""
    json: bool = False
    """A line of JSON for each picture."""
    checkpoint: Literal["best", "last"] = "best"
    """Which checkpoint."""
    batch_size: Annotated[int, tyro.conf.arg(metavar="N")] = 64
    """Pictures at once."""
    amp: Amp = "auto"
    """Mixed precision, as in training."""
    device: Device = "auto"
    """Where to compute; auto takes CUDA if there is one."""
    workers: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Threads that read and resize; by default one per core, 8 at most."""
    quiet: bool = False
    """No progress, no summary; pictures that cannot be read are named all the same."""

    def __post_init__(self) -> None:
        for name in ("top", "batch_size", "workers"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"--{name.replace('_', '-')}", value, "at least 1")
        if not self.images:
            raise UserError("no picture is named; give files, folders, or - to read names from stdin")


@dataclass(frozen=True)
class ExportConfig:
    """Write a run's model as one file for other programs, after checking it against the checkpoint on pictures.

    It takes pixels, uint8 [batch, size, size, 3] in RGB, and gives probabilities; normalisation and softmax are
    inside, resizing is not. Classes and the dataset's recipe are embedded as JSON.

    Example: lmk-export runs/efficientnet-b0-ldam --to onnx
    """

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder of the run."""
    to: Literal["onnx", "torch"]
    """ONNX, or a program of torch.export."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """The file; by default model.onnx or model.pt2 in the run's folder."""
    shards: Annotated[str | None, tyro.conf.arg(metavar="DATASET")] = None
    """Dataset whose pictures are compared on; by default the one that the run was trained on."""
    checkpoint: Literal["best", "last"] = "best"
    """Which checkpoint."""
    quiet: bool = False
    """No summary."""


@dataclass(frozen=True)
class TuneConfig:
    """Search for the options that train best, judged on the validation split; the winner is tested once, at the end.

    Every trial is a run folder under OUT/trials that lmk-eval and the others take. Interrupt the search, and the same
    command with --resume goes on; give more --trials with it to search further.

    Example: lmk-tune --shards shards --model efficientnet-lite0 --cached-features
    """

    shards: Annotated[str, tyro.conf.arg(metavar="DATASET")]
    """The dataset that `lmk-shard build` wrote: a path or a URL."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder of the search; by default runs/tune-<model>-<loss>."""
    strategy: Literal["bayesian", "grid", "random"] = "bayesian"
    """What proposes the next trial: a model of the earlier ones (Ax), every point of a grid, or chance."""
    trials: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """How many trials, those that fail too; by default 20, and for a grid as many as it has points."""
    search: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """What is varied, as TOML (see docs/tuning.md); by default rates, decay, margin or smoothing, jitter, frozen
    epochs and batch size around the model's defaults."""
    objective: Metric = "macro_f1"
    """Metric of the validation split to make best; loss and calibration_error are made small. A trial counts with
    its best epoch, which is the one it keeps."""
    model: ModelName | None = None
    """Backbone; by default efficientnet-b0."""
    loss: LossName | None = None
    """Loss; by default ldam."""
    epochs: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Epochs of each trial; by default the model's."""
    cached_features: bool = False
    """Run the frozen backbone over every picture once and search the head alone: trials take seconds."""
    poor_trials: Literal["stop", "finish"] = "stop"
    """Stop a trial that is below the median of the others at the same epoch (Ax), or finish all."""
    parallel: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Trials at once, each in a process of its own; by default one per CUDA device, one without."""
    device: Device = "auto"
    """Where to train; auto takes CUDA if there is one."""
    workers: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Threads of a trial that read and decode; by default one per core, 8 at most."""
    cache: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Where the shards of a dataset behind a URL are kept; by default ~/.cache/lmk."""
    cache_gb: Annotated[float, tyro.conf.arg(metavar="GB")] = 100.0
    """How much may lie there; what was used longest ago goes first."""
    seed: int = 0
    """Decides the proposals, and everything that a training's seed decides, the same in every trial."""
    resume: bool = False
    """Go on with the search in --out."""
    quiet: bool = False
    """No progress, no summary."""

    def __post_init__(self) -> None:
        for name in ("trials", "epochs", "parallel", "workers"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"--{name}", value, "at least 1")
        require(0 <= self.seed < 2**31, "--seed", self.seed, "from 0 to 2^31 - 1")
