"""`lmk-train` as one of several ranks, of which the last comes to grief after its second update.

The group of ranks cannot be destroyed: to try to do so blocks for good, as on NCCL while other ranks still compute.
"""

import os
import signal
import threading
from collections.abc import Callable

from torch import distributed

from lmk_data.errors import TrainingError
from lmk_train.cli import train_main
from tests.train.updates import after_each_update


def fails(words: list[str]) -> int:
    """The last rank raises an error."""

    def fail() -> None:
        raise TrainingError("out of luck")

    return _train(words, fail)


def has_a_bug(words: list[str]) -> int:
    """The last rank raises what nobody expects."""

    def fail() -> None:
        raise ZeroDivisionError("a bug")

    return _train(words, fail)


def is_killed(words: list[str]) -> int:
    """The last rank is killed, while the others wait in a call that never returns."""
    return _train(words, lambda: os.kill(os.getpid(), signal.SIGKILL), others=_block)


def _train(words: list[str], last: Callable[[], None], others: Callable[[], None] = lambda: None) -> int:
    distributed.destroy_process_group = _block
    is_last = os.environ["RANK"] == str(int(os.environ["WORLD_SIZE"]) - 1)

    def after_second_update(number: int, _: object) -> None:
        if number == 2:
            (last if is_last else others)()

    with after_each_update(after_second_update):
        return train_main(words)


def _block() -> None:
    threading.Event().wait()
