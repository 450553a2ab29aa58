"""Marks that an inspection proposes: what of the training split is relabelled, and what is only left out."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lmk_data.dataset import ShardedDataset
from lmk_data.system.terminal import printable
from lmk_data.views.marks import Mark, MarksFile
from lmk_train.inspection.folder import Findings, split_rows

DEFAULT_CONFIDENCE = 0.9
SPLIT = "train"
MIN_SAMPLES = 5  # of a class that samples are moved to
FIT_QUANTILE = 0.25


@dataclass(frozen=True)
class Proposals:
    """Marks by key, how many there are of each action, and how many samples were left to people.

    `undecided` are suspects of at least the confidence without a mark: their class may be several things, or the same
    thing as the proposed one.
    """

    marks: dict[str, Mark]
    undecided: int

    def num(self, action: str) -> int:
        """Return the number of marks of an action."""
        return sum(mark.action == action for mark in self.marks.values())


@dataclass(frozen=True)
class WrittenMarks:
    """How many marks a file got, how many of these keys it keeps as they were, and how many marks it has now."""

    added: int
    kept: int
    total: int


def propose(dataset: ShardedDataset, findings: Findings, min_confidence: float) -> Proposals:
    """Return marks for suspects of the training split whose score is at least `min_confidence`.

    Validation and test are left to people: a split that a model has cleaned measures agreement with that model.

    - A wrong label is relabelled if the sample fits the proposed class as well as its own samples do (better than their
      lower quartile) and that class has at least 5 samples; otherwise it is left out.
    - An outlier is left out.
    - No mark: a wrong label in a class that is several things, of which the sample may be the smaller one; or whose
      proposed class may be the same thing as its own.
    """
    rows = split_rows(dataset, findings.splits).get(SPLIT)
    if rows is None:
        return Proposals({}, 0)
    judged, far, classes = findings.by_label, findings.by_outlier, findings.by_class
    own, other = findings.labels, judged.other_label
    wrong = judged.wrong_label & (judged.wrong_label_score >= min_confidence)
    outlier = far.outlier & (far.outlier_score >= min_confidence)
    is_twin = (classes.twin[own] & (classes.twin_label[own] == other)) | (
        (other >= 0) & classes.twin[other] & (classes.twin_label[other] == own)
    )
    undecided = wrong & ~outlier & (classes.several[own] | is_twin)
    fits = (other >= 0) & (judged.other_similarity >= _usual_fit(findings)[other])
    relabel = wrong & ~outlier & ~undecided & fits
    exclude = (wrong | outlier) & ~undecided & ~relabel
    keys = dataset.index_table(SPLIT, ["key"])["key"]
    ids = dataset.classes["landmark_id"].tolist()
    marks: dict[str, Mark] = {}
    for row in (rows.start + np.flatnonzero((relabel | exclude)[rows])).tolist():
        note = _note(findings, row, ids[int(other[row])] if other[row] >= 0 else None, is_outlier=bool(outlier[row]))
        target = str(ids[int(other[row])]) if relabel[row] else ""
        marks[keys[row - rows.start].as_py()] = Mark("relabel" if target else "exclude", target, note)
    return Proposals(marks, int(undecided[rows].sum()))


def write_marks(path: Path, marks: Mapping[str, Mark]) -> WrittenMarks:
    """Add marks to a file, which is there afterwards even if there are none.

    Marks that are in it stay as they are: they may be a person's decisions.

    Raises UserError if the file is not one of marks or cannot be written.
    """
    file = MarksFile(path)
    there = file.read()
    new = {key: mark for key, mark in marks.items() if key not in there}
    file.apply(new)
    return WrittenMarks(len(new), len(marks) - len(new), len(there) + len(new))


def _usual_fit(findings: Findings) -> NDArray[np.float64]:
    """Return the lower quartile of the similarity of each class's samples to it, [K]; infinity for a small class."""
    num_classes = len(findings.by_class.cohesion)
    similarity = np.nan_to_num(findings.by_label.own_similarity, nan=-1.0)
    order = np.lexsort((similarity, findings.labels))
    counts = np.bincount(findings.labels, minlength=num_classes)
    first = np.cumsum(counts) - counts
    large = counts >= MIN_SAMPLES
    usual = np.full(num_classes, np.inf)
    usual[large] = similarity[order[first[large] + (counts[large] * FIT_QUANTILE).astype(np.int64)]]
    return usual


def _note(findings: Findings, row: int, other_id: int | str | None, *, is_outlier: bool) -> str:
    """Return the reason of a mark, with its scores."""
    judged = findings.by_label
    own = judged.own_similarity[row]
    similar = "the only sample of its class" if np.isnan(own) else f"similarity {own:.2f} to its own class"
    if other_id is not None:
        similar += f", {judged.other_similarity[row]:.2f} to {printable(str(other_id))}"
    if is_outlier:
        return f"lmk-inspect: outlier, score {findings.by_outlier.outlier_score[row]:.2f}; {similar}"
    return f"lmk-inspect: wrong label, score {judged.wrong_label_score[row]:.2f}; {similar}"
