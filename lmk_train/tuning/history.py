"""experiment.json: the trials of a search as plain values, typed and checked when they are read."""

import math
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from lmk_data.errors import UserError
from lmk_data.system.files import write_bytes
from lmk_train.runs.plain_file import read_bounded
from lmk_train.tuning.space import Choice, Range, SearchSpace

State = Literal["running", "done", "stopped", "failed", "repeated"]
RUNNING: State = "running"
DONE: State = "done"
STOPPED: State = "stopped"
FAILED: State = "failed"
REPEATED: State = "repeated"

_MAX_BYTES = 256 << 20  # 100,000 trials of 30 epochs have about 80 MB
_MAX_POSITION = 10_000_000  # a generator is moved there step by step
_ROUNDING = 1e-9  # relative: the ends of a range on a log scale are rounded

Epoch = Annotated[int, msgspec.Meta(ge=1)]


class Proposal(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What proposed a point: a node of Ax's strategy, its generator, and that generator's state afterwards.

    `seed` and `position` are those of a quasi-random sequence, None for a generator without a state.
    """

    node: str
    generator: str
    seed: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)] | None = None
    position: Annotated[int, msgspec.Meta(ge=0, le=_MAX_POSITION)] | None = None


class TrialRecord(msgspec.Struct, forbid_unknown_fields=True):
    """One trial. `values` holds the objective by epoch; `proposal` is None for a point of a grid.

    A `repeated` trial is a proposal that would have repeated another training, so nothing was trained.
    """

    point: dict[str, bool | int | float | str]
    proposal: Proposal | None
    state: State = RUNNING
    values: dict[Epoch, float] = {}
    reason: str = ""


class History(msgspec.Struct, forbid_unknown_fields=True):
    """Every trial by number, and the node of Ax's strategy that proposes next; None before the first proposal."""

    format: Literal["lmk-search"] = "lmk-search"
    version: Literal[1] = 1
    node: str | None = None
    trials: list[TrialRecord] = []


def read_history(path: Path, space: SearchSpace, epochs: int) -> History:
    """Return the history of a search.

    Args:
        path: of experiment.json.
        space: what the search varies; each point must lie in it.
        epochs: of each trial.

    Raises:
        UserError: the file is absent, or is not the history of such a search.
    """
    try:
        history = msgspec.json.decode(read_bounded(path, _MAX_BYTES), type=History)
        for number, trial in enumerate(history.trials):
            _check_trial(number, trial, space, epochs)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; leave --resume out to start the search") from None
    except (ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors
        shown = " ".join(str(error).split())[:100]
        raise UserError(f"{path}: not the trials of this search ({shown}); start another with --out") from None
    return history


def write_history(path: Path, history: History) -> None:
    """Write the history of a search, atomically and durably."""
    write_bytes(path, msgspec.json.encode(history) + b"\n")


def _check_trial(number: int, trial: TrialRecord, space: SearchSpace, epochs: int) -> None:
    """Raise ValueError unless a trial's point lies in the space and its epochs are counted from 1."""
    if trial.point.keys() != space.parameters.keys():
        raise ValueError(f"trial {number} has other parameters than the search")
    for name, parameter in space.parameters.items():
        if not _lies_in(trial.point[name], parameter):
            raise ValueError(f"trial {number}: its {name} is not a value of the search")
    if list(trial.values) != list(range(1, len(trial.values) + 1)) or len(trial.values) > epochs:
        raise ValueError(f"trial {number}: its epochs are not 1 to {epochs} at most")
    if not all(map(math.isfinite, trial.values.values())):
        raise ValueError(f"trial {number}: its objective is not finite")


def _lies_in(value: object, parameter: Range | Choice) -> bool:
    if isinstance(parameter, Choice):
        return any(type(value) is type(one) and value == one for one in parameter.values)
    if isinstance(value, bool) or not isinstance(value, int if parameter.whole else int | float):
        return False
    slack = _ROUNDING * max(abs(parameter.low), abs(parameter.high))
    return parameter.low - slack <= value <= parameter.high + slack
