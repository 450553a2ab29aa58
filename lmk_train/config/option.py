"""What an option accepts and what it means to the rest of the trainer, declared in the annotation of its field.

    hflip: Annotated[float, Limits(at_least=0, at_most=1), OptionInfo(acts_on_backbone=True, search=Search())] = 0.5

Validation, resuming, searches and cached features read these declarations with `options_of`. None of them has a list of
names of options.
"""

import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from types import MappingProxyType, UnionType
from typing import Annotated, Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from lmk_data.errors import UserError

_SPELLED_AS_POWER = 2**20  # the least bound of the form 2^n - 1 that is written so


@dataclass(frozen=True)
class Limits:
    """The numbers that an option accepts, all finite; a bound that is None does not limit."""

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None

    def accept(self, value: float) -> bool:
        """Return whether a number lies within the limits; NaN does not lie within any."""
        return (
            -math.inf < value < math.inf
            and (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        upper = self.at_most if self.at_most is not None else self.below
        if self.above is not None:
            low = _spelled(self.above)
            if self.at_most is not None:
                return f"above {low}, at most {_spelled(self.at_most)}"
            if upper is None:
                return f"above {low}"
            return f"between {low} and {_spelled(upper)}"
        low = _spelled(self.at_least or 0)
        if self.at_most is not None:
            return f"from {low} to {_spelled(self.at_most)}"
        return f"at least {low}" if upper is None else f"from {low}, below {_spelled(upper)}"


@dataclass(frozen=True)
class Search:
    """Declares that a search may vary an option, and within which range it does so by default.

    The range is from `low` to `high`, on a log scale if `log`; or, with `around_default`, from a tenth of the model's
    default to ten times it. An option without a range is varied only where a file names it. A range that is
    `of_the_head_alone` is used only where cached features are trained on.
    """

    low: float | None = None
    high: float | None = None
    log: bool = False
    around_default: bool = False
    of_the_head_alone: bool = False


@dataclass(frozen=True)
class OptionInfo:
    """What an option of a training means beyond the command line.

    Attributes:
        losses: the losses that use the option; empty if all do.
        heads: the heads that use the option; empty if all do.
        decides_training: False for where and how a command runs (folders, devices, progress), which is no part of what
            a search fixes or finds.
        may_change_on_resume: whether a run can be resumed with another value.
        set_by_search: whether a search decides the value or has a flag of its own for it.
        acts_on_backbone: whether the option changes the backbone or its pictures, so that it has no effect where cached
            features are trained on.
        search: how a search varies the option; None if it cannot.
    """

    losses: tuple[str, ...] = ()
    heads: tuple[str, ...] = ()
    decides_training: bool = True
    may_change_on_resume: bool = False
    set_by_search: bool = False
    acts_on_backbone: bool = False
    search: Search | None = None

    def applies_to(self, loss: str, head: str) -> bool:
        """Return whether a training with this loss and head uses the option."""
        return (not self.losses or loss in self.losses) and (not self.heads or head in self.heads)


@dataclass(frozen=True)
class Option:
    """One option as it was declared.

    `type` is without None. `default` is None for an option that has none. `derived` says that the default depends on
    other options.
    """

    name: str
    type: Any
    default: object
    limits: Limits | None
    info: OptionInfo
    derived: bool

    @property
    def flag(self) -> str:
        """Return the option as it is written on the command line."""
        return f"--{self.name.replace('_', '-')}"


def options_of(config: type) -> Mapping[str, Option]:
    """Return the options of a command's dataclass by name, in order; those of nested dataclasses in their places."""
    return _options_of(config)


def values_of(config: Any) -> dict[str, Any]:
    """Return the value of every option of a configuration by name; nested dataclasses are flattened."""
    values: dict[str, Any] = {}
    for field in fields(config):
        value = getattr(config, field.name)
        values.update(values_of(value) if is_dataclass(value) else {field.name: value})
    return values


def check_limits(config: Any) -> None:
    """Raise UserError, which names the flag, for the first value that its option does not accept."""
    for name, option in options_of(type(config)).items():
        value = vars(config).get(name)  # not that of a nested dataclass, which has checked its own
        if option.limits is not None and value is not None:
            is_finite = not isinstance(value, float) or math.isfinite(value)
            require(option.limits.accept(value), option.flag, value, str(option.limits) if is_finite else "finite")


def require(holds: bool, flag: str, value: object, wanted: str) -> None:
    """Raise UserError, which names the flag, unless a condition holds."""
    if not holds:
        raise UserError(f"{flag} {value}: must be {wanted}")


@cache
def _options_of(config: type) -> Mapping[str, Option]:
    hints = get_type_hints(config, include_extras=True)
    options: dict[str, Option] = {}
    for field in fields(config):
        kind, notes = _without_annotation(hints[field.name])
        if is_dataclass(kind):
            options.update(options_of(cast(type, kind)))
            continue
        members = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
        options[field.name] = Option(
            name=field.name,
            type=next(one for one in members if one is not type(None) and not isinstance(one, TypeVar)),
            default=None if field.default is MISSING else field.default,
            limits=next((note for note in notes if isinstance(note, Limits)), None),
            info=next((note for note in notes if isinstance(note, OptionInfo)), OptionInfo()),
            derived=any(isinstance(one, TypeVar) for one in members),
        )
    return MappingProxyType(options)


def _without_annotation(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """Return a type without `Annotated`, and what it was annotated with; innermost first."""
    notes: tuple[Any, ...] = ()
    while get_origin(hint) is Annotated:
        notes = (*hint.__metadata__, *notes)
        hint = hint.__origin__
    return hint, notes


def _spelled(bound: float) -> str:
    power = int(bound) + 1 if isinstance(bound, int) else 0
    if power > _SPELLED_AS_POWER and not power & (power - 1):
        return f"2^{power.bit_length() - 1} - 1"
    return f"{bound:g}"
