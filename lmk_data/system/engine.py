"""Engines run independent tasks: the interface, and the engine of one machine, a worker process for each core."""

import os
import signal
import threading
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker as mp_resource_tracker
from typing import Protocol, TypeVar

import joblib
from joblib.externals.loky import get_reusable_executor
from joblib.externals.loky.backend import resource_tracker
from joblib.externals.loky.process_executor import TerminatedWorkerError

from lmk_data.errors import BuildError, UserError

Task = TypeVar("Task")
Result = TypeVar("Result")


class Engine(Protocol):
    """Something that runs tasks side by side."""

    @property
    def workers(self) -> int:
        """How many tasks run at once."""

    def run(self, function: Callable[[Task], Result], tasks: Sequence[Task]) -> Iterator[Result]:
        """Results in the order in which they are ready. Leaving the iterator early, or Ctrl-C, ends the work.

        Raises what a task raises, and BuildError when workers die.
        """


@dataclass(frozen=True, slots=True)
class LocalEngine:
    """Worker processes of this machine; one worker or one task runs in this process."""

    workers: int

    def run(self, function: Callable[[Task], Result], tasks: Sequence[Task]) -> Iterator[Result]:
        workers = min(self.workers, len(tasks))
        if workers <= 1:
            yield from map(function, tasks)
            return
        parallel = joblib.Parallel(
            n_jobs=workers, return_as="generator_unordered", pre_dispatch=2 * workers, batch_size=1
        )
        try:
            with _quiet_cleaning(), _interruptions_held() as came:
                results = parallel(joblib.delayed(function)(task) for task in tasks)
            assert isinstance(results, Generator)
            try:
                if came:
                    signal.raise_signal(came[0])
                for result in results:  # noqa: UP028 - `yield from` would close it beyond the filter below
                    yield result
            finally:
                with _quiet_ending():
                    results.close()
        except TerminatedWorkerError as error:
            raise BuildError(
                "a worker process was killed (out of memory?); run again, perhaps with fewer --workers"
            ) from error
        finally:
            with _quiet_ending():
                get_reusable_executor(reuse=True).shutdown(wait=True, kill_workers=True)


@contextmanager
def _interruptions_held() -> Iterator[list[int]]:
    """Start processes that Ctrl-C does not reach: it goes to the whole process group, and the main process ends them.

    Signals that come meanwhile are kept for later, as what has half started cannot be ended.
    """
    came: list[int] = []
    is_main = threading.current_thread() is threading.main_thread()  # no other thread is told of signals
    numbers = (signal.SIGINT, signal.SIGTERM) if is_main else ()
    before = {number: signal.signal(number, lambda number, _: came.append(number)) for number in numbers}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        for tracker in (mp_resource_tracker, resource_tracker):
            tracker.ensure_running()  # which unblocks signals when it starts a process
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # which processes inherit, as handlers they do not
        yield came
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _quiet_ending() -> Iterator[None]:
    """End the work without a word on the tasks that are given up, which leaving early asks for: joblib warns of them,
    and loky's thread, once it has killed the workers, does not find those that it was about to hand out."""
    before = threading.excepthook

    def excepthook(args: threading.ExceptHookArgs) -> None:
        if not (args.exc_type is KeyError and args.thread and args.thread.name == "ExecutorManagerThread"):
            before(args)

    threading.excepthook = excepthook
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        threading.excepthook = before


@contextmanager
def _quiet_cleaning() -> Iterator[None]:
    """Start processes in such a way that the one that cleans up after workers does not tell, after our one line of an
    error, what a killed worker left behind: it cleans that up."""
    before = os.environ.get("PYTHONWARNINGS")
    quiet = "ignore::UserWarning:joblib.externals.loky.backend.resource_tracker"
    os.environ["PYTHONWARNINGS"] = f"{before},{quiet}" if before else quiet
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONWARNINGS"]
        else:
            os.environ["PYTHONWARNINGS"] = before


def local_engine(workers: int | None) -> LocalEngine:
    """An engine of as many worker processes as asked for, or one for each core that this process may use.

    Raises UserError for less than one.
    """
    if workers is not None and workers < 1:
        raise UserError(f"--workers {workers}: must be at least 1")
    return LocalEngine(workers or int(joblib.cpu_count()))
