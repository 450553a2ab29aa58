"""What a search varies: ranges and choices of a training's options, from a TOML file or by default; grids of them."""

import itertools
import math
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from lmk_data.errors import UserError
from lmk_train.config.defaults import DEFAULTS
from lmk_train.config.option import Option, options_of
from lmk_train.config.training import TrainConfig, default_head

Value = float | int | str
Point = dict[str, Value]
OPTIONS = options_of(TrainConfig)
_MOST_POINTS, _MOST_COUNTED = 100_000, 10_000


@dataclass(frozen=True)
class Range:
    """From `low` to `high`, both included; a grid has `points` of it at equal distances, on a log scale if `log`."""

    low: float
    high: float
    log: bool = False
    whole: bool = False
    points: int = 3

    def grid(self) -> list[Value]:
        """Return the points of a grid, in ascending order."""
        shares = [i / max(1, self.points - 1) for i in range(self.points)]
        if self.log:
            values = [math.exp(math.log(self.low) + share * math.log(self.high / self.low)) for share in shares]
        else:
            values = [self.low + share * (self.high - self.low) for share in shares]
        values = [min(max(value, self.low), self.high) for value in values]
        return list(dict.fromkeys(round(value) for value in values)) if self.whole else list(dict.fromkeys(values))

    def ends(self) -> list[Value]:
        """Return the values that stand for the whole range when it is checked."""
        return [self.low, self.high]


@dataclass(frozen=True)
class Choice:
    """One of these values."""

    values: tuple[Value, ...]

    def grid(self) -> list[Value]:
        """Return all values."""
        return list(self.values)

    def ends(self) -> list[Value]:
        """Return all values."""
        return list(self.values)


@dataclass(frozen=True)
class SearchSpace:
    """What is varied, by the names of `TrainConfig`'s fields, around the configuration `base`.

    `fixed` holds options that only some losses or heads use; they are set in the trainings that have one of these.
    """

    parameters: Mapping[str, Range | Choice]
    base: TrainConfig
    fixed: Mapping[str, Value] = field(default_factory=dict)

    def config(self, point: Point) -> TrainConfig:
        """Return the training of a point, without parameters that its loss or head does not use."""
        chosen = replace(self.base, **self.meaningful({**self.fixed, **point}))  # type: ignore[arg-type]
        if chosen.batch_size is None:  # else the memory of a device would decide
            chosen = replace(chosen, batch_size=DEFAULTS[chosen.model]["batch_size"])
        return replace(chosen, freeze_backbone_epochs=min(chosen.freeze_backbone_epochs, self.base.epochs or 1))

    def meaningful(self, point: Point) -> Point:
        """Return the part of a point that makes a difference to its training."""
        loss, head = (str(point.get(name) or getattr(self.base, name) or "") for name in ("loss", "head"))
        return {name: value for name, value in point.items() if _is_used(name, loss, head)}

    def grid(self) -> Iterator[Point]:
        """Return every point of the grid, the last parameter varying fastest; of equal trainings, the first point.

        Raises UserError for more than 100,000 points.
        """
        values = [parameter.grid() for parameter in self.parameters.values()]
        if (number := math.prod(map(len, values))) > _MOST_POINTS:
            raise UserError(f"the grid has {number:,} points; give fewer parameters or fewer `points` in --search")
        return self._trainings(values)

    @cached_property
    def num_points(self) -> int | None:
        """Return the number of trainings in the space; None if a range makes it infinite, or above 10,000 points."""
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
        """Yield the points of these values, one for each training."""
        seen = set()
        for chosen in itertools.product(*values):
            point: Point = dict(zip(self.parameters, chosen, strict=True))
            if (training := self.config(point)) not in seen:
                seen.add(training)
                yield point

    def check(self) -> None:
        """Raise UserError, which names the flag, if the end of a range or a choice is refused by a training."""
        ends = {name: parameter.ends() for name, parameter in self.parameters.items()}
        kinds = [name for name in ("loss", "head") if name in ends]
        for chosen in itertools.product(*(ends[name] for name in kinds)):
            first = {name: values[0] for name, values in ends.items()} | dict(zip(kinds, chosen, strict=True))
            for name, values in ends.items():
                for value in values:
                    self.config({**first, name: value}).resolved()

    def json(self) -> dict[str, Any]:
        """Return plain values, by which a search is compared with the one that it resumes."""
        shown: dict[str, Any] = {}
        for name, parameter in self.parameters.items():
            shown[name] = list(parameter.values) if isinstance(parameter, Choice) else vars(parameter)
        return {"search": shown, "fixed": dict(self.fixed), "config": self.base.public_json()}


def default_space(base: TrainConfig, num_images: int, *, features: bool) -> SearchSpace:
    """Return the ranges that the options declare, and batch sizes and frozen epochs around the defaults.

    Args:
        base: what every trial has in common.
        num_images: number of training images; batch sizes are at most this.
        features: whether trials train a head on cached features, to which the backbone's options do nothing.
    """
    defaults = base.resolved()
    sizes = (max(1, defaults.batch_size // 2), defaults.batch_size, 2 * defaults.batch_size)
    batches = tuple(size for size in sizes if size <= num_images)
    if len(batches) == 1:
        base = replace(base, batch_size=batches[0])
    parameters: dict[str, Range | Choice] = {}
    for name, option in OPTIONS.items():
        if option.info.search is not None and option.info.search.around_default:
            default = getattr(defaults, name)
            parameters[name] = Range(default / 10, default * 10, log=True)
    parameters |= _declared_ranges(of_the_head_alone=False)
    parameters["freeze_backbone_epochs"] = Range(0, min(3, defaults.epochs - 1), whole=True)
    parameters["batch_size"] = Choice(batches)
    if features:
        parameters |= _declared_ranges(of_the_head_alone=True)
        parameters = {name: value for name, value in parameters.items() if not OPTIONS[name].info.acts_on_backbone}
    used = {name: value for name, value in parameters.items() if _is_used(name, base.loss, base.head or "")}
    return SearchSpace({name: value for name, value in used.items() if len(value.grid()) > 1}, base)


def _declared_ranges(*, of_the_head_alone: bool) -> dict[str, Range | Choice]:
    searches = {name: option.info.search for name, option in OPTIONS.items()}
    return {
        name: Range(search.low, search.high, search.log)
        for name, search in searches.items()
        if search is not None and search.of_the_head_alone == of_the_head_alone
        if search.low is not None and search.high is not None
    }


def read_space(path: Path, base: TrainConfig) -> SearchSpace:
    """Return a search space from TOML: a table [search] of ranges and choices, and a table [fixed] of other options.

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
        raise UserError(f"--search {path}: [search] names no option to vary")
    for name in fixed:
        if name not in _fixable() or name in searched:
            why = "is searched too" if name in searched else "cannot be fixed here; some options are flags of lmk-tune"
            raise UserError(f"--search {path}: [fixed] {name}: {why}")
        if not _has_type(fixed[name], OPTIONS[name].type):
            raise UserError(
                f"--search {path}: [fixed] {name}: {fixed[name]!r} is not a value that {OPTIONS[name].flag} accepts"
            )
    parameters = {name: _parameter(f"--search {path}: [search] {name}", name, v) for name, v in searched.items()}
    of_some = {name: value for name, value in fixed.items() if _is_of_some(OPTIONS[name])}
    of_all = {name: value for name, value in fixed.items() if name not in of_some}
    try:
        space = SearchSpace(parameters, replace(base, **of_all), of_some)
        space.check()
    except UserError as error:
        raise UserError(f"--search {path}: {error}") from None
    losses, heads = (_values(space, name) for name in ("loss", "head"))
    for name in (*parameters, *of_some):
        if not any(_is_used(name, loss, head) for loss in losses for head in heads):
            table = "search" if name in parameters else "fixed"
            raise UserError(f"--search {path}: [{table}] {name}: has no effect with a loss of {', '.join(losses)}")
    return space


def _fixable() -> set[str]:
    """Return the options that every trial may be given the same value of."""
    return {name for name, option in OPTIONS.items() if option.info.decides_training and not option.info.set_by_search}


def _is_of_some(option: Option) -> bool:
    """Return whether only some losses or heads use an option."""
    return bool(option.info.losses or option.info.heads)


def _is_used(name: str, loss: str, head: str) -> bool:
    """Return whether a training with this loss and head ("" for the loss's default) uses an option."""
    return OPTIONS[name].info.applies_to(loss, head or default_head(loss))


def _tables(path: Path) -> list[dict[str, Any]]:
    """Return the tables [search] and [fixed] of a file, by the names of fields."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"--search {path}: no such file; docs/tuning.md has an example") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"--search {path}: not TOML: {error}") from None
    if unknown := tables.keys() - {"search", "fixed"}:
        name = min(unknown)
        if not isinstance(tables[name], dict):
            raise UserError(f"--search {path}: {name} is in no table; write [search] or [fixed] above it")
        raise UserError(f"--search {path}: [{name}] is neither [search] nor [fixed]")
    by_field = []
    for name in ("search", "fixed"):
        table = tables.get(name, {})
        if not isinstance(table, dict):
            raise UserError(f"--search {path}: {name} is not a table; write [{name}] above its lines")
        for option in table:
            if "-" in option and option.replace("-", "_") in table:
                raise UserError(f"--search {path}: [{name}] {option}: is given with _ too; leave one of them out")
        by_field.append({option.replace("-", "_"): value for option, value in table.items()})
    return by_field


def _has_type(value: object, kind: Any) -> bool:
    """Return whether a value of TOML is of the type of an option."""
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    return _is_number(value, whole=False) if kind is float else type(value) is kind


def _parameter(where: str, name: str, value: Any) -> Range | Choice:
    """Return what a line of [search] says. Raises UserError, which begins with `where`, if the option cannot be so."""
    searchable = [option.name for option in OPTIONS.values() if option.info.search is not None]
    if name not in searchable:
        raise UserError(f"{where}: cannot be searched; these can: {', '.join(searchable)}")
    kind = OPTIONS[name].type
    if get_origin(kind) is Literal:
        allowed = get_args(kind)
        if not isinstance(value, list) or any(one not in allowed for one in value) or len(set(value)) < 2:
            raise UserError(f"{where}: must be a list of two or more of {', '.join(allowed)}")
        return Choice(tuple(dict.fromkeys(value)))
    whole = kind is int
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
        raise UserError(f"{where}: range {low}, {high}: must ascend{', from above 0' if log else ''}")
    return Range(low if whole else float(low), high if whole else float(high), log, whole, points)


def _values(space: SearchSpace, name: str) -> list[str]:
    parameter = space.parameters.get(name)
    return [str(value) for value in parameter.grid()] if parameter else [str(getattr(space.base, name) or "")]


def _is_number(value: object, whole: bool) -> bool:
    if not isinstance(value, int if whole else (int, float)) or isinstance(value, bool):
        return False
    return abs(value) <= (2**53 if whole else sys.float_info.max)  # integers of TOML are not bounded
