"""What a search varies: ranges and choices of a training's options, from a TOML file or the defaults; grids of them."""

import itertools
import math
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from lmk_data.errors import UserError
from lmk_train.config.training import DEFAULTS, Head, LossName, ModelName, Optimizer, Sampling, Schedule, TrainConfig

Value = float | int | str
Point = dict[str, Value]
_FLOATS = (
    "lr",
    "head_lr",
    "weight_decay",
    "ldam_max_margin",
    "cosine_scale",
    "label_smoothing",
    "drop_rate",
    "drw_start",
    "warmup_epochs",
    "clip_grad",
    "ema",
    "bn_momentum",
    "hflip",
    "color_jitter",
    "random_resized_crop",
    "random_erasing",
)
_INTS = ("batch_size", "freeze_backbone_epochs", "crop_padding")
_CHOICES: dict[str, Any] = {
    "model": ModelName,
    "loss": LossName,
    "head": Head,
    "optimizer": Optimizer,
    "schedule": Schedule,
    "sampling": Sampling,
}
# What a search decides itself, or a flag of its own says.
_NOT_FIXED = {
    *("shards", "out", "model", "loss", "epochs", "seed", "best_by"),
    *("device", "workers", "cache", "cache_gb", "resume", "dry_run", "profile_input", "quiet"),
}
# What does nothing to features that are there already.
OF_THE_BACKBONE = {
    "model",
    "lr",
    "freeze_backbone_epochs",
    "bn_momentum",
    "hflip",
    "color_jitter",
    "crop_padding",
    "random_resized_crop",
    "random_erasing",
}
# What only some losses or heads take.
_OF_SOME = ("ldam_max_margin", "label_smoothing", "cosine_scale")
_MOST_POINTS, _MOST_COUNTED = 100_000, 10_000


@dataclass(frozen=True)
class Range:
    """From `low` to `high`, both included; a grid takes `points` of it, evenly, on a log scale if `log`."""

    low: float
    high: float
    log: bool = False
    whole: bool = False
    points: int = 3

    def grid(self) -> list[Value]:
        """The points of a grid, in ascending order."""
        shares = [i / max(1, self.points - 1) for i in range(self.points)]
        if self.log:
            values = [math.exp(math.log(self.low) + share * math.log(self.high / self.low)) for share in shares]
        else:
            values = [self.low + share * (self.high - self.low) for share in shares]
        values = [min(max(value, self.low), self.high) for value in values]
        return list(dict.fromkeys(round(value) for value in values)) if self.whole else list(dict.fromkeys(values))

    def ends(self) -> list[Value]:
        """What stands for all of it when it is checked."""
        return [self.low, self.high]


@dataclass(frozen=True)
class Choice:
    """One of these values."""

    values: tuple[Value, ...]

    def grid(self) -> list[Value]:
        """All of them."""
        return list(self.values)

    def ends(self) -> list[Value]:
        """All of them."""
        return list(self.values)


@dataclass(frozen=True)
class SearchSpace:
    """What is varied, by the names of `TrainConfig`'s fields, around a configuration that says all the rest; `fixed` is
    what only some losses or heads take, for the trainings that have one."""

    parameters: Mapping[str, Range | Choice]
    base: TrainConfig
    fixed: Mapping[str, Value] = field(default_factory=dict)

    def config(self, point: Point) -> TrainConfig:
        """The training of a point. Parameters that do nothing to it (the margin of a cross entropy) are left out."""
        chosen = replace(self.base, **self.meaningful({**self.fixed, **point}))  # type: ignore[arg-type]
        return replace(chosen, freeze_backbone_epochs=min(chosen.freeze_backbone_epochs, self.base.epochs or 1))

    def meaningful(self, point: Point) -> Point:
        """The part of a point that makes a difference."""
        loss, head = (str(point.get(name) or getattr(self.base, name) or "") for name in ("loss", "head"))
        return {name: value for name, value in point.items() if _matters(name, loss, head)}

    def grid(self) -> Iterator[Point]:
        """Every point of the grid once, the last parameter varying fastest; points that train the same are one."""
        values = [parameter.grid() for parameter in self.parameters.values()]
        if (number := math.prod(map(len, values))) > _MOST_POINTS:
            raise UserError(f"the grid has {number:,} points; give fewer parameters or fewer `points` in --search")
        return self._trainings(values)

    @cached_property
    def num_points(self) -> int | None:
        """How many trainings the space holds, None if a range makes them countless, or they are over 10,000."""
        values: list[Sequence[Value]] = []
        for parameter in self.parameters.values():
            if isinstance(parameter, Choice):
                values.append(parameter.values)
            elif parameter.whole:
                values.append(range(int(parameter.low), int(parameter.high) + 1))
            else:
                return None
        few = math.prod(map(len, values)) <= _MOST_COUNTED
        return sum(1 for _ in self._trainings(values)) if few else None

    def _trainings(self, values: Iterable[Sequence[Value]]) -> Iterator[Point]:
        """The points of these values, one for each training."""
        seen = set()
        for chosen in itertools.product(*values):
            point: Point = dict(zip(self.parameters, chosen, strict=True))
            if (training := self.config(point)) not in seen:
                seen.add(training)
                yield point

    def check(self) -> None:
        """Raise UserError, naming the flag, if an end of a range or a choice is nothing that a training takes."""
        ends = {name: parameter.ends() for name, parameter in self.parameters.items()}
        kinds = [name for name in ("loss", "head") if name in ends]
        for chosen in itertools.product(*(ends[name] for name in kinds)):
            first = {name: values[0] for name, values in ends.items()} | dict(zip(kinds, chosen, strict=True))
            for name, values in ends.items():
                for value in values:
                    self.config({**first, name: value}).resolved()

    def json(self) -> dict[str, Any]:
        """Plain values, to tell whether a search goes on with the same space."""
        shown: dict[str, Any] = {}
        for name, parameter in self.parameters.items():
            shown[name] = list(parameter.values) if isinstance(parameter, Choice) else vars(parameter)
        return {"search": shown, "fixed": dict(self.fixed), "config": self.base.json()}


def default_space(base: TrainConfig, num_images: int, *, features: bool) -> SearchSpace:
    """The usual suspects around the model's defaults; with `features`, those of a head on a frozen backbone.

    Batch sizes are those that fit `num_images`, a number of training images.
    """
    defaults = DEFAULTS[base.model]
    batch = base.batch_size or defaults.batch_size
    batches = tuple(size for size in (max(1, batch // 2), batch, 2 * batch) if size <= num_images)
    if len(batches) == 1:
        base = replace(base, batch_size=batches[0])
    parameters: dict[str, Range | Choice] = {
        "lr": _around(base.lr or defaults.lr),
        "head_lr": _around(base.head_lr or defaults.head_lr),
        "weight_decay": _around(base.weight_decay or defaults.weight_decay),
        "ldam_max_margin": Range(0.1, 1.0),
        "cosine_scale": Range(8.0, 64.0, log=True),
        "label_smoothing": Range(0.0, 0.2),
        "color_jitter": Range(0.0, 0.5),
        "freeze_backbone_epochs": Range(0, min(3, (base.epochs or defaults.epochs) - 1), whole=True),
        "batch_size": Choice(batches),
    }
    if features:
        parameters = {name: value for name, value in parameters.items() if name not in OF_THE_BACKBONE}
        parameters["drop_rate"] = Range(0.0, 0.5)
    head = base.head or ""
    kept = {name: value for name, value in parameters.items() if _matters(name, base.loss, head)}
    return SearchSpace({name: value for name, value in kept.items() if len(value.grid()) > 1}, base)


def read_space(path: Path, base: TrainConfig) -> SearchSpace:
    """A search space from TOML: a table [search] of ranges and choices, and a table [fixed] of other options.

        [search]
        lr = { range = [1e-5, 1e-2], log = true }
        batch_size = [16, 32, 64]
        loss = ["ce", "ldam"]

        [fixed]
        crop_padding = 4

    Raises UserError that names file and key.
    """
    searched, fixed = _tables(path)
    if not searched:
        raise UserError(f"--search {path}: [search] names nothing to vary")
    known = {option.name for option in fields(TrainConfig)} - _NOT_FIXED
    for name in fixed:
        if name not in known or name in searched:
            why = "is searched too" if name in searched else "cannot be fixed here; some options are flags of lmk-tune"
            raise UserError(f"--search {path}: [fixed] {name}: {why}")
    _check_fixed(path, fixed)
    parameters = {name: _parameter(f"--search {path}: [search] {name}", name, v) for name, v in searched.items()}
    of_some = {name: value for name, value in fixed.items() if name in _OF_SOME}
    of_all = {name: value for name, value in fixed.items() if name not in _OF_SOME}
    try:
        space = SearchSpace(parameters, replace(base, **of_all), of_some)
        space.check()
    except UserError as error:
        raise UserError(f"--search {path}: {error}") from None
    losses, heads = (_values(space, name) for name in ("loss", "head"))
    for name in (*parameters, *of_some):
        if not any(_matters(name, loss, head) for loss in losses for head in heads):
            table = "search" if name in parameters else "fixed"
            raise UserError(f"--search {path}: [{table}] {name}: does nothing to a loss of {', '.join(losses)}")
    return space


def _tables(path: Path) -> list[dict[str, Any]]:
    """What the tables [search] and [fixed] of a file hold, by the names of fields."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"--search {path}: no such file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"--search {path}: not TOML: {error}") from None
    if unknown := tables.keys() - {"search", "fixed"}:
        raise UserError(f"--search {path}: [{min(unknown)}] is neither [search] nor [fixed]")
    found = []
    for name in ("search", "fixed"):
        table = tables.get(name, {})
        if not isinstance(table, dict):
            raise UserError(f"--search {path}: {name} is not a table; write [{name}] above its lines")
        for option in table:
            if "-" in option and option.replace("-", "_") in table:
                raise UserError(f"--search {path}: [{name}] {option}: is there with _ too; leave one of them out")
        found.append({option.replace("-", "_"): value for option, value in table.items()})
    return found


def _check_fixed(path: Path, fixed: dict[str, Any]) -> None:
    types = get_type_hints(TrainConfig)
    for name, value in fixed.items():
        if not _fits(value, types[name]):
            raise UserError(
                f"--search {path}: [fixed] {name}: {value!r} is nothing that --{name.replace('_', '-')} takes"
            )


def _fits(value: object, wanted: Any) -> bool:
    """Whether a value of TOML is of the type of an option."""
    if get_origin(wanted) is Literal:
        return value in get_args(wanted)
    if get_origin(wanted) in (Union, UnionType):
        return any(_fits(value, one) for one in get_args(wanted))
    if wanted is float:
        return _is_number(value, whole=False)
    return type(value) is wanted


def _parameter(where: str, name: str, value: Any) -> Range | Choice:
    if name in _CHOICES:
        allowed = get_args(_CHOICES[name])
        if not isinstance(value, list) or any(one not in allowed for one in value) or len(set(value)) < 2:
            raise UserError(f"{where}: must be a list of two or more of {', '.join(allowed)}")
        return Choice(tuple(dict.fromkeys(value)))
    if name not in _FLOATS + _INTS:
        raise UserError(f"{where}: cannot be searched; these can: {', '.join((*_FLOATS, *_INTS, *_CHOICES))}")
    whole = name in _INTS
    if isinstance(value, list):
        if any(not _is_number(one, whole) for one in value) or len(set(value)) < 2:
            raise UserError(f"{where}: must be a list of two or more {'whole ' * whole}numbers")
        return Choice(tuple(sorted({one if whole else float(one) for one in value})))
    return _range(where, value, whole)


def _range(where: str, value: Any, whole: bool) -> Range:
    usage = "must be a list of values, or { range = [low, high], log = true, points = 3 }"
    if not isinstance(value, dict) or value.keys() - {"range", "log", "points"} or "range" not in value:
        raise UserError(f"{where}: {usage}")
    ends, log, points = value["range"], value.get("log", False), value.get("points", 3)
    if not isinstance(ends, list) or len(ends) != 2 or any(not _is_number(end, whole) for end in ends):
        raise UserError(f"{where}: range must be two {'whole ' * whole}numbers")
    if not isinstance(log, bool) or not isinstance(points, int) or isinstance(points, bool) or points < 1:
        raise UserError(f"{where}: {usage}")
    low, high = ends
    if low >= high or (log and low <= 0):
        raise UserError(f"{where}: range {low}, {high}: must go up{', from above 0' if log else ''}")
    return Range(low if whole else float(low), high if whole else float(high), log, whole, points)


def _matters(name: str, loss: str, head: str) -> bool:
    if name == "ldam_max_margin":
        return loss == "ldam"
    if name == "label_smoothing":
        return loss == "ce"
    if name == "cosine_scale":
        return (head or ("cosine" if loss == "ldam" else "linear")) == "cosine"
    return True


def _values(space: SearchSpace, name: str) -> list[str]:
    parameter = space.parameters.get(name)
    return [str(value) for value in parameter.grid()] if parameter else [str(getattr(space.base, name) or "")]


def _around(default: float) -> Range:
    """A tenth of a default to ten times it."""
    return Range(default / 10, default * 10, log=True)


def _is_number(value: object, whole: bool) -> bool:
    if not isinstance(value, int if whole else (int, float)) or isinstance(value, bool):
        return False
    return abs(value) <= (2**53 if whole else sys.float_info.max)  # TOML's integers know no end
