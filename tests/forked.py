"""Programs in processes of their own that need not import torch first: they are forked from one that has."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

from tests.ports import free_port

Main = Callable[[list[str]], int]

_CONTEXT = multiprocessing.get_context("forkserver")
# What a training imports, also what it imports late: seconds for each process that would do so by itself.
_IMPORTED = ["torch._dynamo", "efficientnet_lite_pytorch", "tensorboard", "matplotlib.backends.backend_svg", "tyro"]
_IMPORTED += ["lmk_train.training.loop", "lmk_train.evaluation.evaluate"]
_CONTEXT.set_forkserver_preload(_IMPORTED)


@dataclass(frozen=True)
class Forked:
    """A program at work: its process, and the file that has what it says on stdout and stderr."""

    process: BaseProcess
    said: Path

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    @property
    def is_running(self) -> bool:
        return self.process.is_alive()

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def finish(self) -> tuple[int, str]:
        """Wait for its end; returns its exit code (minus the signal that killed it) and what it said."""
        self.process.join(500)
        assert self.process.exitcode is not None, self.said.read_text()
        return self.process.exitcode, self.said.read_text()


def start(main: Main, words: list[str], said: Path, **environment: str) -> Forked:
    """Start a program: a function that can be imported, given its command line."""
    process = _CONTEXT.Process(target=_run, args=(main, words, said, environment))
    process.start()
    return Forked(process, said)


def run(main: Main, words: list[str], said: Path, **environment: str) -> tuple[int, str]:
    """Run a program to its end; returns its exit code and what it said."""
    return start(main, words, said, **environment).finish()


def wait_until(is_so: Callable[[], bool], program: Forked) -> None:
    """Wait until something is so; an AssertionError if the program ends before."""
    while not is_so():
        assert program.process.exitcode is None, program.said.read_text()
        program.process.join(0.02)


def run_ranks(main: Main, words: list[str], folder: Path, world: int) -> list[int]:
    """Run a program as torchrun would, on so many ranks, but without an agent: one that ends does not end the others.

    Returns the exit codes by rank; what they say is in `folder`.
    """
    place = {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1"}
    place["MASTER_PORT"] = str(free_port())
    ranks = [
        start(main, words, folder / f"said-{rank}.txt", RANK=str(rank), LOCAL_RANK=str(rank), **place)
        for rank in range(world)
    ]
    return [rank.finish()[0] for rank in ranks]


def _run(main: Main, words: list[str], said: Path, environment: dict[str, str]) -> None:
    import torch

    torch.set_num_threads(1)
    os.environ.update(environment)
    descriptor = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for standard in (1, 2):
        os.dup2(descriptor, standard)
    sys.exit(main(words))
