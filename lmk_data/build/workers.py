"""Start the worker processes of a build beside its plan: both first import libraries."""

import os
from contextlib import AbstractContextManager, nullcontext

from lmk_data.options import BuildOptions
from lmk_data.system.engine import local_engine, workers_started

_LEAST_BYTES = 64 << 10  # of a label table, for each worker: some shards for it to build, and seconds of work


def started_beside_the_plan(options: BuildOptions) -> AbstractContextManager[None]:
    """Start the workers that a build is going to need. A context manager: they are ended at the end.

    None are started for a small table, since one process may do all of its shards, nor where a local `--out` holds
    something, since the build may be complete. Such a build starts them itself, when it has a plan.
    """
    workers = local_engine(options.workers).workers
    is_local = options.scheduler is None and workers > 1
    if not is_local or _num_bytes(options.labels) < workers * _LEAST_BYTES or _holds_something(options.out):
        return nullcontext()
    return workers_started(workers, "lmk_data.build.shard")


def _num_bytes(path: str) -> int:
    """Return the size of a file on this machine, 0 if it is none."""
    try:
        return os.stat(path).st_size if os.path.isfile(path) else 0
    except (OSError, ValueError):
        return 0


def _holds_something(folder: str | os.PathLike[str]) -> bool:
    try:
        return bool(os.listdir(folder))
    except FileNotFoundError:
        return False
    except (OSError, ValueError):  # the build says what is wrong with it
        return True
