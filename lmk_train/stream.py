"""Index rows to uint8 batches on the training device: read by offset and decoded by threads, a few batches ahead."""

import os
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc
import simplejpeg
import torch

from lmk_data.dataset import ShardedDataset
from lmk_data.errors import DatasetError
from lmk_train.order import Rows

_MAX_DEFAULT_WORKERS = 8
_BATCHES_AHEAD = 3


@dataclass(frozen=True, slots=True)
class Batch:
    """One batch on the training device.

    `pixels` uint8 [B, H, W, 3], RGB, valid until the next batch is asked for; `labels` int64 [B]; `rows` int64 [B],
    the samples' rows in the index (on the host).
    """

    pixels: torch.Tensor
    labels: torch.Tensor
    rows: Rows


class SplitReader:
    """Random access to the decoded samples of one split; safe to use from several threads."""

    def __init__(self, dataset: ShardedDataset, split: str) -> None:
        """Load the columns that reading needs (25 bytes a sample).

        Raises DatasetError if the index points to a shard or a class that the dataset does not have.
        """
        table = dataset.index_table(split, ["label", "shard", "jpg_offset", "jpg_size"])
        shards = table["shard"].combine_chunks()
        self.dataset, self.split = dataset, split
        self.size = dataset.recipe.size
        self.shard_names: list[str] = shards.dictionary.to_pylist()
        self.shard_of_row = np.asarray(shards.indices.to_numpy(zero_copy_only=False), dtype=np.int32)
        self.labels = table["label"].to_numpy().astype(np.int64)
        self._offsets = table["jpg_offset"].to_numpy()
        self._sizes = table["jpg_size"].to_numpy()
        self._descriptors: dict[int, int] = {}
        self._lock = threading.Lock()
        unknown = set(self.shard_names) - {shard["name"] for shard in dataset.shards(split)}
        if unknown:
            raise DatasetError(
                f"{dataset.location}: the {split} index names {min(unknown)!r}, which the manifest does not"
            )
        if len(self.labels) and not 0 <= pc.min(table["label"]).as_py() <= int(self.labels.max()) < dataset.num_classes:
            raise DatasetError(
                f"{dataset.location}: a label of the {split} index is outside 0..{dataset.num_classes - 1}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def keys(self) -> "np.ndarray[tuple[int], np.dtype[np.object_]]":
        """Keys of all samples in row order."""
        return np.asarray(self.dataset.index_table(self.split, ["key"])["key"].to_numpy(), dtype=object)

    def decode_into(self, row: int, out: "np.ndarray[Any, np.dtype[np.uint8]]") -> None:
        """Decode one sample into `out`, uint8 [H, W, 3].

        Raises DatasetError that names shard, key and offset if the record is short, corrupt or of another size.
        """
        offset, num_bytes = int(self._offsets[row]), int(self._sizes[row])
        data = os.pread(self._descriptor(int(self.shard_of_row[row])), num_bytes, offset)
        try:
            if len(data) != num_bytes:
                raise ValueError("the shard ends within it")
            height, width, *_ = simplejpeg.decode_jpeg_header(data)
            if (height, width) != (self.size, self.size):
                raise ValueError(f"{width}x{height} pixels instead of {self.size}x{self.size}")
            simplejpeg.decode_jpeg(data, "RGB", buffer=out)
        except ValueError as error:
            key = self.dataset.index_table(self.split, ["key"])["key"][row].as_py()
            shard = self.dataset.shard_path(self.shard_names[self.shard_of_row[row]])
            raise DatasetError(
                f"{shard}: sample {key} at offset {offset}: {error}; run `lmk-shard report`, or build the dataset again"
            ) from error

    def close(self) -> None:
        """Close the shards that reading opened."""
        with self._lock:
            while self._descriptors:
                os.close(self._descriptors.popitem()[1])

    def _descriptor(self, shard: int) -> int:
        descriptor = self._descriptors.get(shard)
        if descriptor is None:
            with self._lock:
                descriptor = self._descriptors.get(shard)
                if descriptor is None:
                    path = self.dataset.shard_path(self.shard_names[shard])
                    descriptor = self._descriptors[shard] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        return descriptor


class BatchStream:
    """Batches of given rows in the given order, decoded ahead by threads.

    Decoding releases the interpreter's lock, so threads run beside the training step, and each batch is decoded
    into one buffer that is handed over as it is. `wait_seconds` adds up how long the consumer waited for data.
    """

    def __init__(self, reader: SplitReader, device: torch.device, batch_size: int, workers: int | None = None) -> None:
        self._reader, self._device = reader, device
        self._workers = workers or min(os.cpu_count() or 1, _MAX_DEFAULT_WORKERS)
        self.wait_seconds = 0.0
        shape = (batch_size, reader.size, reader.size, 3)
        pinned = device.type == "cuda"
        count = _BATCHES_AHEAD + 2
        self._slots = [torch.empty(shape, dtype=torch.uint8, pin_memory=pinned) for _ in range(count)]
        self._copied: list[torch.cuda.Event | None] = [None] * count

    def __call__(self, batches: Iterable[Rows]) -> Iterator[Batch]:
        """Yield one `Batch` per array of rows (each at most batch_size long)."""
        pool = ThreadPoolExecutor(self._workers, thread_name_prefix="decode")
        pending: deque[tuple[int, Rows, list[Future[None]]]] = deque()
        remaining = enumerate(batches)

        def submit() -> None:
            for number, rows in remaining:
                slot = number % len(self._slots)
                pending.append((slot, rows, self._decode(pool, slot, rows)))
                return

        try:
            for _ in range(_BATCHES_AHEAD):
                submit()
            while pending:
                slot, rows, decoded = pending.popleft()
                started = time.perf_counter()
                for future in decoded:
                    future.result()
                self.wait_seconds += time.perf_counter() - started
                submit()
                yield self._hand_over(slot, rows)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _decode(self, pool: ThreadPoolExecutor, slot: int, rows: Rows) -> list[Future[None]]:
        """Decode a batch in as many parts as there are threads, so that the first batch is soon there."""
        copied = self._copied[slot]
        if copied is not None:
            copied.synchronize()  # recorded several steps ago: its copy is over but for a stalled device
        buffer = self._slots[slot].numpy()

        def decode_part(start: int, stop: int) -> None:
            for i in range(start, stop):
                self._reader.decode_into(int(rows[i]), buffer[i])

        parts = min(self._workers, max(1, len(rows)))
        bounds = [len(rows) * part // parts for part in range(parts + 1)]
        return [pool.submit(decode_part, bounds[part], bounds[part + 1]) for part in range(parts)]

    def _hand_over(self, slot: int, rows: Rows) -> Batch:
        pixels = self._slots[slot][: len(rows)]
        labels = torch.from_numpy(self._reader.labels[rows])
        if self._device.type == "cuda":
            pixels = pixels.to(self._device, non_blocking=True)
            labels = labels.pin_memory().to(self._device, non_blocking=True)
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
            self._copied[slot] = event
        return Batch(pixels, labels, rows)
