"""Engines run independent tasks: the interface, and the engine of one machine with one worker process per core.

joblib runs the processes. Three context managers below keep what joblib and its backend loky print off stderr, so that
an interrupted or failed command prints only the one line of `run_command`. tests/test_faults.py covers them.
"""

import importlib
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker as mp_resource_tracker
from typing import Protocol, TypeVar

import joblib
from joblib.externals.loky import reusable_executor
from joblib.externals.loky.backend import get_context, resource_tracker
from joblib.externals.loky.process_executor import TerminatedWorkerError

from lmk_data.errors import DeadWorkerError, UserError
from lmk_data.system.terminal import interruptions

# A worker that grew by 300 MB is replaced by joblib when it is idle: nothing that a user could do anything about.
warnings.filterwarnings("ignore", "A worker stopped while some jobs were given", UserWarning, "joblib")
# Workers that are still importing when the engine takes them over; it waits for these.
warnings.filterwarnings("ignore", "Trying to resize an executor with running jobs", UserWarning, "joblib")
_SECONDS_BETWEEN_LOOKS = 1.0
_OUT_OF_MEMORY = 99  # the exit code of a process that ran out of memory
_ENDS_BY_REQUEST = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
Task = TypeVar("Task")
Result = TypeVar("Result")


class Engine(Protocol):
    """Something that runs tasks in parallel."""

    @property
    def workers(self) -> int:
        """The number of tasks that run at once."""

    def run(self, function: Callable[[Task], Result], tasks: Sequence[Task]) -> Iterator[Result]:
        """Yield results in the order in which they are ready. Leaving the iterator early, or Ctrl-C, ends the work.

        Raises what a task raises, and DeadWorkerError when workers die.
        """


@dataclass(frozen=True, slots=True)
class LocalEngine:
    """Worker processes on this machine. With one worker or one task, everything runs in this process."""

    workers: int

    def run(self, function: Callable[[Task], Result], tasks: Sequence[Task]) -> Iterator[Result]:
        """Yield results in the order in which they are ready, and end all workers at the end; see `Engine.run`."""
        workers = min(self.workers, len(tasks))
        if workers <= 1:
            yield from map(function, tasks)
            return
        parallel = _parallel(workers, pre_dispatch=2 * workers)
        try:
            with _silent_processes(), _signals_deferred() as received:
                results = parallel(joblib.delayed(function)(task) for task in tasks)
            assert isinstance(results, Generator)
            try:
                if received:
                    signal.raise_signal(received[0])
                for result in results:  # noqa: UP028 - `yield from` would close the results outside the filter below
                    yield result
            finally:
                with _silent_shutdown():
                    results.close()
        except TerminatedWorkerError as error:
            raise DeadWorkerError(
                "a worker process was killed (out of memory?); run again, perhaps with fewer --workers"
            ) from error
        finally:
            _end_workers()


@contextmanager
def workers_started(workers: int, module: str) -> Iterator[None]:
    """Start the processes of a `LocalEngine` of as many workers now, and go on while they import a module.

    The engine takes them over if it is run in here with at least as many tasks. They are ended at the end. Raises
    UserError where no process can be started.
    """
    parallel = _parallel(workers, pre_dispatch="all")
    try:
        with _silent_processes(), _signals_deferred() as received:
            imported = parallel(joblib.delayed(_import)(module) for _ in range(workers))
    except OSError as error:
        _end_workers()
        raise UserError(f"cannot start {workers} worker processes: {error.strerror}; give fewer --workers") from error
    assert isinstance(imported, Generator)
    try:
        if received:
            signal.raise_signal(received[0])
        yield
    finally:
        with _silent_shutdown():
            imported.close()
        _end_workers()


def _parallel(workers: int, *, pre_dispatch: int | str) -> joblib.Parallel:
    """Return what runs tasks in worker processes; all that it returns for as many workers share these."""
    return joblib.Parallel(
        n_jobs=workers,
        return_as="generator_unordered",
        pre_dispatch=pre_dispatch,
        batch_size=1,
        initializer=_end_with,
        initargs=(os.getpid(),),
    )


def _end_with(parent: int) -> None:
    """End this process soon after its parent, which may be killed without a chance to end it."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _import(module: str) -> None:
    importlib.import_module(module)


def _end_workers() -> None:
    """End the workers. `get_reusable_executor` would make new semaphores where there are none to end."""
    executor = reusable_executor._executor
    if executor is not None:
        with _silent_shutdown():
            executor.shutdown(wait=True, kill_workers=True)


def how_it_ends(function: Callable[[Task], object], task: Task) -> str | None:
    """Run a task in a process of its own; return how that process died, such as `SIGSEGV`, or None if it did not.

    A task that runs out of memory counts as a death, one that raises anything else does not, nor does a signal with
    which people and schedulers end processes.
    """
    process = get_context("loky").Process(target=_run_alone, args=(function, task))
    with _silent_processes(), _signals_deferred() as received:
        process.start()
    try:
        if received:
            signal.raise_signal(received[0])
        process.join()
    finally:
        if process.is_alive() and process.pid is not None:
            os.kill(process.pid, signal.SIGKILL)
        process.join()
    code = process.exitcode or 0
    if code in (0, *(-number for number in _ENDS_BY_REQUEST)):
        return None
    if code == _OUT_OF_MEMORY:
        return "out of memory"
    return signal.Signals(-code).name if -code in set(signal.Signals) else f"exit code {code}"


def _run_alone(function: Callable[[Task], object], task: Task) -> None:
    try:
        function(task)
    except MemoryError:
        os._exit(_OUT_OF_MEMORY)
    except Exception:  # noqa: BLE001 - the caller meets it when it runs the task itself
        os._exit(0)


@contextmanager
def _signals_deferred() -> Iterator[list[int]]:
    """Start worker processes that ignore Ctrl-C and hang-ups, and yield the list of the signals that arrive meanwhile.

    The terminal sends them to the whole process group, where every worker would print a traceback or die; instead the
    main process ends the workers. Interruptions that arrive while workers start are recorded for the caller to raise
    afterwards, because a pool that has only half started cannot be ended.
    """
    received: list[int] = []
    is_main = threading.current_thread() is threading.main_thread()  # Python runs signal handlers in no other thread
    numbers = interruptions() if is_main else []
    before = {number: signal.signal(number, lambda number, _: received.append(number)) for number in numbers}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        for tracker in (mp_resource_tracker, resource_tracker):
            tracker.ensure_running()  # first, because it unblocks SIGINT when it starts its process
        # Processes inherit the mask, but not handlers.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
        yield received
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _silent_shutdown() -> Iterator[None]:
    """Silence what an early end prints about tasks that are given up.

    joblib warns about them. loky's thread, after it has killed the workers, raises KeyError for tasks that it was about
    to hand out.
    """
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
def _silent_processes() -> Iterator[None]:
    """Start worker processes that print nothing on stderr when they die, and loky's resource tracker without warnings.

    The tracker is a process that removes what killed workers leave behind, and would warn about it after the one line
    of our error. Workers would print a traceback when a library crashes; PYTHONFAULTHANDLER=1 still asks for it. Both
    are told by the environment.
    """
    quiet = "ignore::UserWarning:joblib.externals.loky.backend.resource_tracker"
    before = {name: os.environ.get(name) for name in ("PYTHONWARNINGS", "PYTHONFAULTHANDLER")}
    os.environ["PYTHONWARNINGS"] = ",".join(filter(None, (before["PYTHONWARNINGS"], quiet)))
    os.environ.setdefault("PYTHONFAULTHANDLER", "")
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def local_engine(workers: int | None) -> LocalEngine:
    """Return an engine with `workers` processes; None means one for each core that this process may use.

    Raises UserError for less than one worker.
    """
    if workers is not None and workers < 1:
        raise UserError(f"--workers {workers}: must be at least 1")
    return LocalEngine(workers or int(joblib.cpu_count()))
