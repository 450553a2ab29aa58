"""A value that is computed when it is first asked for, once, by whichever thread asks."""

from collections.abc import Callable
from threading import Lock
from typing import Generic, TypeVar

Value = TypeVar("Value")


class Lazy(Generic[Value]):
    """A value that is computed once; other threads that ask for it meanwhile wait."""

    def __init__(self, compute: Callable[[], Value]) -> None:
        self._compute = compute
        self._lock = Lock()
        self._values: list[Value] = []

    def get(self) -> Value:
        """Return the value. What computing it raises is raised, and the next call tries again."""
        if not self._values:
            with self._lock:
                if not self._values:
                    self._values.append(self._compute())
        return self._values[0]

    def peek(self) -> Value | None:
        """Return the value if it has been computed, without computing it; else None."""
        return self._values[0] if self._values else None
