"""Ctrl-C, SIGTERM and SIGHUP as requests: the current step is finished and saved before the training ends."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lmk_data.system.terminal import interruptions
from lmk_train.runtime.world import World


class StopRequest:
    """A request to stop, set by the first interruption, on which all ranks agree between two steps."""

    requested = _all_stop = False

    def should_save(self, world: World, save_is_due: bool) -> bool:
        """Return whether to save a checkpoint at this step; all ranks return the same, and wait for one another.

        A stop request of any rank stops all of them. `save_is_due` counts on the first rank only.
        """
        wanted = world.max(2 if self.requested else int(save_is_due and world.is_first))
        self._all_stop = wanted == 2
        return wanted > 0

    def raise_if_stopping(self, step: int) -> None:
        """Raise KeyboardInterrupt if the last `should_save` was for a stop request; everything up to `step` is saved.

        A signal that arrived during that `should_save` takes effect at the next one.
        """
        if self._all_stop:
            raise KeyboardInterrupt(f"give the same command with --resume to resume at step {step}")


@contextmanager
def stop_requests(under_torchrun: bool) -> Iterator[StopRequest]:
    """Turn interruptions into a `StopRequest`; a second Ctrl-C stops at once (not under torchrun).

    A scheduler's SIGTERM may arrive twice: sent to the whole job, and forwarded by torchrun. So may a Ctrl-C under
    torchrun. Elsewhere only a person sends a second Ctrl-C.
    """
    stop = StopRequest()
    previous: dict[int, Any] = {}

    def request(number: int, _: object) -> None:
        stop.requested = True
        if number == signal.SIGINT and not under_torchrun:
            signal.signal(number, previous[number])

    for interruption in interruptions():
        previous[interruption] = signal.signal(interruption, request)
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def stop_with_stdin() -> None:
    """Send this process a SIGTERM, from a thread, once the one that holds its standard input open has ended."""

    def wait() -> None:
        sys.stdin.read()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()
