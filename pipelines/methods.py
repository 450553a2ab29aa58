"""A method of training that a benchmark compares with others: its options, and the name of its folders."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.steps import TRAINER


@dataclass(frozen=True)
class Method:
    """Options of `lmk-train` by their names with underscores.

    With a `backbone`, the name of another method, the backbone of that one is kept and its head trained anew (cRT).
    `program` is what trains: a command of this environment, or Python with a module that takes the same options.
    """

    options: Mapping[str, Any]
    backbone: str | None = None
    program: tuple[str, ...] = TRAINER

    def arguments(self) -> tuple[object, ...]:
        """Return the options as words of a command line."""
        return tuple(word for name, value in self.options.items() for word in (f"--{name.replace('_', '-')}", value))


def slug(method: str) -> str:
    """Return the name of a method as a part of a file name."""
    return method.lower().replace(",", "").replace(" ", "-")
