"""What the evaluations of a run say of a dataset: predictions by key, F1 by class. Classes are matched by their ids."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lmk_data.browse.records import ClassName
from lmk_data.browse.samples import Samples
from lmk_data.browse.tables import (
    Column,
    Declared,
    check_labels,
    labels_by_id,
    read_columns,
    read_place,
    rows_of_keys,
)
from lmk_data.dataset.evaluation import AGAIN, per_class_name, predictions_name
from lmk_data.dataset.format import SPLITS
from lmk_data.errors import UserError

TOP_K = 5
_F1_SPLITS = ("test", "val", "train")  # F1 is shown of the first of these that was evaluated
_WHAT = "a table of an evaluation"
_PROBABILITY = Column("real", 0, 1.001)  # float16 may round a sum up
_PER_CLASS = Declared(
    {
        "label": Column("whole"),
        "landmark_id": Column("id"),
        "name": Column("text", nullable=True),
        "support": Column("whole"),
        "f1": Column("real", 0, 1, nullable=True),
    },
    _WHAT,
    AGAIN,
)


@dataclass(frozen=True, slots=True)
class _Evaluated:
    """The file of the predictions of a split, and the row of the dataset of each of its rows, int32 [M] (-1: none)."""

    path: Path
    rows: NDArray[np.int32]


class RunFiles:
    """The predictions of a run for N samples of a dataset with K classes.

    Attributes:
        path: the run's folder.
        splits: the evaluated splits.
        best: the predicted label of the run, int32 [N]; -1 for a sample without a prediction.
        probability: of `best`, float32 [N]; NaN without a prediction.
        labels: the label in the dataset of each label of the run, int32; -1 for a class that the dataset lacks.
        f1_split: the split that `f1` is of.
        f1: by label of the dataset, float32 [K]; NaN where the split has no picture of the class.
    """

    def __init__(self, path: Path, samples: Samples, ids: pa.LargeStringArray) -> None:
        self.path = path
        self.best = np.full(len(samples), -1, dtype=np.int32)
        self.probability = np.full(len(samples), np.nan, dtype=np.float32)
        self.splits = tuple(split for split in SPLITS if (path / predictions_name(split)).exists())
        if not self.splits:
            what = "has no predictions" if path.is_dir() else "no such folder"
            raise UserError(f"--run {path}: {what}; give the folder of a run after `lmk-eval RUN --split test`")
        self._evaluated: list[_Evaluated] = []
        self.f1_split = next(split for split in _F1_SPLITS if split in self.splits)
        self._read_classes(ids)
        for split in self.splits:
            self._read_predictions(split, samples)
        self.covered = int((self.best >= 0).sum())
        if not self.covered:
            raise UserError(f"--run {path}: its predictions are of no picture of this dataset; run lmk-eval with it")

    def wrong(self, labels: NDArray[np.int32], rows: NDArray[np.int32]) -> NDArray[np.bool_]:
        """Return which of M rows are predicted to be of another class than their label in `labels`, bool [M]."""
        best = self.best[rows]
        wrong: NDArray[np.bool_] = (best >= 0) & (self.labels[best] != labels[rows])
        return wrong

    def name_of(self, label: int) -> ClassName:
        """Return the class of a label of the run."""
        own, landmark_id, name = int(self.labels[label]), self._ids[label].as_py(), self._names[label].as_py()
        return ClassName(own if own >= 0 else None, landmark_id, name or landmark_id)

    def top(self, row: int) -> list[tuple[int, float]]:
        """Return up to five labels of the run and their probabilities, the best first; nothing without a prediction."""
        for evaluated in reversed(self._evaluated):  # of a picture in two files the last one counts, as in `best`
            places = np.flatnonzero(evaluated.rows == row)
            if len(places):
                count = min(TOP_K, len(self.labels))
                columns: dict[str, Column] = {}
                for place in range(1, count + 1):
                    columns[f"label_{place}"] = self._label_column
                    columns[f"probability_{place}"] = _PROBABILITY
                read = read_place(evaluated.path, Declared(columns, _WHAT, AGAIN), int(places[-1]))
                if read["label_1"] != self.best[row]:
                    raise UserError(f"{evaluated.path}: was written again since; start lmk-shard browse again")
                return [(read[f"label_{place}"], read[f"probability_{place}"]) for place in range(1, count + 1)]
        return []

    def _read_classes(self, ids: pa.LargeStringArray) -> None:
        """Read the classes of the run; those of all splits have to be the same."""
        for split in sorted(self.splits, key=_F1_SPLITS.index):
            path = self.path / per_class_name(split)
            read = read_columns(path, _PER_CLASS)
            check_labels(path, read, AGAIN)
            if split == self.f1_split:
                self._ids, self._names = read["landmark_id"], read["name"]
                self.labels = labels_by_id(self._ids, ids)
                self.f1 = self._f1(read, len(ids))
            elif not read["landmark_id"].equals(self._ids):
                raise UserError(f"{path}: other classes than {per_class_name(self.f1_split)}; {AGAIN}")

    def _f1(self, read: dict[str, Any], num_classes: int) -> NDArray[np.float32]:
        f1 = np.full(num_classes, np.nan, dtype=np.float32)
        known = (self.labels >= 0) & (read["support"] > 0)
        f1[self.labels[known]] = read["f1"][known]
        return f1

    @property
    def _label_column(self) -> Column:
        return Column("whole", 0, len(self.labels) - 1)

    def _read_predictions(self, split: str, samples: Samples) -> None:
        path = self.path / predictions_name(split)
        columns = {"key": Column("text"), "label_1": self._label_column, "probability_1": _PROBABILITY}
        read = read_columns(path, Declared(columns, _WHAT, AGAIN))
        rows = rows_of_keys(samples.keys, read["key"], samples.range_of(split)[0])
        known = rows >= 0
        self.best[rows[known]], self.probability[rows[known]] = read["label_1"][known], read["probability_1"][known]
        self._evaluated.append(_Evaluated(path, rows))
