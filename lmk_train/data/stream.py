"""Picks to uint8 batches on the training device: read by offset and decoded by threads, a few batches ahead."""

import os
import time
import zlib
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow.compute as pc
import simplejpeg
import torch

from lmk_data.dataset import ShardedDataset
from lmk_data.errors import DatasetError, StorageError
from lmk_train.config.training import Cache
from lmk_train.data.cache import ShardFiles
from lmk_train.data.order import window_shards
from lmk_train.runtime.world import Rows

_MAX_DEFAULT_WORKERS, _FETCHING_WORKERS = 8, 64
_BATCHES_AHEAD = 3
_SPARSE = 0.25  # of a shard's bytes: where a view has less than this, single pictures are read or fetched


@dataclass(frozen=True, slots=True)
class Batch:
    """One batch on the training device.

    `pixels` uint8 [B, H, W, 3], RGB, valid until the next batch is asked for (of a reader of features, those: float32
    [B, D]); `labels` int64 [B]; `picks` int64 [B], what was picked (on the host); `picks % N` are the samples' rows in
    the index.
    """

    pixels: torch.Tensor
    labels: torch.Tensor
    picks: Rows


class Reader(Protocol):
    """What a stream reads: N samples of one split, each an array of `shape` and `dtype`; safe for several threads."""

    split: str
    labels: Rows
    shard_of_row: "np.ndarray[Any, np.dtype[np.int32]]"
    shape: tuple[int, ...]
    dtype: "np.dtype[Any]"

    def __len__(self) -> int: ...

    @property
    def default_workers(self) -> int:
        """Threads that read this split well."""

    def keys(self, rows: Rows | None = None) -> "np.ndarray[tuple[int], np.dtype[np.object_]]":
        """Keys of the samples of these rows, or of all in row order."""

    def expect(self, picks: Rows) -> None:
        """Say what will be read, in order."""

    def decode(self, rows: Rows, out: "np.ndarray[Any, np.dtype[Any]]") -> None:
        """Put the samples of these rows into `out`, [len(rows), *shape]."""

    def close(self) -> None:
        """Close what reading opened."""


class _Record(NamedTuple):
    """Where the JPEG of a sample lies, and its checksum."""

    shard: int
    offset: int
    num_bytes: int
    crc32: int


class SplitReader:
    """Random access to the decoded samples of one split; safe to use from several threads."""

    def __init__(self, dataset: ShardedDataset, split: str, cache: Cache) -> None:
        """Load the columns that reading needs (36 bytes a sample); `cache` is for a dataset behind a URL.

        Raises DatasetError if the index points to a shard or a class that the dataset does not have.
        """
        table = dataset.index_table(split, ["label", "shard", "jpg_offset", "jpg_size", "jpg_crc32"])
        shards = table["shard"].combine_chunks()
        self.dataset, self.split = dataset, split
        self.size = dataset.recipe.size
        self.shape: tuple[int, ...] = (self.size, self.size, 3)
        self.dtype: np.dtype[Any] = np.dtype(np.uint8)
        self.shard_names: list[str] = shards.dictionary.to_pylist()
        self.shard_of_row = np.asarray(shards.indices.to_numpy(zero_copy_only=False), dtype=np.int32)
        self.labels = table["label"].to_numpy().astype(np.int64)
        self._offsets = table["jpg_offset"].to_numpy()
        self._sizes = table["jpg_size"].to_numpy()
        self._checksums = table["jpg_crc32"].to_numpy()
        if len(self.labels) and not 0 <= pc.min(table["label"]).as_py() <= int(self.labels.max()) < dataset.num_classes:
            raise DatasetError(
                f"{dataset.location}: a label of the {split} index is outside 0..{dataset.num_classes - 1}"
            )
        self._files = ShardFiles(dataset, cache)
        self._sparse = self._sparse_shards()
        self._fetched_singly = set() if dataset.is_local else self._sparse

    def __len__(self) -> int:
        return len(self.labels)

    def keys(self, rows: Rows | None = None) -> "np.ndarray[tuple[int], np.dtype[np.object_]]":
        """Keys of the samples of these rows, or of all in row order."""
        column = self.dataset.index_table(self.split, ["key"])["key"]
        return np.asarray((column if rows is None else column.take(rows)).to_numpy(), dtype=object)

    def expect(self, picks: Rows) -> None:
        """Say what will be read, in order, so that shards are read or fetched ahead."""
        shards = self.shard_of_row[picks % max(1, len(self))]
        first = np.full(len(self.shard_names), len(picks))
        first[shards[::-1]] = np.arange(len(picks))[::-1]
        order = np.argsort(first)[: np.count_nonzero(first < len(picks))].tolist()
        names = [self.shard_names[shard] for shard in order if shard not in self._sparse]
        self._files.expect(names, window_shards(len(self), len(self.shard_names)))

    def read(self, rows: Rows) -> Iterator[bytes]:
        """The JPEGs of these rows, one after the other; one is short if the shard ends within it."""
        return map(self._read, self._records(rows))

    def decode(self, rows: Rows, out: "np.ndarray[Any, np.dtype[np.uint8]]") -> None:
        """Decode the samples of these rows into `out`, uint8 [len(rows), H, W, 3].

        Raises DatasetError that names shard, key and offset if a record is short, damaged or of another size, and
        StorageError that names them if it cannot be read.
        """
        for number, record in enumerate(self._records(rows)):
            try:
                self._decode(record, out[number])
            except ValueError as error:
                hint = "run `lmk-shard verify`"
                raise DatasetError(f"{self._place(int(rows[number]))}: {error}; {hint}") from error
            except OSError as error:
                why = f"cannot be read: {error.strerror or error}; is the storage there? run it again to go on"
                raise StorageError(f"{self._place(int(rows[number]))}: {why}") from error

    @property
    def default_workers(self) -> int:
        """Threads that read this split well: one per core of this process's, or many where pictures are fetched singly.

        The cores of a machine are shared among its processes that torchrun started.
        """
        if self._fetched_singly:
            return _FETCHING_WORKERS
        cores = len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        return max(1, min(cores, _MAX_DEFAULT_WORKERS))

    def close(self) -> None:
        """Close the shards that reading opened."""
        self._files.close()

    def _records(self, rows: Rows) -> Iterator[_Record]:
        columns = (column[rows].tolist() for column in (self.shard_of_row, self._offsets, self._sizes, self._checksums))
        return map(_Record, *columns)

    def _decode(self, record: _Record, out: "np.ndarray[Any, np.dtype[np.uint8]]") -> None:
        """Decode one picture into `out`; where a fetched shard is damaged, it is fetched once more."""
        try:
            _decode_record(self._read(record), record, out)
        except ValueError:
            if record.shard in self._fetched_singly or not self._files.fetch_again(self.shard_names[record.shard]):
                raise
            _decode_record(self._read(record), record, out)

    def _read(self, record: _Record) -> bytes:
        name = self.shard_names[record.shard]
        if record.shard not in self._fetched_singly:
            return self._files.open(name).read(record.offset, record.num_bytes)
        return self.dataset.read_range(name, record.offset, record.num_bytes)

    def _place(self, row: int) -> str:
        shard = int(self.shard_of_row[row])
        location = self.dataset.shards_folder.location if shard in self._fetched_singly else self._files.location
        key, offset = self.keys(np.array([row]))[0], self._offsets[row]
        return f"{location(self.shard_names[shard])}: sample {key} at offset {offset}"

    def _sparse_shards(self) -> set[int]:
        """Which shards hold so little of this split that reading or fetching them whole is not worth it."""
        wanted = np.bincount(self.shard_of_row, weights=self._sizes, minlength=len(self.shard_names))
        num_bytes = {shard["name"]: shard["num_bytes"] for shard in self.dataset.shards(self.split)}
        whole = np.array([num_bytes[name] for name in self.shard_names])
        return set(np.flatnonzero(wanted < _SPARSE * whole).tolist())


def _decode_record(data: bytes, record: _Record, out: "np.ndarray[Any, np.dtype[np.uint8]]") -> None:
    """Decode one picture into `out`, uint8 [H, W, 3]; ValueError if it is not the one that was published."""
    if len(data) != record.num_bytes:
        raise ValueError("the shard ends within it")
    if zlib.crc32(data) != record.crc32:
        raise ValueError("damaged: its checksum is another")
    shape = simplejpeg.decode_jpeg(data, "RGB", buffer=out).shape  # a larger one does not fit
    if shape != out.shape:
        raise ValueError(f"{shape[1]}x{shape[0]} pixels instead of {out.shape[1]}x{out.shape[0]}")


class BatchStream:
    """Batches of given rows in the given order, decoded ahead by threads.

    Decoding releases the interpreter's lock, so threads run beside the training step, and each batch is decoded
    into one buffer that is handed over as it is. `wait_seconds` adds up how long the consumer waited for data,
    `copy_seconds` how long copies to a CUDA device took, as the device's own clock has it.
    """

    def __init__(self, reader: Reader, device: torch.device, batch_size: int, workers: int | None = None) -> None:
        self._reader, self._device = reader, device
        self._workers = workers or reader.default_workers
        self.wait_seconds = self.copy_seconds = 0.0
        count = _BATCHES_AHEAD + 2
        # NumPy asks for huge pages, into which decoding is 4 % faster.
        self._slots = [torch.from_numpy(np.empty((batch_size, *reader.shape), reader.dtype)) for _ in range(count)]
        if device.type == "cuda":
            self._slots = [slot.pin_memory() for slot in self._slots]
        self._copies: list[tuple[torch.cuda.Event, torch.cuda.Event] | None] = [None] * count

    def __call__(self, batches: Iterable[Rows]) -> Generator[Batch, None, None]:
        """Yield one `Batch` per array of picks (each at most batch_size long); closing it stops the threads."""
        pool = ThreadPoolExecutor(self._workers, thread_name_prefix="decode")
        pending: deque[tuple[int, Rows, list[Future[None]]]] = deque()
        remaining = enumerate(batches)

        def submit() -> None:
            for number, picks in remaining:
                slot = number % len(self._slots)
                pending.append((slot, picks, self._decode(pool, slot, picks)))
                return

        try:
            started = time.perf_counter()  # the first batches take as long as drawing an order does
            for _ in range(_BATCHES_AHEAD):
                submit()
            self.wait_seconds += time.perf_counter() - started
            while pending:
                slot, picks, decoded = pending.popleft()
                started = time.perf_counter()
                for future in decoded:
                    future.result()
                self.wait_seconds += time.perf_counter() - started
                submit()
                yield self._hand_over(slot, picks)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _decode(self, pool: ThreadPoolExecutor, slot: int, picks: Rows) -> list[Future[None]]:
        """Decode a batch in as many parts as there are threads, so that the first batch is soon there."""
        if (copy := self._copies[slot]) is not None:
            started, ended = copy
            ended.synchronize()  # recorded several steps ago: the copy is over but for a stalled device
            self.copy_seconds += started.elapsed_time(ended) / 1000
            self._copies[slot] = None
        rows = picks % max(1, len(self._reader))
        buffer = self._slots[slot].numpy()

        def decode_part(start: int, stop: int) -> None:
            self._reader.decode(rows[start:stop], buffer[start:stop])

        parts = min(self._workers, max(1, len(rows)))
        bounds = [len(rows) * part // parts for part in range(parts + 1)]
        return [pool.submit(decode_part, bounds[part], bounds[part + 1]) for part in range(parts)]

    def _hand_over(self, slot: int, picks: Rows) -> Batch:
        pixels = self._slots[slot][: len(picks)]
        labels = torch.from_numpy(self._reader.labels[picks % max(1, len(self._reader))])
        if self._device.type == "cuda":
            events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]  # type: ignore[no-untyped-call]
            events[0].record()
            pixels = pixels.to(self._device, non_blocking=True)
            labels = labels.pin_memory().to(self._device, non_blocking=True)
            events[1].record()
            self._copies[slot] = (events[0], events[1])
        return Batch(pixels, labels, picks)
