"""What the evaluations of a run say of a dataset: predictions by key, F1 by class. Classes are matched by their ids."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lmk_data.browse.lazy import Lazy
from lmk_data.browse.records import ClassName
from lmk_data.browse.samples import Samples
from lmk_data.browse.tables import (
    Declared,
    Kind,
    column_of,
    labels_by_id,
    one_line,
    read_columns,
    reals_of,
    rows_of_keys,
)
from lmk_data.dataset.format import SPLITS
from lmk_data.errors import UserError

TOP_K = 5
_F1_SPLITS = ("test", "val", "train")  # F1 is shown of the first of these that was evaluated
_AGAIN = "evaluate the split again with lmk-eval"
_PER_CLASS: dict[str, Kind] = {"label": "whole", "landmark_id": "id", "name": "text", "support": "whole", "f1": "real"}


@dataclass(frozen=True, slots=True)
class _Evaluated:
    """The file of the predictions of a split, and the row of the dataset of each of its rows, int32 [M] (-1: none)."""

    path: Path
    rows: NDArray[np.int32]
    num_classes: int


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

    def __init__(self, path: Path, samples: Samples, ids: pa.Array) -> None:
        self.path = path
        self.best = np.full(len(samples), -1, dtype=np.int32)
        self.probability = np.full(len(samples), np.nan, dtype=np.float32)
        self.splits = tuple(split for split in SPLITS if _predictions(path, split).exists())
        if not self.splits:
            what = "has no predictions" if path.is_dir() else "no such folder"
            raise UserError(f"--run {path}: {what}; give the folder of a run after `lmk-eval {path} --split test`")
        self._evaluated: list[_Evaluated] = []
        classes = {split: self._read_classes(split) for split in self.splits}
        self.f1_split = next(split for split in _F1_SPLITS if split in classes)
        table = classes[self.f1_split]
        self._ids, self._names = table["landmark_id"].cast(pa.string()), table["name"]
        self.labels = labels_by_id(self._ids, ids)
        self.f1 = self._f1(table, len(ids))
        for split in self.splits:
            if not classes[split]["landmark_id"].cast(pa.string()).equals(self._ids):
                raise UserError(f"{_per_class(path, split)}: other classes than in {self.f1_split}; {_AGAIN}")
            self._read_predictions(split, samples)
        if not self.covered:
            raise UserError(f"--run {path}: its predictions are of no picture of this dataset; run lmk-eval with it")
        self._top = {
            evaluated.path: Lazy(lambda evaluated=evaluated: _read_top(evaluated))  # type: ignore[misc]
            for evaluated in self._evaluated
        }

    @property
    def covered(self) -> int:
        """How many samples have a prediction."""
        return int((self.best >= 0).sum())

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
        for evaluated in self._evaluated:
            places = np.flatnonzero(evaluated.rows == row)
            if len(places):
                labels, probabilities = self._top[evaluated.path].get()
                place = int(places[0])
                return list(zip(labels[place].tolist(), probabilities[place].tolist(), strict=True))
        return []

    def _read_classes(self, split: str) -> pa.Table:
        path = _per_class(self.path, split)
        table = _read(path, _PER_CLASS, nullable=("name", "f1"))
        if not np.array_equal(table["label"].to_numpy(), np.arange(len(table))):
            raise UserError(f"{path}: its labels are not 0, 1, 2 and so on; {_AGAIN}")
        if pc.count_distinct(table["landmark_id"]).as_py() != len(table):
            raise UserError(f"{path}: a landmark_id occurs twice; {_AGAIN}")
        return table

    def _f1(self, table: pa.Table, num_classes: int) -> NDArray[np.float32]:
        f1 = np.full(num_classes, np.nan, dtype=np.float32)
        try:
            values, support = reals_of(table, "f1", 0, 1), column_of(table, "support", 0, 2**31 - 1)
        except (ValueError, pa.ArrowException) as error:
            raise UserError(f"{_per_class(self.path, self.f1_split)}: {one_line(error)}; {_AGAIN}") from None
        known = (self.labels >= 0) & (support > 0)
        f1[self.labels[known]] = values[known]
        return f1

    def _read_predictions(self, split: str, samples: Samples) -> None:
        path = _predictions(self.path, split)
        table = _read(path, {"key": "text", "label_1": "whole", "probability_1": "real"})
        try:
            best = column_of(table, "label_1", 0, len(self.labels) - 1)
            probability = reals_of(table, "probability_1", 0, 1)
        except (ValueError, pa.ArrowException) as error:
            raise UserError(f"{path}: {one_line(error)}; {_AGAIN}") from None
        rows = rows_of_keys(samples.keys, table["key"], samples.range_of(split)[0])
        known = rows >= 0
        self.best[rows[known]], self.probability[rows[known]] = best[known], probability[known]
        self._evaluated.append(_Evaluated(path, rows, len(self.labels)))


def _predictions(run: Path, split: str) -> Path:
    return run / f"predictions-{split}.parquet"


def _per_class(run: Path, split: str) -> Path:
    return run / f"per-class-{split}.parquet"


def _read(path: Path, columns: dict[str, Kind], nullable: Sequence[str] = ()) -> pa.Table:
    try:
        return read_columns(path, Declared(columns, frozenset(nullable), "a table of an evaluation", _AGAIN))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; {_AGAIN}") from None


def _read_top(evaluated: _Evaluated) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Return the best labels of the run and their probabilities for the rows of a file, [M, up to 5] each."""
    count = min(TOP_K, evaluated.num_classes)
    names = [f"label_{place + 1}" for place in range(count)], [f"probability_{place + 1}" for place in range(count)]
    table = _read(evaluated.path, {**dict.fromkeys(names[0], "whole"), **dict.fromkeys(names[1], "real")})
    try:
        if len(table) != len(evaluated.rows):
            raise ValueError("it changed while it was open")
        labels = [column_of(table, name, 0, evaluated.num_classes - 1) for name in names[0]]
        probabilities = [reals_of(table, name, 0, 1) for name in names[1]]
    except (ValueError, pa.ArrowException) as error:
        raise UserError(f"{evaluated.path}: {one_line(error)}; {_AGAIN}") from None
    return np.stack(labels, axis=1), np.stack(probabilities, axis=1)
