"""Repeat a request to a storage while it fails."""

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

Result = TypeVar("Result")


def repeated(
    action: Callable[[], Result], pauses_seconds: Sequence[float], final: tuple[type[OSError], ...] = ()
) -> Result:
    """Return what `action` returns; call it again after each pause while it raises an OSError not in `final`."""
    for pause in pauses_seconds:
        try:
            return action()
        except final:
            raise
        except OSError:
            time.sleep(pause)
    return action()
