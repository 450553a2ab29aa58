"""One pass of a network over the pictures of a split: its features in a `.npy`, in row order, resumable."""

import io
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from lmk_data.errors import UserError, one_line
from lmk_data.system.files import check_no_link, sync_folder, write_bytes
from lmk_data.system.terminal import progress_bar
from lmk_train.data.order import batch_picks, num_batches
from lmk_train.data.reader import Reader
from lmk_train.data.stream import BatchStream
from lmk_train.runs.plain_file import open_regular, read_json
from lmk_train.runtime.precision import Precision

BATCH_SIZE = 64
_SECONDS_BETWEEN_RECORDS = 5.0
_SPARE_BYTES = 64 << 20  # that stay free on a disk


@dataclass(frozen=True)
class FeaturePass:
    """A network, and how pictures are run through it.

    Attributes:
        network: float32 [B, 3, H, W] to features [B, D]; on the device of `precision`, in evaluation mode.
        preprocess: turns a batch's pixels (and no draws) into network input.
        precision: device and dtype of the forward pass.
        workers: threads that decode; the reader's default if None.
    """

    network: Callable[[torch.Tensor], torch.Tensor]
    preprocess: Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]
    precision: Precision
    workers: int | None = None

    def __call__(self, reader: Reader, first_row: int = 0) -> Iterator[NDArray[np.float32]]:
        """Yield the features of the rows from `first_row` on, batch by batch: float32 [B, D].

        A batch holds the same rows wherever a pass begins, if `first_row` is a multiple of `BATCH_SIZE`.
        """
        rows, device = np.arange(first_row, len(reader), dtype=np.int64), self.precision.device
        steps = range(num_batches(len(rows), BATCH_SIZE, drop_last=False))
        picks = (batch_picks(rows, step, BATCH_SIZE) for step in steps)
        with (
            closing(BatchStream(reader, device, BATCH_SIZE, self.workers)(picks)) as batches,
            torch.inference_mode(),
        ):
            for batch in batches:
                with self.precision.autocast():
                    output = self.network(self.preprocess(batch.pixels, None))
                yield output.float().cpu().numpy()


class _Record(msgspec.Struct):
    """How far a pass has come: the features of the first `rows` are on disk. `source` is what they were made from."""

    source: dict[str, Any]
    rows: int


@dataclass(frozen=True)
class FeatureFile:
    """A file of the features of one split, [N, D], and what it is made from.

    Attributes:
        path: of the `.npy`, which exists only once it is complete. Beside it are `<split>.json`, the record of how far
            the pass has come, and until then `<split>.tmp`.
        shape: N and D.
        dtype: of the stored features.
        source: everything that the features depend on, as JSON has it.
    """

    path: Path
    shape: tuple[int, int]
    dtype: type[np.float32] | type[np.float16]
    source: dict[str, Any]

    def num_done(self) -> int:
        """Return how many rows are on disk, counted from the first one; all of them once the file is complete.

        Rows that were made from something else do not count.
        """
        try:
            record = read_json(self._record_path, _Record, "a record of a pass")
        except (FileNotFoundError, UserError):
            return 0
        if record.source != self.source or not 0 <= record.rows <= self.shape[0]:
            return 0
        if record.rows == self.shape[0]:
            return record.rows if self.path.is_file() or self._holds(record.rows) else 0
        return record.rows - record.rows % BATCH_SIZE if self._holds(record.rows) else 0

    def missing_bytes(self) -> int:
        """Return how many bytes of features are still to be written."""
        return (self.shape[0] - self.num_done()) * self._row_bytes

    def write(
        self,
        feature_pass: FeaturePass,
        reader: Reader,
        *,
        convert: Callable[[NDArray[np.float32]], NDArray[Any]] = lambda features: features,
        quiet: bool = True,
    ) -> None:
        """Run the split through the network, from the first row that is not on disk.

        Args:
            feature_pass: the network, and how pictures are run through it.
            reader: of the N rows.
            convert: turns a batch of features, float32 [B, D], into what is stored.
            quiet: no progress bar.
        """
        done = self.num_done()
        if done == self.shape[0] and not self._holds(done):
            return
        for path in (self._partial, self._record_path):
            check_no_link(path)
        if not done:
            self._partial.unlink(missing_ok=True)
        with (
            open(self._partial, "r+b" if done else "xb", buffering=0) as file,
            progress_bar(self.shape[0], f"features of {reader.split}", "images", quiet=quiet, initial=done) as bar,
        ):
            if not done:
                file.write(self._header())
            file.truncate(self._end(done))
            file.seek(self._end(done))
            self._append((convert(batch) for batch in feature_pass(reader, done)), file, done, bar.update)
        self._partial.replace(self.path)
        sync_folder(self.path.parent)

    def read(self) -> NDArray[Any]:
        """Return the features, memory-mapped; raise UserError unless the file is a whole one of this shape."""
        try:
            with open_regular(self.path):
                features = np.lib.format.open_memmap(self.path, mode="r")  # refuses objects, which would be unpickled
        except (OSError, EOFError, ValueError, TypeError, OverflowError) as error:
            raise UserError(
                f"{self.path}: not readable features ({one_line(error)}); remove the folder to compute them again"
            ) from None
        if features.shape != self.shape or features.dtype != self.dtype:
            raise UserError(
                f"{self.path}: {features.dtype} {features.shape} instead of {np.dtype(self.dtype)} {self.shape}; "
                "remove the folder to compute them again"
            )
        return features

    def _append(
        self, batches: Iterator[NDArray[Any]], file: BinaryIO, done: int, progress: Callable[[int], object]
    ) -> None:
        """Write batches behind the rows that are done, and record now and then, and at the end, how far they are."""
        recorded = time.monotonic()
        try:
            for batch in batches:
                _write_all(file, np.ascontiguousarray(batch, dtype=self.dtype).tobytes())
                done += len(batch)
                progress(len(batch))
                if time.monotonic() - recorded >= _SECONDS_BETWEEN_RECORDS:
                    self._record(file, done)
                    recorded = time.monotonic()
        finally:
            self._record(file, done)
        assert done == self.shape[0], "every row has features"

    def _record(self, file: BinaryIO, rows: int) -> None:
        os.fsync(file.fileno())
        record = {"source": self.source, "rows": rows}
        write_bytes(self._record_path, json.dumps(record, indent=2).encode() + b"\n")

    def _holds(self, rows: int) -> bool:
        """Return whether the unfinished file is one of this shape and dtype with at least so many rows."""
        header = self._header()
        try:
            with open_regular(self._partial) as file:
                return file.read(len(header)) == header and os.fstat(file.fileno()).st_size >= self._end(rows)
        except (FileNotFoundError, UserError):
            return False

    def _header(self) -> bytes:
        """Return the header of the `.npy`, as NumPy writes it."""
        buffer = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            buffer, {"descr": np.dtype(self.dtype).str, "fortran_order": False, "shape": self.shape}
        )
        return buffer.getvalue()

    def _end(self, rows: int) -> int:
        return len(self._header()) + rows * self._row_bytes

    @property
    def _row_bytes(self) -> int:
        return self.shape[1] * np.dtype(self.dtype).itemsize

    @property
    def _partial(self) -> Path:
        return self.path.with_suffix(".tmp")

    @property
    def _record_path(self) -> Path:
        return self.path.with_suffix(".json")


def unit_vectors_in(precision: Precision) -> Callable[[NDArray[np.float32]], NDArray[np.float16]]:
    """Return the function that divides features, float32 [B, D], by their lengths; zeros stay zeros.

    `precision` is what a message calls that of features that are not finite, for which it raises UserError.
    """

    def convert(features: NDArray[np.float32]) -> NDArray[np.float16]:
        lengths = np.linalg.norm(features.astype(np.float64), axis=1, keepdims=True)
        if not np.isfinite(lengths).all():
            raise UserError(f"the features are not finite in {precision}; give --amp off, or other weights")
        unit: NDArray[np.float16] = (features / np.maximum(lengths, 1e-12)).astype(np.float16)
        return unit

    return convert


def require_room(folder: Path, files: Iterable[FeatureFile], what: str, advice: str) -> None:
    """Raise UserError unless the disk of a folder has room for what is missing of some files.

    The message begins with `what` takes it, such as "DIR: the features take", and ends with `advice`.
    """
    num_bytes, free = sum(file.missing_bytes() for file in files), shutil.disk_usage(folder).free
    if num_bytes and num_bytes + _SPARE_BYTES > free:
        raise UserError(f"{what} {num_bytes / 1e9:.1f} GB more, and {free / 1e9:.1f} GB are free there; {advice}")


def _write_all(file: BinaryIO, data: bytes) -> None:
    """Write all of `data` to an unbuffered file, which may take less at a time."""
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]
