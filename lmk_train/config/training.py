"""The options of `lmk-train`: as asked for (`TrainConfig`), and with every default filled in (`ResolvedConfig`).

Each option is declared once, as a field of `_Options`: its type, default, limits and help, and what it means to resume
and to searches (`lmk_train.config.option`). Some defaults depend on other options: the learning rate on the model, the
head on the loss. The type of such a field is `X | Omitted`, where `Omitted` is a parameter of the class:

    TrainConfig(_Options[None])      x: X | None    None stands for the default
    ResolvedConfig(_Options[Never])  x: X           a type checker drops Never from a union

`TrainConfig` is the command line. `TrainConfig.resolved` returns a `ResolvedConfig`, which the trainer takes and which
config.json and checkpoints hold.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, Never, Self, TypeVar, get_args

import msgspec
import tyro

from lmk_data.errors import UserError
from lmk_data.system.terminal import without_secrets
from lmk_train.config.arguments import (
    OF_COMMAND,
    Amp,
    CacheOptions,
    DatasetBase,
    DatasetLocation,
    Device,
    Quiet,
    Workers,
)
from lmk_train.config.defaults import DEFAULT_LOSS, DEFAULT_MODEL, DEFAULTS, LossName, ModelName
from lmk_train.config.option import Limits, Option, OptionInfo, Search, check_limits, options_of, values_of

Head = Literal["linear", "cosine"]
Pool = Literal["avg", "gem"]
Conventions = Literal["tensorflow", "pytorch"]
Optimizer = Literal["sgd", "adamw"]
Schedule = Literal["cosine", "step"]
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

_SHARE = Limits(at_least=0, at_most=1)
_ALPHA = Limits(above=0, at_most=32)


def one_of(kind: Any) -> Any:
    """Return the annotation by which --help lists the values of a Literal, without the None of an optional field."""
    return tyro.conf.arg(metavar="{" + ",".join(get_args(kind)) + "}")


_SHOWN_CHARACTERS = 60  # of a wrong value
_LARGEST_DEFAULT_WARMUP = 1 / 8  # of a training
_DEFAULT_COSINE_SCALE = 30.0

Omitted = TypeVar("Omitted")
"""None in the options that were asked for, Never in the resolved ones."""
_DERIVED: Any = None


@dataclass(frozen=True)
class _Options(Generic[Omitted]):
    shards: Annotated[DatasetLocation, OF_COMMAND]
    out: Annotated[Path | Omitted, tyro.conf.arg(metavar="RUN"), OF_COMMAND] = _DERIVED
    """Folder of the run; by default runs/<model>-<loss>. An existing run is refused without --resume."""
    model: Annotated[ModelName, OptionInfo(set_by_search=True, acts_on_backbone=True, search=Search())] = DEFAULT_MODEL
    """Backbone; resnet32 is the LDAM paper's network for pictures of 32 pixels."""
    weights: Annotated[str | Omitted, tyro.conf.arg(metavar="imagenet|none|FILE")] = _DERIVED
    """Initial weights of the backbone: ImageNet, random, or a file (torchvision, timm, the backbone's library, a run).
    By default ImageNet weights, and random weights for resnet32, which has no others."""
    conventions: Annotated[Conventions, OptionInfo(acts_on_backbone=True)] = "tensorflow"
    """EfficientNet only: padding and epsilon, which its weights were trained for.
    As in TensorFlow (ImageNet weights, timm's tf_ models) or in PyTorch (torchvision, timm's other models)."""
    loss: Annotated[LossName, OptionInfo(set_by_search=True, search=Search())] = DEFAULT_LOSS
    """Balanced softmax (the class prior in the logits), LDAM (margins from the class counts), or cross entropy.
    ArcFace has angular margins from the class counts and several centres a class."""
    head: Annotated[Head | Omitted, one_of(Head), OptionInfo(search=Search())] = _DERIVED
    """Last layer; by default cosine for ldam and arcface, linear for the other losses. ArcFace has no linear one."""
    pool: Annotated[Pool, OptionInfo(acts_on_backbone=True, search=Search())] = "avg"
    """Pool the last feature map by its mean, or by a generalised mean (GeM) whose power is learnt."""
    neck: Annotated[
        int | None, tyro.conf.arg(metavar="D"), Limits(at_least=2, at_most=8192), OptionInfo(search=Search())
    ] = None
    """Linear layer and batch normalisation to D dimensions before the head (512 is usual); by default none."""
    ldam_max_margin: Annotated[
        float, Limits(above=0, at_most=2), OptionInfo(losses=("ldam",), search=Search(low=0.1, high=1.0))
    ] = 0.5
    """LDAM only: margin of the rarest class."""
    arcface_margin: Annotated[
        float, Limits(at_least=0, at_most=1), OptionInfo(losses=("arcface",), search=Search(low=0.1, high=1.0))
    ] = 0.5
    """ArcFace only: a class with n training images has a margin of this / n^(1/4) + --arcface-min-margin radians."""
    arcface_min_margin: Annotated[
        float, Limits(at_least=0, at_most=0.5), OptionInfo(losses=("arcface",), search=Search(low=0.0, high=0.3))
    ] = 0.05
    """ArcFace only: margin of a class with very many training images, in radians."""
    subcenters: Annotated[
        int,
        tyro.conf.arg(metavar="C"),
        Limits(at_least=1, at_most=16),
        OptionInfo(losses=("arcface",), search=Search()),
    ] = 3
    """ArcFace only: centres a class; the nearest one counts. The head grows by that factor."""
    drw_start: Annotated[
        float | None,
        tyro.conf.arg(metavar="SHARE"),
        Limits(at_least=0, below=1),
        OptionInfo(search=Search()),
    ] = None
    """Deferred re-weighting: rare classes weigh more in the loss from this share of training on (LDAM-DRW: 0.8).
    By default never."""
    cosine_scale: Annotated[
        float | None,
        tyro.conf.arg(metavar="X"),
        Limits(above=0),
        OptionInfo(heads=("cosine",), search=Search(low=8.0, high=64.0, log=True)),
    ] = None
    """Cosine head only: factor that turns its cosines into logits; by default 30.
    An error with a linear head, whose logits are not scaled."""
    label_smoothing: Annotated[
        float, Limits(at_least=0, below=1), OptionInfo(losses=("ce",), search=Search(low=0.0, high=0.2))
    ] = 0.0
    """Cross entropy only: share of the target that is spread over all classes."""
    epochs: Annotated[int | Omitted, tyro.conf.arg(metavar="N"), Limits(at_least=1), OptionInfo(set_by_search=True)] = (
        _DERIVED
    )
    """Passes over the training split; by default the model's (see docs/training.md)."""
    batch_size: Annotated[
        int | Omitted, tyro.conf.arg(metavar="N"), Limits(at_least=1), OptionInfo(search=Search())
    ] = _DERIVED
    """Samples per update of the weights, over all ranks and micro-batches; by default the model's, on CUDA up to four
    times as many if they fit its memory, with learning rates to match."""
    grad_accum: Annotated[
        int, tyro.conf.arg(metavar="N"), Limits(at_least=1), OptionInfo(may_change_on_resume=True)
    ] = 1
    """Micro-batches into which a rank's samples of an update are split, to save memory."""
    sampling: Annotated[Sampling, OptionInfo(search=Search())] = "uniform"
    """How often samples are drawn. Uniform: each once per epoch. Class-balanced: each class as often as any other.
    Repeat-factor: samples of classes below the mean size more than once, by the square root of how far below.
    An epoch is then longer."""
    optimizer: Annotated[Optimizer | Omitted, one_of(Optimizer), OptionInfo(search=Search())] = _DERIVED
    """SGD with Nesterov momentum, or AdamW; by default the model's."""
    lr: Annotated[
        float | Omitted,
        tyro.conf.arg(metavar="X"),
        Limits(above=0),
        OptionInfo(acts_on_backbone=True, search=Search(around_default=True)),
    ] = _DERIVED
    """Peak learning rate of the backbone; by default the model's."""
    head_lr: Annotated[
        float | Omitted,
        tyro.conf.arg(metavar="X"),
        Limits(above=0),
        OptionInfo(search=Search(around_default=True)),
    ] = _DERIVED
    """Peak learning rate of the head; by default the model's."""
    weight_decay: Annotated[
        float | Omitted,
        tyro.conf.arg(metavar="X"),
        Limits(at_least=0),
        OptionInfo(search=Search(around_default=True)),
    ] = _DERIVED
    """Weight decay; norms and biases do not decay. By default the model's."""
    clip_grad: Annotated[float | None, tyro.conf.arg(metavar="X"), Limits(above=0), OptionInfo(search=Search())] = None
    """Largest norm of the gradient, which is scaled down to it; by default not limited."""
    warmup_epochs: Annotated[
        float | Omitted, tyro.conf.arg(metavar="X"), Limits(at_least=0), OptionInfo(search=Search())
    ] = _DERIVED
    """Epochs of linear warm-up of the learning rates; by default the model's, at most an eighth of the training."""
    schedule: Annotated[Schedule | Omitted, one_of(Schedule), OptionInfo(search=Search())] = _DERIVED
    """How the learning rates fall: a half cosine to 0, or to a hundredth at 80 % of training and again at 90 %.
    By default the model's."""
    freeze_backbone_epochs: Annotated[
        int,
        tyro.conf.arg(metavar="N"),
        Limits(at_least=0),
        OptionInfo(acts_on_backbone=True, search=Search()),
    ] = 0
    """Train the head alone for the first N epochs."""
    ema: Annotated[
        float | None, tyro.conf.arg(metavar="DECAY"), Limits(above=0, below=1), OptionInfo(search=Search())
    ] = None
    """Keep an exponential moving average of the weights (0.999 is usual); by default none.
    The average is what is evaluated and kept as the best."""
    bn_momentum: Annotated[float, Limits(above=0, at_most=1), OptionInfo(acts_on_backbone=True, search=Search())] = 0.1
    """Momentum of the running statistics of batch normalisation.
    EfficientNet's own 0.01 lags behind in short trainings."""
    sync_bn: bool = False
    """Batch normalisation over the micro-batches of all ranks together; CUDA only."""
    drop_rate: Annotated[
        float | Omitted,
        tyro.conf.arg(metavar="X"),
        Limits(at_least=0, below=1),
        OptionInfo(search=Search(low=0.0, high=0.5, of_the_head_alone=True)),
    ] = _DERIVED
    """Dropout before the head; by default the model's."""
    hflip: Annotated[float, _SHARE, OptionInfo(acts_on_backbone=True, search=Search())] = 0.5
    """Probability of a horizontal flip."""
    color_jitter: Annotated[float, _SHARE, OptionInfo(acts_on_backbone=True, search=Search(low=0.0, high=0.5))] = 0.2
    """Strength of brightness, contrast and saturation jitter; hue is rotated by a quarter of it. 0 is off."""
    crop_padding: Annotated[
        int,
        tyro.conf.arg(metavar="N"),
        Limits(at_least=0),
        OptionInfo(acts_on_backbone=True, search=Search()),
    ] = 0
    """Random crop at full size after padding each picture with N black pixels (4 is usual at 32 pixels). 0 is off."""
    random_resized_crop: Annotated[
        float | None,
        tyro.conf.arg(metavar="SHARE"),
        Limits(above=0, at_most=1),
        OptionInfo(acts_on_backbone=True, search=Search()),
    ] = None
    """Random crop of at least this share of each picture, resized to full size; by default off."""
    random_erasing: Annotated[
        float, tyro.conf.arg(metavar="X"), _SHARE, OptionInfo(acts_on_backbone=True, search=Search())
    ] = 0.0
    """Probability that a rectangle of a picture is replaced by the mean colour. 0 is off."""
    mixup: Annotated[
        float | None, tyro.conf.arg(metavar="ALPHA"), _ALPHA, OptionInfo(acts_on_backbone=True, search=Search())
    ] = None
    """Mix each picture and its label with another one, by a share drawn from Beta(ALPHA, ALPHA); by default off.
    Usual: 0.2; 1 for small pictures. Together with --cutmix each picture draws one of the two."""
    cutmix: Annotated[
        float | None, tyro.conf.arg(metavar="ALPHA"), _ALPHA, OptionInfo(acts_on_backbone=True, search=Search())
    ] = None
    """Replace a rectangle of each picture by that of another one, and as much of its label; by default off.
    Its area is 1 minus a share from Beta(ALPHA, ALPHA); usual: 1."""
    amp: Amp = "auto"
    compile: Annotated[bool, OptionInfo(may_change_on_resume=True)] = False
    """Compile the backbone: minutes at the start, then faster steps on CUDA, where its kernels are launched at once."""
    deterministic: Annotated[bool, OptionInfo(may_change_on_resume=True)] = False
    """Compute the same bits each time on CUDA too: without it, a resumed run ends with nearly the same weights.
    Steps are slower, because the fastest algorithms add up in any order."""
    device: Annotated[Device, OF_COMMAND] = "auto"
    best_by: Annotated[Metric, OptionInfo(set_by_search=True)] = "macro_f1"
    """Metric of the validation split that decides which epoch is kept as the best."""
    workers: Annotated[Workers, OF_COMMAND] = None
    base: Annotated[DatasetBase, OF_COMMAND] = None
    cache: tyro.conf.OmitArgPrefixes[CacheOptions] = field(default_factory=CacheOptions)
    seed: Annotated[int, Limits(at_least=0, at_most=2**63 - 1), OptionInfo(set_by_search=True)] = 0
    """Decides the order of samples, augmentation and the initialisation of new layers."""
    checkpoint_minutes: Annotated[float, Limits(above=0), OptionInfo(may_change_on_resume=True)] = 15.0
    """Minutes between checkpoints within an epoch."""
    resume: Annotated[bool, OF_COMMAND] = False
    """Resume the run in --out from its last checkpoint."""
    dry_run: Annotated[bool, OF_COMMAND] = False
    """Do not train: print the size of the model, the number of steps and the memory that training needs.
    One batch is run through the model; on CUDA two updates are made and their memory is measured."""
    profile_input: Annotated[bool, OF_COMMAND] = False
    """Do not train: measure the reader alone, the model alone and both, and say which one limits."""
    quiet: Annotated[Quiet, OF_COMMAND] = False

    def __post_init__(self) -> None:
        check_limits(self)
        if self.dry_run and self.profile_input:
            raise UserError("--dry-run and --profile-input: give one of them")
        if self.conventions != "tensorflow" and not self.model.startswith("efficientnet"):
            raise UserError(f"--conventions {self.conventions} goes with an EfficientNet, not with {self.model}")
        head = str(self.head or default_head(self.loss))
        if self.loss == "arcface" and head != "cosine":
            raise UserError(f"--head {head} goes not with --loss arcface, whose margins are angles; leave it out")
        for name, option in options_of(type(self)).items():
            if option.info.applies_to(self.loss, head) or getattr(self, name) == option.default:
                continue
            if option.info.losses:
                raise UserError(
                    f"{option.flag} goes with --loss {' or '.join(option.info.losses)}, not with {self.loss}"
                )
            raise UserError(f"{option.flag} goes with --head {' or '.join(option.info.heads)}, not with a {head} head")

    def json(self) -> dict[str, Any]:
        """Return plain values for config.json and checkpoints, by the names of options."""
        return {name: str(value) if isinstance(value, Path) else value for name, value in values_of(self).items()}

    def public_json(self) -> dict[str, Any]:
        """Return `json` without the secrets of URLs, for files that are passed on."""
        return {name: without_secrets(one) if isinstance(one, str) else one for name, one in self.json().items()}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """Return the configuration that `json` gave. Raises UserError if it is not one."""
        options = options_of(cls)
        if not isinstance(value, dict) or "shards" not in value or value.keys() - options.keys():
            raise UserError("not a training configuration of this version of lmk")
        given = {name: _of_type(name, one, options[name]) for name, one in value.items()}
        nested = {name: given.pop(name) for name in options_of(CacheOptions) if name in given}
        return cls(**given, cache=CacheOptions(**nested))


def _of_type(name: str, value: object, option: Option) -> Any:
    """Return the value of an option as `json` gave it. Raises UserError unless it is of the option's type."""
    if value is None and option.default is None and name != "shards":
        return None
    try:
        if option.type is Path:
            return Path(msgspec.convert(value, str))
        if isinstance(value, str) and "\0" in value:
            raise ValueError("a null byte")
        return msgspec.convert(value, option.type)
    except ValueError:  # msgspec's own error is one
        shown = repr(value)[:_SHOWN_CHARACTERS]
        raise UserError(f"config: {name} is {shown}, which {option.flag} does not accept") from None


@dataclass(frozen=True)
class TrainConfig(_Options[None]):
    """Train a classifier of landmarks on a dataset of shards.

    Mixed precision, class counts of the dataset in the loss, validation after every epoch, the best and the last
    checkpoint kept, test metrics at the end. After an interruption the same command with --resume continues at the step
    where it stopped.

    Example: lmk-train --shards shards --model efficientnet-lite0
    """

    def resolved(self) -> "ResolvedConfig":
        """Return the configuration with every default filled in."""
        defaults = DEFAULTS[self.model]
        epochs = self.epochs or defaults["epochs"]
        chosen = {name: value for name, value in defaults.items() if getattr(self, name) is None}
        if self.warmup_epochs is None:
            chosen["warmup_epochs"] = min(defaults["warmup_epochs"], epochs * _LARGEST_DEFAULT_WARMUP)
        elif self.warmup_epochs > epochs:
            raise UserError(f"--warmup-epochs {self.warmup_epochs:g}: more than the {epochs} epochs of the training")
        chosen["out"] = self.out or Path("runs") / f"{self.model}-{self.loss}"
        chosen["head"] = self.head or default_head(self.loss)
        if chosen["head"] == "cosine":
            chosen["cosine_scale"] = self.cosine_scale or _DEFAULT_COSINE_SCALE
        return ResolvedConfig(**{**vars(self), **chosen})


@dataclass(frozen=True)
class ResolvedConfig(_Options[Never]):
    """The configuration that a run is trained with and that it saves: no default is left to be filled in."""

    @property
    def pictures_at_once(self) -> int:
        """The largest number of pictures that all ranks together push through the model at once."""
        return -(-self.batch_size // self.grad_accum)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """Return the configuration that `json` gave. Raises UserError if it is not one, or has an open default."""
        config = super().from_json(value)
        if any(option.derived and getattr(config, name) is None for name, option in options_of(ResolvedConfig).items()):
            raise UserError("not a resolved training configuration of this version of lmk")
        return config


def default_head(loss: str) -> Head:
    """Return the head that a loss is trained with by default."""
    return "cosine" if loss in ("ldam", "arcface") else "linear"
