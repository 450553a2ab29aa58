"""Confusions of a run: pairs of a class and another that is predicted for its pictures, the most frequent first."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lmk_data.browse.run_files import RunFiles

_LONGEST_GROUP = 40  # characters of two labels


@dataclass(frozen=True)
class Confusions:
    """The samples that a run predicts wrongly, by pair.

    Attributes:
        targets, predictions: label in the dataset and label of the run of each of P pairs, int32 [P].
        rows: the wrongly predicted samples by pair, the surest prediction of a pair first, int32 [M].
        starts: the first place in `rows` of each pair, and M, int64 [P + 1].
    """

    targets: NDArray[np.int32]
    predictions: NDArray[np.int32]
    rows: NDArray[np.int32]
    starts: NDArray[np.int64]

    def rows_of(self, group: str) -> NDArray[np.int32]:
        """Return the samples of the pair `target-prediction`. Raises KeyError if there is no such pair."""
        target, _, prediction = group.partition("-")
        if not target.isdecimal() or not prediction.isdecimal() or len(group) > _LONGEST_GROUP:
            raise KeyError(group)
        found = np.flatnonzero((self.targets == int(target)) & (self.predictions == int(prediction)))
        if not len(found):
            raise KeyError(group)
        place = int(found[0])
        return self.rows[self.starts[place] : self.starts[place + 1]]


def confusions_of(run: RunFiles, labels: NDArray[np.int32]) -> Confusions:
    """Return the confusions of a run on N samples; `labels` are those of the dataset, int32 [N]."""
    rows = np.flatnonzero(run.wrong(labels, np.arange(len(labels), dtype=np.int32))).astype(np.int32)
    pairs = labels[rows].astype(np.int64) * len(run.labels) + run.best[rows]
    values, pair, counts = np.unique(pairs, return_inverse=True, return_counts=True)
    ranking = np.argsort(-counts, kind="stable")
    rank = np.empty(len(values), dtype=np.int64)
    rank[ranking] = np.arange(len(values))
    order = np.lexsort((-run.probability[rows], rank[pair]))
    targets, predictions = np.divmod(values[ranking], max(len(run.labels), 1))
    starts = np.concatenate([[0], np.cumsum(counts[ranking])]).astype(np.int64)
    return Confusions(targets.astype(np.int32), predictions.astype(np.int32), rows[order], starts)
