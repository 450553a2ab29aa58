"""Which suspects are relabelled, which are only left out, and which are left to people."""

from dataclasses import replace

import numpy as np
import pytest

from lmk_data.dataset import ShardedDataset
from lmk_train.inspection.classes import ClassJudgement
from lmk_train.inspection.folder import Findings
from lmk_train.inspection.labels import LabelJudgement
from lmk_train.inspection.outliers import OutlierJudgement
from lmk_train.inspection.proposals import propose


@pytest.fixture
def findings(dataset: ShardedDataset) -> Findings:
    """All samples fit their classes well, and the next class badly."""
    labels = np.concatenate([dataset.index(split, ["label"])["label"].to_numpy() for split in dataset.splits])
    number, classes = len(labels), dataset.num_classes
    ones, zeros = np.ones(number, np.float32), np.zeros(number, np.float32)
    no, none = np.zeros(number, np.bool_), np.zeros(classes, np.bool_)
    flat = np.zeros(classes, np.float32)
    other = ((labels + 1) % classes).astype(np.int32)
    return Findings(
        dataset.splits,
        labels.astype(np.int32),
        LabelJudgement(0.8 * ones, other, 0.3 * ones, zeros, no),
        OutlierJudgement(zeros, no),
        ClassJudgement(
            cohesion=flat,
            purity=flat,
            clusters=np.ones(classes, np.int32),
            several_score=flat,
            several=none,
            twin_label=np.full(classes, -1, np.int32),
            twin_similarity=flat,
            twin_duplicates=np.zeros(classes, np.int32),
            twin_score=flat,
            twin=none,
            several_threshold=1.0,
            twin_threshold=0.5,
            parts={},
        ),
    )


def suspect(findings: Findings, row: int, other: float, score: float = 0.95) -> Findings:
    """Return the findings with a wrong label at a row, which is similar by `other` to class 0."""
    judged = findings.by_label
    wrong, scores = judged.wrong_label.copy(), judged.wrong_label_score.copy()
    label, similarity = judged.other_label.copy(), judged.other_similarity.copy()
    wrong[row], scores[row], label[row], similarity[row] = True, score, 0, other
    changed = replace(
        judged, wrong_label=wrong, wrong_label_score=scores, other_label=label, other_similarity=similarity
    )
    return replace(findings, by_label=changed)


def train_row(findings: Findings, label: int) -> int:
    return int(np.flatnonzero(findings.labels == label)[0])


def test_only_who_fits_the_proposed_class_is_relabelled(dataset: ShardedDataset, findings: Findings) -> None:
    row = train_row(findings, 1)
    key = dataset.index("train", ["key"])["key"][row]
    assert not propose(dataset, findings, 0.0).marks
    mark = propose(dataset, suspect(findings, row, 0.85), 0.9).marks[key]
    assert (mark.action, mark.landmark_id) == ("relabel", str(dataset.classes["landmark_id"][0]))
    assert mark.note.startswith("lmk-inspect: wrong label, score 0.95; similarity 0.80")
    assert propose(dataset, suspect(findings, row, 0.7), 0.9).marks[key].action == "exclude"
    assert not propose(dataset, suspect(findings, row, 0.85), 0.96).marks


def test_an_outlier_is_left_out(dataset: ShardedDataset, findings: Findings) -> None:
    row = train_row(findings, 1)
    far = findings.by_outlier
    outlier, score = far.outlier.copy(), far.outlier_score.copy()
    outlier[row], score[row] = True, 1.0
    marks = propose(dataset, replace(findings, by_outlier=OutlierJudgement(score, outlier)), 0.9).marks
    assert [mark.action for mark in marks.values()] == ["exclude"]


@pytest.mark.parametrize("kind", ["several", "twin", "test"])
def test_what_is_left_to_people(dataset: ShardedDataset, findings: Findings, kind: str) -> None:
    row = train_row(findings, 1)
    classes = findings.by_class
    flags = np.zeros(dataset.num_classes, np.bool_)
    if kind == "several":
        flags[1] = True
        findings = replace(findings, by_class=replace(classes, several=flags))
    elif kind == "twin":
        flags[0], twin = True, classes.twin_label.copy()
        twin[0] = 1
        findings = replace(findings, by_class=replace(classes, twin=flags, twin_label=twin))
    else:
        row = len(findings.labels) - 1
    proposals = propose(dataset, suspect(findings, row, 0.85), 0.9)
    assert not proposals.marks
    assert proposals.undecided == (kind != "test")
