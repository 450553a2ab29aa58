"""Independent tasks on all cores of this machine: results as they come, clean interruption."""

import signal
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import joblib
from joblib.externals.loky import get_reusable_executor
from joblib.externals.loky.process_executor import TerminatedWorkerError

from lmk_data.errors import BuildError

Task = TypeVar("Task")
Result = TypeVar("Result")


def num_workers(asked: int | None) -> int:
    """The number of worker processes: what was asked for, or one for each core that this process may use."""
    return asked or int(joblib.cpu_count())


def run_tasks(function: Callable[[Task], Result], tasks: Sequence[Task], workers: int) -> Iterator[Result]:
    """Results in the order in which they are ready, from worker processes (this one, for one worker or one task).

    Raises BuildError when a worker is killed. Leaving the iterator early, or Ctrl-C, ends the workers.
    """
    workers = min(workers, len(tasks))
    if workers <= 1:
        yield from map(function, tasks)
        return
    parallel = joblib.Parallel(n_jobs=workers, return_as="generator_unordered", pre_dispatch=2 * workers, batch_size=1)
    try:
        # Ctrl-C reaches the whole process group; workers inherit the mask, and the main process ends them.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            results = parallel(joblib.delayed(function)(task) for task in tasks)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        yield from results
    except TerminatedWorkerError as error:
        raise BuildError(
            "a worker process was killed (out of memory?); run again, perhaps with fewer --workers"
        ) from error
    finally:
        get_reusable_executor(reuse=True).shutdown(wait=True, kill_workers=True)
