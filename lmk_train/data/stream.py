"""Batches of picks on the training device: decoded a few batches ahead of the training step."""

from collections import deque
from collections.abc import Generator, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from lmk_data.errors import UserError
from lmk_train.data.decoders import make_decoders
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
    """Batches of given picks in the given order, decoded ahead beside the training step.

    Each batch is decoded into one buffer, which is handed over without a copy.
    """

    def __init__(
        self,
        reader: Reader,
        device: torch.device,
        batch_size: int,
        workers: int | None = None,
        times: TimeShares | None = None,
        *,
        processes: bool | None = None,
    ) -> None:
        """Allocate the buffers.

        Args:
            reader: of the samples.
            device: that batches are put on.
            batch_size: samples of the largest batch.
            workers: how many decode at once; the reader's default if None.
            times: is told when the consumer waits for data, when they are copied, and when it has them.
            processes: whether processes decode, if they can read the samples, and not threads; by default on CUDA,
                whose steps mostly launch work.

        Raises UserError if there is not enough memory.
        """
        self._reader, self._device, self._times = reader, device, times
        self._count = _BATCHES_AHEAD + 2
        beside = device.type == "cuda" if processes is None else processes
        try:
            self._decoders = make_decoders(
                reader, self._count, batch_size, workers or reader.default_workers, device, processes=beside
            )
        except (MemoryError, OverflowError, ValueError):  # the last two: more bytes than an address has
            raise UserError(f"there is no memory for batches of {batch_size:,}; give a smaller --batch-size") from None
        except OSError as error:
            raise UserError(f"no memory can be shared with processes that decode ({error.strerror})") from error
        self._is_open = False
        self._memory = torch.from_numpy(self._decoders.memory)
        self._copy = CopyStream(device) if device.type == "cuda" else None
        self._copies: list[torch.cuda.Event | None] = [None] * self._count

    def __call__(self, batches: Iterable[NDArray[np.int64]]) -> Generator[Batch, None, None]:
        """Yield one `Batch` per array of picks, int64 [B] with B at most `batch_size`; closing it stops the decoders.

        All of `batches` are taken at the start, so that the reader knows what comes. There is one pass at a time.

        Raises RuntimeError if an earlier pass is still open.
        """
        if self._is_open:
            raise RuntimeError("an earlier pass of this stream is still open; close its generator first")
        pending: deque[tuple[int, NDArray[np.int64]]] = deque()

        def begin() -> None:
            for number, picks in remaining:
                slot = number % self._count
                if (copy := self._copies[slot]) is not None:
                    copy.synchronize()  # recorded several steps ago: waits only if the device stalls
                    self._copies[slot] = None
                self._decoders.begin(slot, rows_of(picks, len(self._reader)))
                pending.append((slot, picks))
                return

        self._is_open = True
        try:
            self._begin("data")  # includes drawing the order, if `batches` does so
            with self._decoders:
                remaining = enumerate(self._expected(batches))
                for _ in range(_BATCHES_AHEAD):
                    begin()
                while pending:
                    self._decoders.finish()
                    self._begin("copy")
                    batch = self._hand_over(*pending.popleft())
                    self._begin("compute")
                    begin()
                    yield batch
                    self._begin("data")
        finally:
            self._is_open = False

    def _begin(self, activity: Activity) -> None:
        if self._times is not None:
            self._times.begin(activity)

    def _expected(self, batches: Iterable[NDArray[np.int64]]) -> list[NDArray[np.int64]]:
        """Return the batches, after announcing all their picks to the reader."""
        taken = list(batches)
        if taken:
            self._reader.expect(np.concatenate(taken))
        return taken

    def _hand_over(self, slot: int, picks: NDArray[np.int64]) -> Batch:
        pixels = self._memory[slot, : len(picks)]
        labels = torch.from_numpy(self._reader.labels[rows_of(picks, len(self._reader))])
        if self._copy is not None:
            (pixels, labels), self._copies[slot] = self._copy(pixels, labels.pin_memory())
        return Batch(pixels, labels, picks)
