"""The engine of several machines: a Dask cluster, refused unless every worker would write the same bytes."""

import asyncio
import hashlib
import logging
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from lmk_data import __version__
from lmk_data.dataset.format import Encoder, Rejection
from lmk_data.errors import BuildError, DeadWorkerError, LmkError, UserError, missing_extra
from lmk_data.resize import encoder
from lmk_data.sources.archives import Place
from lmk_data.sources.stores import Store
from lmk_data.system.storage import PROBE_PREFIX, Folder

if TYPE_CHECKING:
    from distributed import Client

Task = TypeVar("Task")
Result = TypeVar("Result")
_CONNECT_SECONDS, _WORKERS_SECONDS, _ANSWER_SECONDS = 10, 60, 30


@dataclass(frozen=True)
class DaskEngine:
    """The workers of a Dask cluster. A task whose worker dies runs again on another worker."""

    client: "Client"

    @property
    def workers(self) -> int:
        """The number of threads of all workers: how many tasks run at once."""
        return int(sum(self.client.nthreads().values()))

    def run(self, function: Callable[[Task], Result], tasks: Sequence[Task]) -> Iterator[Result]:
        """Yield results in the order in which they are ready. Leaving the iterator early cancels the rest.

        Raises DeadWorkerError when one task kills worker after worker, BuildError when the scheduler is lost, when
        there is no worker, and when one that joined later would encode other bytes.
        """
        from distributed import KilledWorker, as_completed
        from distributed.client import FutureCancelledError
        from distributed.comm.core import CommClosedError

        try:
            self.client.wait_for_workers(1, timeout=_WORKERS_SECONDS)  # a picture may have ended them all
        except TimeoutError as error:
            raise BuildError("the Dask cluster has no worker left; start some and run again to resume") from error
        futures = self.client.map(
            partial(_run_if_same_encoder, function, encoder()), tasks, pure=False, batch_size=1_000
        )
        try:
            for future in as_completed(futures, loop=self.client.loop):
                yield future.result()
                future.release()
        except KilledWorker as error:
            raise DeadWorkerError(
                "worker after worker was killed on one shard (out of memory?); run again, with more memory for each"
            ) from error
        except (FutureCancelledError, CommClosedError) as error:
            raise BuildError("the connection to the Dask scheduler was lost; run again to resume") from error
        finally:
            self.client.cancel(futures)


@dataclass(frozen=True, slots=True)
class Probe:
    """What every worker must read before a build: the file `marker` in the output folder, and some images."""

    out: Folder
    marker: str
    images: tuple[tuple[Store, str, Place], ...]


@contextmanager
def connect(address: str) -> Iterator[DaskEngine]:
    """Connect to a scheduler such as `tcp://host:8786` and wait up to 60 s for its first worker.

    Raises UserError if `distributed` is not installed, no scheduler answers within 10 s, or no worker comes.
    """
    try:
        from distributed import Client
    except ImportError as error:
        raise missing_extra("--scheduler", "dask", "distributed is missing") from error
    _check_address(address)
    try:
        client = Client(address, timeout=_CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"--scheduler {address}: no Dask scheduler answers there ({error})") from error
    with _silent("distributed", "distributed.client"), client:
        try:
            client.wait_for_workers(1, timeout=_WORKERS_SECONDS)
        except TimeoutError as error:
            raise UserError(f"--scheduler {address}: no worker came within {_WORKERS_SECONDS} s; start some") from error
        yield DaskEngine(client)


def check_workers(engine: DaskEngine, out: Folder, images: Sequence[tuple[Store, str, Place]]) -> None:
    """Check that every worker has the lmk version, encoder, output folder and images of this process.

    Raises UserError that names a worker and what differs there, or why the worker could not answer.
    """
    probe = Probe(out, f"{PROBE_PREFIX}{secrets.token_hex(8)}", tuple(images))
    with out.atomic(probe.marker) as file:
        file.write(probe.marker.encode())
    try:
        here = process_state(probe)
        for worker, there in _worker_states(engine.client, probe).items():
            if isinstance(there, BaseException):
                raise UserError(
                    f"--scheduler: worker {worker} cannot show what it has: {_error_text(there)}; "
                    "install the same lmk and the storage's package there"
                ) from there
            for what, value in here.items():
                if there.get(what) != value:
                    raise UserError(
                        f"--scheduler: worker {worker} differs in {what}: {there.get(what)} there, {value} here; "
                        "install the same packages and give it the same storage"
                    )
    finally:
        out.remove(probe.marker)
        out.sweep()


def process_state(probe: Probe) -> dict[str, Any]:
    """Return what this process would build with and what it reads from the storage, by name of the check."""
    seen: dict[str, Any] = {"lmk": __version__, "the encoder": _encoder_text(encoder())}
    try:
        seen["a file just written to --out"] = probe.out.read(probe.marker).decode()
    except OSError as error:
        seen["a file just written to --out"] = f"{error.strerror or error}"
    for store, source, place in probe.images:
        try:
            data = store.read(source, place)
            shown = data.reason if isinstance(data, Rejection) else hashlib.sha256(data).hexdigest()
        except LmkError as error:
            shown = str(error)
        seen[f"the image {store.location}/{source}"] = shown
    return seen


def _check_address(address: str) -> None:
    """Raise UserError for an invalid address before a client is made, because Dask logs when it drops such a client."""
    from distributed import Security
    from distributed.comm.addressing import get_address_host_port, parse_address

    try:
        get_address_host_port(address)
    except ValueError as error:
        raise UserError(f"--scheduler {address}: {error}; give an address such as tcp://host:8786") from error
    if parse_address(address)[0] in ("tls", "wss") and not Security().get_connection_args("client").get("ssl_context"):
        raise UserError(
            f"--scheduler {address}: needs certificates; name them in Dask's configuration (distributed.comm)"
        )


@contextmanager
def _silent(*loggers: str) -> Iterator[None]:
    """Silence loggers, because the failure that they report is already in the one line of our error."""
    levels = {logger: logging.getLogger(logger).level for logger in loggers}
    for logger in loggers:
        logging.getLogger(logger).setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in levels.items():
            logging.getLogger(logger).setLevel(level)


def _worker_states(client: "Client", probe: Probe) -> dict[str, Any]:
    """Return the `process_state` of every worker by address, or the exception of one that fails or takes over 30 s."""
    workers = list(client.nthreads())

    def ask(worker: str) -> Any:
        limits: dict[str, Any] = {"asynchronous": True, "callback_timeout": _ANSWER_SECONDS}
        return client.run(process_state, probe, workers=[worker], on_error="return", **limits)

    async def ask_all() -> list[Any]:
        return await asyncio.gather(*map(ask, workers), return_exceptions=True)

    return {
        worker: answer[worker] if isinstance(answer, dict) else answer
        for worker, answer in zip(workers, client.sync(ask_all), strict=True)
    }


def _error_text(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return f"it did not answer within {_ANSWER_SECONDS} s"
    return f"{type(error).__name__}: {error}"


def _run_if_same_encoder(function: Callable[[Task], Result], expected: Encoder, task: Task) -> Result:
    """Run a task. Raise BuildError if this worker has another encoder: it may have joined after the check."""
    if encoder() != expected:
        raise BuildError(
            f"a worker came with another encoder: {_encoder_text(encoder())} there, {_encoder_text(expected)} here"
        )
    return function(task)


def _encoder_text(used: Encoder) -> str:
    turbo = f"libjpeg-turbo {used.libjpeg_turbo}"
    codecs = ", ".join(used.codecs)
    libraries = f"{used.distribution} {used.version} with {turbo} and {codecs}, simplejpeg {used.simplejpeg}"
    return f"{libraries}, revision {used.revision}"
