"""What decodes the batches of a stream: threads of this process, or processes that share memory with it.

Threads have nothing to start or to end, and read what only this process can reach, such as an object store. But each
picture takes the interpreter's lock a few times, for which a training step that mostly launches work on a device has
to wait each time. Processes leave the lock to the step.
"""

import json
import mmap
import os
import signal
import subprocess
import sys
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import pairwise
from multiprocessing.connection import Pipe
from typing import Any, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray

from lmk_data.errors import TrainingError
from lmk_train.data.decode_process import DONE
from lmk_train.data.reader import Reader, SplitReader
from lmk_train.runtime.transfer import pin

_START = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
try:
    from lmk_train.data.decode_process import serve
except (ImportError, MemoryError, OSError):
    sys.exit(1)
serve(int(sys.argv[2]), int(sys.argv[3]))
"""
_ONE_THREAD = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Decoders(Protocol):
    """Decode batches into `memory`, [batches, B, *shape], in the order in which they are begun.

    As a context manager, one pass at a time, it starts what decodes, and ends whatever has been begun.
    """

    memory: NDArray[Any]

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None: ...

    def begin(self, batch: int, rows: NDArray[np.int64]) -> None:
        """Begin to decode these rows into `memory[batch]`; at most B."""

    def finish(self) -> None:
        """Wait for the batch that was begun first. Raises what `Reader.decode` raises."""


def make_decoders(
    reader: Reader, num_batches: int, batch_size: int, workers: int, device: torch.device, *, processes: bool
) -> Decoders:
    """Return decoders; threads if other processes cannot read the samples, or cannot have their memory pinned.

    Args:
        reader: of the samples.
        num_batches: batches that may be in memory at once.
        batch_size: samples of a batch.
        workers: how many decoders.
        device: to which batches are copied; if it is CUDA, their memory is pinned.
        processes: whether processes are wanted.

    Raises MemoryError, OSError, OverflowError or ValueError if there is not enough memory.
    """
    shape, pinned = (num_batches, batch_size, *reader.shape), device.type == "cuda"
    if processes and isinstance(reader, SplitReader) and reader.is_local and sys.executable:
        decoders = DecodeProcesses(reader, shape, workers)
        if not pinned or decoders.pin(device):
            return decoders
    return DecodeThreads(reader, shape, workers, pinned=pinned)


class DecodeThreads:
    """Threads of this process."""

    def __init__(self, reader: Reader, shape: tuple[int, ...], workers: int, *, pinned: bool = False) -> None:
        self._reader, self._workers = reader, workers
        # NumPy asks for huge pages, which makes decoding 4 % faster.
        memory: NDArray[Any] = np.empty(shape, reader.dtype)
        self.memory = torch.from_numpy(memory).pin_memory().numpy() if pinned else memory
        self._begun: deque[list[Future[None]]] = deque()

    def __enter__(self) -> Self:
        self._pool = ThreadPoolExecutor(self._workers, thread_name_prefix="decode")
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._begun.clear()

    def begin(self, batch: int, rows: NDArray[np.int64]) -> None:
        def decode(start: int, stop: int) -> None:
            self._reader.decode(rows[start:stop], self.memory[batch, start:stop])

        self._begun.append([self._pool.submit(decode, *part) for part in _parts(len(rows), self._workers)])

    def finish(self) -> None:
        for future in self._begun.popleft():
            future.result()


class DecodeProcesses:
    """Processes of their own, started when first needed and kept for later passes.

    They end when this object goes, and when this process ends, however it ends.
    """

    def __init__(self, reader: SplitReader, shape: tuple[int, ...], workers: int) -> None:
        self._reader, self._workers = reader, workers
        num_bytes = np.empty(shape, np.uint8).nbytes  # refuses what the machine does not have; a memory file does not
        self._descriptor = os.memfd_create("batches")  # unlike /dev/shm, not limited to 64 MB in a container
        weakref.finalize(self, os.close, self._descriptor)
        os.ftruncate(self._descriptor, num_bytes)
        shared = mmap.mmap(self._descriptor, 0)
        self.memory: NDArray[Any] = np.frombuffer(shared, np.uint8).reshape(shape)
        self._processes: list[_Process] = []
        self._end: Callable[[], object] = lambda: None
        self._begun: deque[list[tuple[_Process, NDArray[np.int64], NDArray[Any]]]] = deque()

    def pin(self, device: torch.device) -> bool:
        """Pin the memory for copies to a CUDA device, and return whether that was possible."""
        unpin = pin(self.memory, device)
        if unpin is not None:
            weakref.finalize(self, unpin).atexit = False
        return unpin is not None

    def __enter__(self) -> Self:
        if not all(process.is_alive() for process in self._processes):
            self._stop()
        if not self._processes:
            try:
                self._start()
            except BaseException:
                self._stop()
                raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._begun or kind not in (None, GeneratorExit):  # they may be decoding, or have answers that nobody took
            self._stop()

    def begin(self, batch: int, rows: NDArray[np.int64]) -> None:
        records, bounds = self._reader.records(rows), _parts(len(rows), self._workers)
        parts: list[tuple[_Process, NDArray[np.int64], NDArray[Any]]] = []
        self._begun.append(parts)
        for process, (start, stop) in zip(self._processes[: len(bounds)], bounds, strict=True):
            process.send(np.concatenate([[batch, start], records[start:stop].ravel()]).tobytes())
            parts.append((process, rows[start:stop], self.memory[batch, start:stop]))

    def finish(self) -> None:
        """Wait for the batch that was begun first.

        Raises what `Reader.decode` raises, and TrainingError if a process was killed.
        """
        for process, rows, out in self._begun[0]:
            if process.receive() != DONE:
                self._reader.decode(rows, out)  # raises an error that says where
        self._begun.popleft()

    def _start(self) -> None:
        work = json.dumps({"shards": self._reader.shard_paths(), "shape": self.memory.shape}).encode()
        started: list[_Process] = []
        self._processes, self._end = started, weakref.finalize(self, _end, started)
        try:
            with _signals_for_this_process():
                for _ in range(self._workers):
                    started.append(_Process(self._descriptor))
        except OSError as error:
            why = f"no process can be started that decodes pictures ({error.strerror})"
            raise TrainingError(f"{why}; give fewer --workers") from error
        for process in started:
            process.send(work)

    def _stop(self) -> None:
        self._processes = []
        self._begun.clear()
        self._end()


class _Process:
    """A running `lmk_train.data.decode_process`, and this end of its connection."""

    def __init__(self, memory_descriptor: int) -> None:
        self._connection, theirs = Pipe()
        descriptors = (theirs.fileno(), memory_descriptor)
        safe = "-I" if sys.flags.isolated else "-P"  # nothing of the current folder is imported
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603
                [sys.executable, safe, "-c", _START, json.dumps(_import_paths()), *map(str, descriptors)],
                pass_fds=descriptors,  # may be 0 to 2 if those were closed; hence no other standard streams
                process_group=0,  # Ctrl-C is for the process that trains
                env={**os.environ, **_ONE_THREAD},
            )

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def send(self, message: bytes) -> None:
        try:
            self._connection.send_bytes(message)
        except ConnectionError:
            raise self._death() from None

    def receive(self) -> bytes:
        try:
            return self._connection.recv_bytes()
        except (EOFError, ConnectionError):
            raise self._death() from None

    def end(self) -> None:
        """Close the connection, upon which the process ends, and stop what it is doing."""
        self._connection.close()
        self._process.kill()

    def wait(self) -> None:
        self._process.wait()

    def _death(self) -> TrainingError:
        code = self._process.wait()
        how = f"with code {code}" if code >= 0 else f"by signal {-code}"
        if code == -signal.SIGKILL:
            how += ", perhaps for want of memory"
        return TrainingError(
            f"a process that decodes pictures was ended {how}; run it again, a training with --resume, or give fewer "
            "--workers"
        )


def _end(processes: Sequence[_Process]) -> None:
    for process in processes:
        process.end()
    for process in processes:
        process.wait()


@contextmanager
def _signals_for_this_process() -> Iterator[None]:
    """Have the processes that are started in the block never see the signals that end a job.

    Schedulers and service managers send them to all processes of a job. What trains decides when to end.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _import_paths() -> list[str]:
    """Return `sys.path` for a process that may be in another folder one day."""
    paths = [path for path in sys.path if isinstance(path, str) and path]
    with suppress(OSError):  # the current folder was deleted
        return [path if path else os.getcwd() for path in sys.path if isinstance(path, str)]
    return paths


def _parts(num_rows: int, workers: int) -> list[tuple[int, int]]:
    """Divide a batch into as many parts as there are workers, so that the first batch arrives soon."""
    parts = min(workers, max(1, num_rows))
    return list(pairwise(num_rows * part // parts for part in range(parts + 1)))
