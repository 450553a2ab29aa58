"""Ctrl-C and SIGTERM as requests that a training heeds after a step."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lmk_train.runtime.world import World


class Stop:
    """Set by the first Ctrl-C or SIGTERM; the step in hand is finished and saved."""

    requested = _agreed = False

    def agreed(self, world: World, save_is_due: bool) -> bool:
        """Whether to save at this step: one process asked to stop stops all; the first says when a save is due."""
        asked = world.most(2 if self.requested else int(save_is_due and world.is_first))
        self._agreed = asked == 2
        return asked > 0

    def heed(self, step: int) -> None:
        """Interrupt if the processes agreed on that; everything up to `step` is saved.

        A signal that came while they were asked is heeded the next time.
        """
        if self._agreed:
            raise KeyboardInterrupt(f"give the same command with --resume to go on at step {step}")


@contextmanager
def stopping_gently(under_torchrun: bool) -> Iterator[Stop]:
    """Turn SIGINT or SIGTERM into a request; a second Ctrl-C, which only a person gives, interrupts at once.

    A scheduler's SIGTERM may come twice, to the whole job and forwarded by torchrun; so may Ctrl-C under torchrun.
    """
    stop = Stop()
    previous: dict[int, Any] = {}

    def request(number: int, _: object) -> None:
        stop.requested = True
        if number == signal.SIGINT and not under_torchrun:
            signal.signal(number, previous[number])

    for number in (int(signal.SIGINT), int(signal.SIGTERM)):
        previous[number] = signal.signal(number, request)
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
