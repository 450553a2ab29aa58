"""What decodes the batches of a stream: threads of this process, or processes that share memory with it.

Threads have nothing to start or to end, and read what only this process can reach, such as an object store. But each
picture takes the interpreter's lock a few times, for which a training step that mostly launches work on a device has
to wait each time. Processes leave the lock to the step.
"""

import itertools
import json
import mmap
import os
import subprocess
import sys
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Pipe
from typing import Any, Protocol, Self

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from lmk_data.errors import TrainingError
from lmk_train.data.decode_process import DONE, Work
from lmk_train.data.reader import Reader, SplitReader
from lmk_train.runtime.transfer import pin

_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv.pop(1)); from lmk_train.data.decode_process import serve; "
)
_START += "serve(*map(int, sys.argv[1:]))"


class Decoders(Protocol):
    """Decode batches into `memory`, [batches, B, *shape], in the order in which they are begun.

    As a context manager it starts what decodes, and ends at its end whatever has been begun.
    """

    memory: NDArray[Any]

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def begin(self, batch: int, rows: NDArray[np.int64]) -> None:
        """Begin to decode these rows into `memory[batch]`; at most B."""

    def finish(self) -> None:
        """Wait for the batch that was begun first. Raises what `Reader.decode` raises."""


def make_decoders(
    reader: Reader, num_batches: int, batch_size: int, workers: int, *, processes: bool, pinned: bool
) -> Decoders:
    """Return so many decoders, with memory for `num_batches`; threads if other processes cannot read the samples.

    `pinned` memory is for copies to a CUDA device.

    Raises MemoryError, OSError, OverflowError or ValueError if there is not enough memory.
    """
    shape = (num_batches, batch_size, *reader.shape)
    if processes and isinstance(reader, SplitReader) and reader.is_local:
        decoders = DecodeProcesses(reader, shape, workers)
        if not pinned or decoders.pin():
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

    def __exit__(self, *_: object) -> None:
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
        self._descriptor = os.memfd_create("batches")  # unlike /dev/shm, not limited to 64 MB in a container
        weakref.finalize(self, os.close, self._descriptor)
        os.ftruncate(self._descriptor, int(np.prod(shape, dtype=object)))
        shared = mmap.mmap(self._descriptor, 0)
        self.memory: NDArray[Any] = np.frombuffer(shared, np.uint8).reshape(shape)
        self._processes: list[_Process] = []
        self._end: Callable[[], object] = lambda: None
        self._begun: deque[list[tuple[_Process, NDArray[np.int64], NDArray[Any]]]] = deque()

    def pin(self) -> bool:
        """Pin the memory, and return whether that was possible."""
        unpin = pin(self.memory)
        if unpin is not None:
            weakref.finalize(self, unpin).atexit = False
        return unpin is not None

    def __enter__(self) -> Self:
        if not self._processes:
            work = msgspec.json.encode(Work(self._reader.shard_paths(), self.memory.shape))
            self._end = weakref.finalize(self, _end, self._processes)
            try:
                for _ in range(self._workers):
                    self._processes.append(_Process(self._descriptor))
            except OSError as error:
                why = f"no process can be started that decodes pictures ({error.strerror})"
                raise TrainingError(f"{why}; give fewer --workers") from error
            for process in self._processes:
                process.send(work)
        return self

    def __exit__(self, *_: object) -> None:
        if self._begun:  # stopped within a pass: they may be decoding
            self._end()
            self._processes, self._begun = [], deque()

    def begin(self, batch: int, rows: NDArray[np.int64]) -> None:
        records, parts = self._reader.records(rows), []
        for process, (start, stop) in zip(self._processes, _parts(len(rows), self._workers), strict=False):
            process.send(np.concatenate([[batch, start], records[start:stop].ravel()]).tobytes())
            parts.append((process, rows[start:stop], self.memory[batch, start:stop]))
        self._begun.append(parts)

    def finish(self) -> None:
        """Wait for the batch that was begun first.

        Raises what `Reader.decode` raises, and TrainingError if a process was killed.
        """
        for process, rows, out in self._begun[0]:
            if process.receive() != DONE:
                self._reader.decode(rows, out)  # raises an error that says where
        self._begun.popleft()


class _Process:
    """A running `lmk_train.data.decode_process`, and this end of its connection."""

    def __init__(self, memory_descriptor: int) -> None:
        self._connection, theirs = Pipe()
        descriptors = (theirs.fileno(), memory_descriptor)
        paths = json.dumps([os.path.abspath(path) for path in sys.path])
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-c", _START, paths, *map(str, descriptors)],
                pass_fds=descriptors,  # may be 0 to 2 if those were closed; hence no other standard streams
                process_group=0,  # Ctrl-C is for the process that trains
            )

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
        how = f"signal {-code}" if code < 0 else f"code {code}"
        return TrainingError(
            f"a process that decodes pictures ended with {how}, for instance for want of memory; run it again with "
            "--resume, or with fewer --workers"
        )


def _end(processes: Sequence[_Process]) -> None:
    for process in processes:
        process.end()
    for process in processes:
        process.wait()


def _parts(num_rows: int, workers: int) -> list[tuple[int, int]]:
    """Divide a batch into as many parts as there are workers, so that the first batch arrives soon."""
    parts = min(workers, max(1, num_rows))
    bounds = [num_rows * part // parts for part in range(parts + 1)]
    return list(itertools.pairwise(bounds))
