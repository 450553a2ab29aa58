"""Picks to uint8 batches on the training device: read by offset and decoded by threads, a few batches ahead."""

import os
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow.compute as pc
import simplejpeg
import torch

from lmk_data.dataset import ShardedDataset
from lmk_data.errors import DatasetError
from lmk_train.cache import Cache, ShardFiles
from lmk_train.order import Rows, window_shards

_MAX_DEFAULT_WORKERS, _FETCHING_WORKERS = 8, 64
_BATCHES_AHEAD = 3
_SPARSE = 0.25  # of a remote shard's bytes: where a view has less than this, single pictures are fetched


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


class SplitReader:
    """Random access to the decoded samples of one split; safe to use from several threads."""

    def __init__(self, dataset: ShardedDataset, split: str, cache: Cache) -> None:
        """Load the columns that reading needs (32 bytes a sample); `cache` is for a dataset behind a URL.

        Raises DatasetError if the index points to a shard or a class that the dataset does not have.
        """
        table = dataset.index_table(split, ["label", "shard", "jpg_offset", "jpg_size"])
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
        unknown = set(self.shard_names) - {shard["name"] for shard in dataset.shards(split)}
        if unknown:
            raise DatasetError(
                f"{dataset.location}: the {split} index names {min(unknown)!r}, which the manifest does not"
            )
        if len(self.labels) and not 0 <= pc.min(table["label"]).as_py() <= int(self.labels.max()) < dataset.num_classes:
            raise DatasetError(
                f"{dataset.location}: a label of the {split} index is outside 0..{dataset.num_classes - 1}"
            )
        self._files = ShardFiles(dataset, cache)
        self._sparse = self._sparse_shards()

    def __len__(self) -> int:
        return len(self.labels)

    def keys(self, rows: Rows | None = None) -> "np.ndarray[tuple[int], np.dtype[np.object_]]":
        """Keys of the samples of these rows, or of all in row order."""
        column = self.dataset.index_table(self.split, ["key"])["key"]
        return np.asarray((column if rows is None else column.take(rows)).to_numpy(), dtype=object)

    def expect(self, picks: Rows) -> None:
        """Say what will be read, in order, so that remote shards are fetched ahead."""
        if self.dataset.is_local:
            return
        shards = self.shard_of_row[picks % max(1, len(self))]
        shards, first = np.unique(shards, return_index=True)
        names = [self.shard_names[shard] for shard in shards[np.argsort(first)] if shard not in self._sparse]
        self._files.expect(names, window_shards(len(self), len(self.shard_names)))

    def read(self, rows: Rows) -> Iterator[bytes]:
        """The JPEGs of these rows, one after the other; one is short if the shard ends within it."""
        shards, offsets, sizes = self.shard_of_row[rows].tolist(), self._offsets[rows], self._sizes[rows]
        for shard, offset, num_bytes in zip(shards, offsets.tolist(), sizes.tolist(), strict=True):
            name = self.shard_names[shard]
            if shard in self._sparse:
                yield self.dataset.read_bytes(name, offset, num_bytes)
            else:
                yield self._files.open(name).read(offset, num_bytes)

    def decode(self, rows: Rows, out: "np.ndarray[Any, np.dtype[np.uint8]]") -> None:
        """Decode the samples of these rows into `out`, uint8 [len(rows), H, W, 3].

        Raises DatasetError that names shard, key and offset if a record is short, corrupt or of another size.
        """
        whole = out.shape[1:]
        for number, (data, num_bytes) in enumerate(zip(self.read(rows), self._sizes[rows].tolist(), strict=True)):
            try:
                if len(data) != num_bytes:
                    raise ValueError("the shard ends within it")
                shape = simplejpeg.decode_jpeg(data, "RGB", buffer=out[number]).shape  # a larger one does not fit
                if shape != whole:
                    raise ValueError(f"{shape[1]}x{shape[0]} pixels instead of {self.size}x{self.size}")
            except ValueError as error:
                raise self._unreadable(int(rows[number]), error) from error

    @property
    def default_workers(self) -> int:
        """Threads that read this split well: one per core, or many where pictures are fetched one by one."""
        return _FETCHING_WORKERS if self._sparse else min(os.cpu_count() or 1, _MAX_DEFAULT_WORKERS)

    def close(self) -> None:
        """Close the shards that reading opened."""
        self._files.close()

    def _unreadable(self, row: int, why: ValueError) -> DatasetError:
        where = self.dataset.shards_folder.location(self.shard_names[self.shard_of_row[row]])
        key, offset = self.keys(np.array([row]))[0], self._offsets[row]
        return DatasetError(f"{where}: sample {key} at offset {offset}: {why}; run `lmk-shard verify`")

    def _sparse_shards(self) -> set[int]:
        """Which shards are behind a URL and hold so little of this split that fetching them whole is not worth it."""
        if self.dataset.is_local:
            return set()
        wanted = np.bincount(self.shard_of_row, weights=self._sizes, minlength=len(self.shard_names))
        whole = np.array([self.dataset.shard_files[name]["num_bytes"] for name in self.shard_names])
        return set(np.flatnonzero(wanted < _SPARSE * whole).tolist())


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
            for _ in range(_BATCHES_AHEAD):
                submit()
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
