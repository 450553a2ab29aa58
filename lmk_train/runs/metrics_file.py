"""metrics.jsonl: read back what a training wrote about its steps and epochs, checked line by line."""

import json
from pathlib import Path
from typing import Annotated, Any

import msgspec

from lmk_data.errors import UserError, one_line
from lmk_train.runs.plain_file import checked, read_bounded

MAX_METRICS_BYTES = 1 << 30

Number = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
Line = dict[str, Any]


class _Any(msgspec.Struct):
    kind: str
    step: Number
    epoch: Number


class _Epoch(msgspec.Struct):
    train_loss: float
    train_accuracy: float


class _Steps(msgspec.Struct):
    images_per_second: float
    data_share: float
    copy_share: float
    compute_share: float


_SHAPES: dict[str, type[msgspec.Struct]] = {"epoch": _Epoch, "train": _Steps}


def read_metrics_file(path: Path) -> list[Line]:
    """Return the lines of metrics.jsonl; those that are no JSON are left out, since a crash cuts the last one short.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: it cannot be read, or a line is not one that a training writes.
    """
    found = []
    for number, text in enumerate(read_bounded(path, MAX_METRICS_BYTES).decode(errors="replace").splitlines(), start=1):
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            continue
        try:
            found.append(_checked_line(value))
        except ValueError as error:
            raise UserError(f"{path}: line {number} is not one of a training ({one_line(error)})") from None
    return found


def _checked_line(value: Any) -> Line:
    """Return a line; ValueError unless its fields are numbers, and those of its kind are there."""
    line = checked(value, dict[str, str | int | float | None])
    kind = checked(line, _Any).kind
    if kind in _SHAPES:
        checked(line, _SHAPES[kind])
    if text := [name for name, one in line.items() if name != "kind" and isinstance(one, str)]:
        raise ValueError(f"{text[0]} is text")
    return line
