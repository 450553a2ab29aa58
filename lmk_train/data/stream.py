"""Batches of picks on the training device: decoded by threads, a few batches ahead of the training step."""

from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from lmk_data.errors import UserError
from lmk_train.data.order import rows_of
from lmk_train.data.reader import Reader
from lmk_train.runtime.clock import Activity, TimeShares
from lmk_train.runtime.transfer import CopyStream

_BATCHES_AHEAD = 3


@dataclass(frozen=True, slots=True)
class Batch:
    """One batch on the training device.

    Attributes:
        pixels: uint8 [B, H, W, 3], RGB; from a reader of features float32 [B, D]. Valid until the next batch is taken.
        labels: int64 [B].
        picks: int64 [B], on the host; `rows_of` takes their rows in the index.
    """

    pixels: torch.Tensor
    labels: torch.Tensor
    picks: NDArray[np.int64]


class BatchStream:
    """Batches of given picks in the given order, decoded ahead by threads.

    Decoding releases the interpreter's lock, so that the threads run beside the training step. Each batch is decoded
    into one buffer, which is handed over without a copy.
    """

    def __init__(
        self,
        reader: Reader,
        device: torch.device,
        batch_size: int,
        workers: int | None = None,
        times: TimeShares | None = None,
    ) -> None:
        """Allocate the buffers.

        Args:
            reader: of the samples.
            device: that batches are put on.
            batch_size: samples of the largest batch.
            workers: threads that decode; the reader's default if None.
            times: is told when the consumer waits for data, when they are copied, and when it has them.

        Raises UserError if there is not enough memory.
        """
        self._reader, self._device, self._times = reader, device, times
        self._workers = workers or reader.default_workers
        count = _BATCHES_AHEAD + 2
        # NumPy asks for huge pages, which makes decoding 4 % faster.
        shape = (batch_size, *reader.shape)
        try:
            self._slots = [torch.from_numpy(np.empty(shape, reader.dtype)) for _ in range(count)]
        except (MemoryError, ValueError):  # ValueError: more bytes than an address has
            raise UserError(f"there is no memory for batches of {batch_size:,}; give a smaller --batch-size") from None
        self._copy = CopyStream(device) if device.type == "cuda" else None
        if self._copy is not None:
            self._slots = [slot.pin_memory() for slot in self._slots]
        self._copies: list[torch.cuda.Event | None] = [None] * count

    def __call__(self, batches: Iterable[NDArray[np.int64]]) -> Generator[Batch, None, None]:
        """Yield one `Batch` per array of picks, int64 [B] with B at most `batch_size`; closing it stops the threads.

        All of `batches` are taken at the start, so that the reader knows what comes.
        """
        pool = ThreadPoolExecutor(self._workers, thread_name_prefix="decode")
        pending: deque[tuple[int, NDArray[np.int64], list[Future[None]]]] = deque()

        def submit() -> None:
            for number, picks in remaining:
                slot = number % len(self._slots)
                pending.append((slot, picks, self._decode(pool, slot, picks)))
                return

        try:
            self._begin("data")  # includes drawing the order, if `batches` does so
            remaining = enumerate(self._expected(batches))
            for _ in range(_BATCHES_AHEAD):
                submit()
            while pending:
                slot, picks, decoded = pending.popleft()
                for future in decoded:
                    future.result()
                self._begin("copy")
                batch = self._hand_over(slot, picks)
                self._begin("compute")
                submit()
                yield batch
                self._begin("data")
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _begin(self, activity: Activity) -> None:
        if self._times is not None:
            self._times.begin(activity)

    def _expected(self, batches: Iterable[NDArray[np.int64]]) -> list[NDArray[np.int64]]:
        """Return the batches, after announcing all their picks to the reader."""
        taken = list(batches)
        if taken:
            self._reader.expect(np.concatenate(taken))
        return taken

    def _decode(self, pool: ThreadPoolExecutor, slot: int, picks: NDArray[np.int64]) -> list[Future[None]]:
        """Decode a batch in as many parts as there are threads, so that the first batch arrives soon."""
        if (copy := self._copies[slot]) is not None:
            copy.synchronize()  # recorded several steps ago: waits only if the device stalls
            self._copies[slot] = None
        rows = rows_of(picks, len(self._reader))
        buffer = self._slots[slot].numpy()

        def decode_part(start: int, stop: int) -> None:
            self._reader.decode(rows[start:stop], buffer[start:stop])

        parts = min(self._workers, max(1, len(rows)))
        bounds = [len(rows) * part // parts for part in range(parts + 1)]
        return [pool.submit(decode_part, bounds[part], bounds[part + 1]) for part in range(parts)]

    def _hand_over(self, slot: int, picks: NDArray[np.int64]) -> Batch:
        pixels = self._slots[slot][: len(picks)]
        labels = torch.from_numpy(self._reader.labels[rows_of(picks, len(self._reader))])
        if self._copy is not None:
            (pixels, labels), self._copies[slot] = self._copy(pixels, labels.pin_memory())
        return Batch(pixels, labels, picks)
