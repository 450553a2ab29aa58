"""Repeat a request to a storage while it fails."""

import math
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from lmk_data.errors import TooLargeError

Result = TypeVar("Result")


def repeated(
    action: Callable[[], Result],
    pauses_seconds: Sequence[float],
    *,
    final: tuple[type[OSError], ...] = (),
    patience_seconds: float = math.inf,
) -> Result:
    """Return what `action` returns; call it again after each pause while it raises an OSError.

    Args:
        action: the request.
        pauses_seconds: how long to wait before each repetition.
        final: errors that a repetition would not change.
        patience_seconds: nothing is repeated once the request has taken this long in all.
    """
    started = time.monotonic()
    for pause in pauses_seconds:
        try:
            return action()
        except OSError as error:
            if isinstance(error, (TooLargeError, *final)) or time.monotonic() - started > patience_seconds:
                raise
            time.sleep(pause)
    return action()
