"""`TrainConfig`: one frozen dataclass that is the command line, the recipe and the saved run; validated when made."""

import math
import os
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import tyro

from lmk_data.errors import UserError

ModelName = Literal["efficientnet-b0", "resnet50", "efficientnet-lite0", "resnet32"]
LossName = Literal["ldam", "ce", "balanced-softmax"]
Head = Literal["linear", "cosine"]
Optimizer = Literal["sgd", "adamw"]
Schedule = Literal["cosine", "step"]
Amp = Literal["auto", "fp16", "bf16", "off"]
Device = Literal["auto", "cpu", "cuda"]
Sampling = Literal["uniform", "class-balanced", "repeat-factor"]
Metric = Literal[
    "loss",
    "accuracy",
    "top5_accuracy",
    "macro_precision",
    "macro_recall",
    "macro_f1",
    "macro_f1_all",
    "weighted_precision",
    "weighted_recall",
    "weighted_f1",
    "many_accuracy",
    "medium_accuracy",
    "few_accuracy",
    "gap",
    "calibration_error",
]


def default_cache_folder() -> Path:
    """`~/.cache/lmk`, or below XDG_CACHE_HOME."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lmk"


@dataclass(frozen=True)
class Cache:
    """A folder for fetched shards and how much may lie in it; shared by all datasets, processes and ranks."""

    folder: Path
    max_bytes: int


@dataclass(frozen=True)
class ModelDefaults:
    """What a model trains with unless told otherwise; docs/training.md says how the numbers were found."""

    weights: str
    epochs: int
    batch_size: int
    optimizer: Optimizer
    lr: float
    head_lr: float
    weight_decay: float
    warmup_epochs: float
    schedule: Schedule
    drop_rate: float


_LDAM_MAX_MARGIN = 0.5
_LARGEST_DEFAULT_WARMUP = 1 / 8  # of a training
DEFAULTS: dict[str, ModelDefaults] = {
    "efficientnet-lite0": ModelDefaults("imagenet", 8, 32, "adamw", 3e-4, 3e-3, 0.02, 1.0, "cosine", 0.2),
    "efficientnet-b0": ModelDefaults("imagenet", 8, 64, "adamw", 3e-4, 3e-3, 0.02, 1.0, "cosine", 0.2),
    "resnet50": ModelDefaults("imagenet", 8, 64, "adamw", 1e-4, 1e-3, 0.02, 1.0, "cosine", 0.0),
    "resnet32": ModelDefaults("none", 200, 128, "sgd", 0.1, 0.1, 2e-4, 5.0, "step", 0.0),
}


@dataclass(frozen=True)
class TrainConfig:
    """Train a classifier of landmarks on a dataset of shards.

    Mixed precision, margins from the dataset's own class counts, validation after every epoch, the best and the
    last checkpoint kept, test metrics at the end. Interrupt it, and the same command with --resume goes on at
    the very step.

    Example: lmk-train --shards shards --model efficientnet-lite0 --loss ldam
    """

    shards: Annotated[str, tyro.conf.arg(metavar="DATASET")]
    """The dataset that `lmk-shard build` wrote: a path or a URL."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="RUN")] = None
    """Folder of the run; by default runs/<model>-<loss>. An existing run is refused without --resume."""
    model: ModelName = "efficientnet-b0"
    """Backbone; resnet32 is the LDAM paper's for pictures of 32 pixels."""
    weights: Annotated[str | None, tyro.conf.arg(metavar="imagenet|none|FILE")] = None
    """Where the backbone starts: its ImageNet weights, random, or a state dict or checkpoint of ours; by default
    ImageNet's, and random for resnet32, which has none."""
    loss: LossName = "ldam"
    """LDAM (margins from the class counts), cross entropy, or balanced softmax (the class prior in the logits)."""
    head: Head | None = None
    """Last layer; by default cosine for ldam, linear otherwise."""
    ldam_max_margin: float = _LDAM_MAX_MARGIN
    """LDAM only: margin of the rarest class."""
    drw_start: Annotated[float | None, tyro.conf.arg(metavar="SHARE")] = None
    """Deferred re-weighting: from this share of training on, rare classes weigh more in the loss (LDAM-DRW: 0.8); by
    default never."""
    cosine_scale: float | None = None
    """Cosine head: what its cosines are multiplied by (default 30); an error with a linear head."""
    label_smoothing: float = 0.0
    """Cross entropy only: share of the target spread over all classes."""
    epochs: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Passes over the training split; by default the model's (see docs/training.md)."""
    batch_size: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Samples per update of the weights, over all processes and micro-batches; by default the model's."""
    grad_accum: Annotated[int, tyro.conf.arg(metavar="N")] = 1
    """Micro-batches that an update's samples go through the model in, to save memory."""
    sampling: Sampling = "uniform"
    """How often samples come: each once an epoch; each class as often as any other; or the samples of classes below
    the mean size more than once, by the square root of how far below (an epoch is then longer)."""
    optimizer: Optimizer | None = None
    """SGD with Nesterov momentum, or AdamW; by default the model's."""
    lr: Annotated[float | None, tyro.conf.arg(metavar="X")] = None
    """Learning rate of the backbone at its peak; by default the model's."""
    head_lr: Annotated[float | None, tyro.conf.arg(metavar="X")] = None
    """Learning rate of the head at its peak; by default the model's."""
    weight_decay: Annotated[float | None, tyro.conf.arg(metavar="X")] = None
    """Weight decay, not on norms and biases; by default the model's."""
    clip_grad: Annotated[float | None, tyro.conf.arg(metavar="X")] = None
    """Clip the norm of the gradient to this; by default not at all."""
    warmup_epochs: Annotated[float | None, tyro.conf.arg(metavar="X")] = None
    """Epochs over which the learning rates rise from 0; by default the model's, or an eighth of fewer epochs."""
    schedule: Schedule | None = None
    """How the learning rates fall: a half cosine to 0, or to a hundredth at 80 % of training and again at 90 %; by
    default the model's."""
    freeze_backbone_epochs: Annotated[int, tyro.conf.arg(metavar="N")] = 0
    """Train the head alone for the first N epochs."""
    ema: Annotated[float | None, tyro.conf.arg(metavar="DECAY")] = None
    """Keep an exponential moving average of the weights (0.999 is usual), which is what is evaluated and kept as the
    best; by default none."""
    bn_momentum: float = 0.1
    """Momentum of batch normalisation's running statistics; 0.01, EfficientNet's own, lags behind short trainings."""
    sync_bn: bool = False
    """Batch normalisation over the micro-batches of all processes together; CUDA only."""
    drop_rate: Annotated[float | None, tyro.conf.arg(metavar="X")] = None
    """Dropout before the head; by default the model's."""
    hflip: float = 0.5
    """Probability of a horizontal flip."""
    color_jitter: float = 0.2
    """Strength of brightness, contrast and saturation jitter; hue turns by a quarter of it. 0 is off."""
    crop_padding: Annotated[int, tyro.conf.arg(metavar="N")] = 0
    """Cut each picture out of itself with N black pixels around it (4 is usual at 32 pixels). 0 is off."""
    random_resized_crop: Annotated[float | None, tyro.conf.arg(metavar="SHARE")] = None
    """Cut out a rectangle of at least this share of each picture and bring it to full size; by default off."""
    random_erasing: Annotated[float, tyro.conf.arg(metavar="X")] = 0.0
    """Probability that a rectangle of a picture is replaced by the mean colour. 0 is off."""
    amp: Amp = "auto"
    """Mixed precision: bfloat16 where the device has it, else float16 with gradient scaling on CUDA."""
    compile: bool = False
    """Compile the backbone (minutes at the start, then faster steps on CUDA)."""
    device: Device = "auto"
    """Where to train; auto takes CUDA if there is one."""
    best_by: Metric = "macro_f1"
    """Metric of the validation split that decides which epoch is kept as the best."""
    workers: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Threads that read and decode; by default one per core (of a process's share under torchrun), 8 at most."""
    cache: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Where the shards of a dataset behind a URL are kept; by default ~/.cache/lmk."""
    cache_gb: Annotated[float, tyro.conf.arg(metavar="GB")] = 100.0
    """How much may lie there; what was used longest ago goes first."""
    seed: int = 0
    """Decides the order of samples, augmentation and the new layers' first weights."""
    checkpoint_minutes: float = 15.0
    """Minutes between checkpoints within an epoch."""
    resume: bool = False
    """Go on with the run in --out from its last checkpoint."""
    dry_run: bool = False
    """Do not train: say how large the model is, how many steps and how much memory training takes, and push one batch
    through."""
    profile_input: bool = False
    """Do not train: measure the reader alone, the model alone and both, and say which one limits."""
    quiet: bool = False
    """No progress, no summary."""

    def __post_init__(self) -> None:
        require(0 < self.ldam_max_margin <= 2, "--ldam-max-margin", self.ldam_max_margin, "above 0, at most 2")
        require(0 <= self.label_smoothing < 1, "--label-smoothing", self.label_smoothing, "from 0, below 1")
        require(0 <= self.hflip <= 1, "--hflip", self.hflip, "from 0 to 1")
        require(0 <= self.color_jitter <= 1, "--color-jitter", self.color_jitter, "from 0 to 1")
        require(0 < self.bn_momentum <= 1, "--bn-momentum", self.bn_momentum, "above 0, at most 1")
        require(self.crop_padding >= 0, "--crop-padding", self.crop_padding, "at least 0")
        least = self.random_resized_crop
        require(least is None or 0 < least <= 1, "--random-resized-crop", least, "above 0, at most 1")
        require(0 <= self.random_erasing <= 1, "--random-erasing", self.random_erasing, "from 0 to 1")
        require(0 < self.cache_gb < math.inf, "--cache-gb", self.cache_gb, "above 0 and finite")
        require(0 <= self.seed < 2**63, "--seed", self.seed, "from 0 to 2^63 - 1")
        require(self.checkpoint_minutes > 0, "--checkpoint-minutes", self.checkpoint_minutes, "above 0")
        start = self.drw_start
        require(start is None or 0 <= start < 1, "--drw-start", start, "from 0, below 1")
        require(self.ema is None or 0 < self.ema < 1, "--ema", self.ema, "between 0 and 1")
        require(self.drop_rate is None or 0 <= self.drop_rate < 1, "--drop-rate", self.drop_rate, "from 0, below 1")
        frozen = self.freeze_backbone_epochs
        require(frozen >= 0, "--freeze-backbone-epochs", frozen, "at least 0")
        for name in ("epochs", "batch_size", "grad_accum", "workers"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"--{name.replace('_', '-')}", value, "at least 1")
        for name in ("lr", "head_lr", "clip_grad", "cosine_scale"):
            value = getattr(self, name)
            require(value is None or value > 0, f"--{name.replace('_', '-')}", value, "above 0")
        for name in ("weight_decay", "warmup_epochs"):
            value = getattr(self, name)
            require(value is None or value >= 0, f"--{name.replace('_', '-')}", value, "at least 0")
        if self.dry_run and self.profile_input:
            raise UserError("--dry-run and --profile-input: give one of them")
        if self.label_smoothing and self.loss != "ce":
            raise UserError(f"--label-smoothing goes with --loss ce, not with {self.loss}")
        if self.ldam_max_margin != _LDAM_MAX_MARGIN and self.loss != "ldam":
            raise UserError(f"--ldam-max-margin goes with --loss ldam, not with {self.loss}")
        if self.cosine_scale is not None and (self.head or _default_head(self.loss)) == "linear":
            raise UserError("--cosine-scale: a linear head's logits are not scaled; give --head cosine or leave it out")

    def resolved(self) -> Self:
        """The same configuration with every default filled in: what is saved, and what a run is trained with."""
        defaults = DEFAULTS[self.model]
        head = self.head or _default_head(self.loss)
        chosen = {name: getattr(defaults, name) for name in asdict(defaults) if getattr(self, name) is None}
        epochs = self.epochs or defaults.epochs
        if self.warmup_epochs is None:
            chosen["warmup_epochs"] = min(defaults.warmup_epochs, epochs * _LARGEST_DEFAULT_WARMUP)
        elif self.warmup_epochs > epochs:
            raise UserError(f"--warmup-epochs {self.warmup_epochs:g}: more than the {epochs} epochs of the training")
        out = self.out or Path("runs") / f"{self.model}-{self.loss}"
        scale = (self.cosine_scale or 30.0) if head == "cosine" else None
        return replace(self, **chosen, out=out, head=head, cosine_scale=scale)

    @property
    def shard_cache(self) -> Cache:
        """Where fetched shards are kept."""
        return cache_of(self.cache, self.cache_gb)

    def json(self) -> dict[str, Any]:
        """Plain values for config.json and checkpoints."""
        return {name: str(value) if isinstance(value, Path) else value for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """The configuration that `json` gave; UserError if it is not one."""
        known = {field.name for field in fields(cls)}
        if not isinstance(value, dict) or "shards" not in value or value.keys() - known:
            raise UserError("not a training configuration of this version of lmk")
        paths = {name: Path(value[name]) for name in ("out", "cache") if value.get(name) is not None}
        return cls(**{**value, **paths})


def cache_of(folder: Path | None, gigabytes: float) -> Cache:
    """Where fetched shards are kept, by the options --cache and --cache-gb."""
    return Cache(folder or default_cache_folder(), int(gigabytes * 1e9))


def _default_head(loss: str) -> Head:
    return "cosine" if loss == "ldam" else "linear"


def require(holds: bool, flag: str, value: object, wanted: str) -> None:
    """UserError that names the flag, unless it holds."""
    if not holds:
        raise UserError(f"{flag} {value}: must be {wanted}")
