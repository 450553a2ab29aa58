"""The marks as they are now, by row: read again whenever another window or process has changed the file."""

from collections.abc import Mapping
from dataclasses import dataclass
from threading import Lock

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lmk_data.browse.samples import Samples
from lmk_data.errors import UserError
from lmk_data.views.marks import Mark, MarksFile

EXCLUDE, RELABEL = 1, 2
MAX_CHANGES = 100_000


@dataclass(frozen=True)
class MarkedRows:
    """The marks of a dataset of N samples.

    Attributes:
        marks: those of the file, by key.
        action: 0 (none), `EXCLUDE` or `RELABEL`, uint8 [N].
        excluded, relabelled: marked samples by label, int64 [K].
        elsewhere: marks of keys that the dataset does not have.
    """

    marks: Mapping[str, Mark]
    action: NDArray[np.uint8]
    excluded: NDArray[np.int64]
    relabelled: NDArray[np.int64]
    elsewhere: int


class Marks:
    """The marks file of a dataset. Several threads may use it."""

    def __init__(self, file: MarksFile, samples: Samples, labels: Mapping[str, int]) -> None:
        self._file, self._samples, self._labels = file, samples, labels
        self._lock = Lock()
        self._current: MarkedRows | None = None

    def current(self) -> MarkedRows:
        """Return the marks as they are in the file now. Raises UserError for a file that is not one of marks."""
        marks = self._file.read()
        with self._lock:
            if self._current is None or self._current.marks != marks:
                self._current = self._by_row(marks)
            return self._current

    def apply(self, changes: Mapping[str, Mark | None]) -> dict[str, Mark | None]:
        """Set or remove marks as `settled` has them; return what these keys had before.

        Raises UserError, and changes nothing, for a key or a class that the dataset does not have.
        """
        return self._file.apply(self.settled(changes))

    def restore(self, before: Mapping[str, Mark | None], after: Mapping[str, Mark | None]) -> dict[str, Mark | None]:
        """Put back what keys had before a change, whatever that is; return what they had now.

        A key whose mark is not that of `after` any more keeps it.
        """
        return self._file.apply(before, after)

    def settled(self, changes: Mapping[str, Mark | None]) -> dict[str, Mark | None]:
        """Return changes as they are saved: a mark with the class that the picture has removes its mark.

        Raises UserError for a key or a class that the dataset does not have.
        """
        if len(changes) > MAX_CHANGES:
            raise UserError(f"{len(changes):,} pictures at once, more than {MAX_CHANGES:,}; mark fewer at once")
        keys = list(changes)
        rows = self._samples.keys.rows(pa.array(keys, pa.large_string()))
        if (rows < 0).any():
            raise UserError(f"no picture has the key {keys[int((rows < 0).argmax())][:100]!r}; reload the page")
        for mark in changes.values():
            if mark is not None and mark.action == "relabel" and mark.landmark_id not in self._labels:
                raise UserError(f"no class has the landmark id {mark.landmark_id[:100]!r}; choose one of the dataset")
        labels = self._samples.labels[rows].tolist()
        return {
            key: None if mark is not None and self._labels.get(mark.landmark_id) == label else mark
            for (key, mark), label in zip(changes.items(), labels, strict=True)
        }

    def _by_row(self, marks: Mapping[str, Mark]) -> MarkedRows:
        action = np.zeros(len(self._samples), dtype=np.uint8)
        rows = self._samples.keys.rows(pa.array(list(marks), pa.large_string()))
        codes = np.array([EXCLUDE if mark.action == "exclude" else RELABEL for mark in marks.values()], dtype=np.uint8)
        known = rows >= 0
        action[rows[known]] = codes[known]
        labels = self._samples.labels
        counts = [np.bincount(labels[rows[known & (codes == code)]], minlength=len(self._labels)) for code in (1, 2)]
        return MarkedRows(marks, action, counts[0], counts[1], int((~known).sum()))
