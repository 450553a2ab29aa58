"""The page of an inspection: what was found, the worst of each kind in pictures, all classes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from lmk_data.dataset import ShardedDataset
from lmk_data.report import page
from lmk_data.system.files import write_bytes
from lmk_data.system.terminal import counted
from lmk_train.inspection.folder import Findings, split_rows
from lmk_train.inspection.plots import score_plot

_NUM_SAMPLES, _NUM_CLASSES, _SIDE = 12, 8, 4
_MAX_SHOWN_PARTS = 4
_WRONG = (
    "Pictures that another class fits better than their own, the most certain first: the picture, the most typical "
    "ones of its class, and those of the class that fits better. Look-alikes and rare views of a landmark are here too."
)
_OUTLYING = "Pictures that are far from their own class and from every other: plans, maps, portraits, covers."
_SEVERAL = (
    "Classes with parts that are as far apart as different classes are. Score 0.5 is the threshold. Two sides of one "
    "place, such as inside and outside, are here as well as two places under one name."
)
_SAME = (
    "Classes that are much nearer to their nearest class than to the third nearest, or share near duplicates with it. "
    "Score 0.5 is the threshold. Two towers of one design are here as well as one tower under two ids."
)


def write_page(path: Path, dataset: ShardedDataset, findings: Findings, description: dict[str, Any]) -> None:
    """Write the page of an inspection; equal findings give equal bytes.

    Args:
        path: of the page.
        dataset: has the pictures.
        findings: what to show.
        description: what quality.json holds.
    """
    shown = _Shown(dataset, findings)
    sections = [
        page.Section("Summary", _summary(findings, description)),
        page.Section("Wrong labels", _wrong_labels(shown)),
        page.Section("Outliers", _outliers(shown)),
        page.Section("Classes that are several things", _several(shown)),
        page.Section("Classes that may be the same thing", _twins(shown)),
        page.Section("All classes", [_class_table(shown)]),
    ]
    features, splits = description["features"], ", ".join(findings.splits)
    title = f"Inspection: {dataset.manifest['title']}" if dataset.manifest.get("title") else "Inspection"
    subtitle = f"{counted(len(findings.labels), 'picture')} ({splits}), by the features of {features['model']}"
    write_bytes(path, page.render_page(title, subtitle, sections).encode())


class _Shown:
    """Names and pictures of the samples and classes of an inspection."""

    def __init__(self, dataset: ShardedDataset, findings: Findings) -> None:
        self.findings = findings
        self._dataset = dataset
        self._rows = split_rows(dataset, findings.splits)
        columns = ["key", "shard", "jpg_offset", "jpg_size"]
        self._tables = {split: dataset.index_table(split, columns) for split in findings.splits}
        classes = dataset.classes
        named = zip(classes["name"], classes["landmark_id"], strict=True)
        self.ids = [str(landmark_id) for landmark_id in classes["landmark_id"]]
        self.names = [name if isinstance(name, str) else str(landmark_id) for name, landmark_id in named]
        self._typical = np.nan_to_num(findings.by_label.own_similarity, nan=-1.0)

    def key(self, row: int) -> str:
        """Return the key of a sample."""
        split, place = self._place(row)
        return str(self._tables[split]["key"][place].as_py())

    def thumbnails(self, rows: Sequence[int] | NDArray[np.int64]) -> list[bytes]:
        """Return small pictures of samples."""
        return [self._thumbnail(int(row)) for row in rows]

    def sample(self, row: int) -> page.Side:
        """Return one sample, with its split."""
        return page.Side(self._place(row)[0], self.thumbnails([row]))

    def class_side(self, label: int, caption: str, without: int = -1) -> page.Side:
        """Return the most typical samples of a class, without one."""
        rows = np.flatnonzero(self.findings.labels == label)
        return page.Side(f"{caption}: {self.names[label]}", self.thumbnails(self.most_typical(rows[rows != without])))

    def most_typical(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the few of these samples that are most similar to the rest of their class."""
        return rows[np.argsort(-self._typical[rows], kind="stable")[:_SIDE]]

    def _place(self, row: int) -> tuple[str, int]:
        split = next(split for split, rows in self._rows.items() if row < rows.stop)
        return split, row - self._rows[split].start

    def _thumbnail(self, row: int) -> bytes:
        split, place = self._place(row)
        stored = self._tables[split].slice(place, 1).to_pylist()[0]
        jpeg = self._dataset.read_bytes(stored["shard"], stored["jpg_offset"], stored["jpg_size"])
        return page.thumbnail(jpeg, self._dataset.recipe.size, f"{self._dataset.location}: {stored['key']}")


def _summary(findings: Findings, description: dict[str, Any]) -> list[Markup]:
    counts, thresholds = description["counts"], description["thresholds"]
    share = counts["wrong_labels"] / max(1, counts["samples"])
    figures = [
        (f"{counts['wrong_labels']:,}", f"labels may be wrong, {share:.1%} of the pictures"),
        (f"{counts['outliers']:,}", "outliers, which fit no class"),
        (f"{counts['several']:,}", f"of {counts['classes']:,} classes are several things"),
        (f"{counts['twins']:,}", "classes may be the same thing as another"),
    ]
    features = description["features"]
    rows = [
        ("pictures", ", ".join(f"{number:,} {split}" for split, number in description["splits"].items())),
        ("network", f"{features['model']}, {features['weights_from']}, {counted(features['dim'], 'feature')}"),
        (
            "expected false alarms",
            f"{thresholds['false_alarms_among_flagged_samples']:.0%} of the flagged pictures, "
            f"{thresholds['false_alarms_among_classes']:.0%} of the classes that are in order",
        ),
        ("parts of a class count as several things from", f"{thresholds['parts_distance']:.2f} usual distances"),
        (
            "two classes may be the same thing below",
            f"{thresholds['twin_distance']:.2f} of the distance to the third nearest",
        ),
        ("content of the dataset", description["dataset"]),
    ]
    explanation = (
        "A figure here is a reason to look, not a verdict: the network sees what pictures look like, not what they "
        "show. The usual distance is the median squared distance between the means of different classes."
    )
    return [page.key_figures(figures), page.table(("what", "value"), rows), page.paragraph(explanation)]


def _wrong_labels(shown: _Shown) -> list[Markup]:
    judged, labels = shown.findings.by_label, shown.findings.labels
    rows = []
    for row in _worst(judged.wrong_label_score, judged.wrong_label, _NUM_SAMPLES):
        own, other = int(labels[row]), int(judged.other_label[row])
        score, own_similarity = judged.wrong_label_score[row], _cosine(judged.own_similarity[row])
        note = f"{shown.key(row)}: score {score:.2f}; similarity {own_similarity} to its own"
        sides = [shown.sample(row), shown.class_side(own, "labelled", row)]
        if other >= 0:
            note += f", {judged.other_similarity[row]:.2f} to the other"
            sides.append(shown.class_side(other, "fits better"))
        rows.append(page.Comparison(_pair(shown, own, "labelled", other, "more like"), note, sides))
    plot = score_plot(judged.wrong_label_score, judged.wrong_label, "score of a wrong label", "pictures")
    return [page.paragraph(_WRONG), plot, _rows(rows, "No label seems to be wrong.")]


def _outliers(shown: _Shown) -> list[Markup]:
    judged, labels = shown.findings.by_outlier, shown.findings.labels
    rows = []
    for row in _worst(judged.outlier_score, judged.outlier, _NUM_SAMPLES):
        own = int(labels[row])
        note = f"{shown.key(row)}: score {judged.outlier_score[row]:.2f}"
        rows.append(
            page.Comparison(shown.names[own], note, [shown.sample(row), shown.class_side(own, "its class", row)])
        )
    plot = score_plot(judged.outlier_score, judged.outlier, "score of an outlier", "pictures")
    return [page.paragraph(_OUTLYING), plot, _rows(rows, "Every picture is near some class.")]


def _several(shown: _Shown) -> list[Markup]:
    judged = shown.findings.by_class
    rows = []
    for label in _worst(judged.several_score, judged.several, _NUM_CLASSES):
        parts = judged.parts[label]
        sides = [
            page.Side(f"part {number}: {counted(len(part), 'picture')}", shown.thumbnails(shown.most_typical(part)))
            for number, part in enumerate(parts[:_MAX_SHOWN_PARTS], start=1)
        ]
        note = f"score {judged.several_score[label]:.2f}, {len(parts)} parts, purity {judged.purity[label]:.2f}"
        rows.append(page.Comparison(f"{shown.names[label]} ({shown.ids[label]})", note, sides))
    plot = score_plot(judged.several_score, judged.several, "distance of the parts of a class, as a score", "classes")
    return [page.paragraph(_SEVERAL), plot, _rows(rows, "No class seems to be several things.")]


def _twins(shown: _Shown) -> list[Markup]:
    judged = shown.findings.by_class
    rows, seen = [], set[frozenset[int]]()
    for label in _worst(judged.twin_score, judged.twin, 2 * _NUM_CLASSES):
        other = int(judged.twin_label[label])
        if (pair := frozenset((label, other))) in seen:
            continue
        seen.add(pair)
        note = f"score {judged.twin_score[label]:.2f}, similarity {judged.twin_similarity[label]:.2f}"
        if duplicates := int(judged.twin_duplicates[label]):
            note += f", {counted(duplicates, 'group')} of near duplicates shared"
        sides = [shown.class_side(label, shown.ids[label]), shown.class_side(other, shown.ids[other])]
        rows.append(page.Comparison(f"{shown.names[label]} and {shown.names[other]}", note, sides))
    plot = score_plot(judged.twin_score, judged.twin, "nearness of the nearest class, as a score", "classes")
    return [page.paragraph(_SAME), plot, _rows(rows[:_NUM_CLASSES], "No two classes seem to be the same thing.")]


def _class_table(shown: _Shown) -> Markup:
    findings, judged = shown.findings, shown.findings.by_class
    number = len(judged.cohesion)
    counts = [
        np.bincount(findings.labels[rows], minlength=number).tolist()
        for rows in (slice(None), findings.by_label.wrong_label, findings.by_outlier.outlier)
    ]
    ratios = [[page.Number(_cosine(value)) for value in column] for column in (judged.cohesion, judged.purity)]
    twins = [shown.ids[other] if flagged else "" for other, flagged in zip(judged.twin_label, judged.twin, strict=True)]
    parts = [page.Number(_cosine(value)) for value in judged.several_score]
    header = (
        "class",
        "landmark id",
        "pictures",
        "wrong labels",
        "outliers",
        "cohesion",
        "purity",
        "several",
        "parts",
        "twin",
    )
    columns = [shown.names, shown.ids, *counts, *ratios, parts, judged.clusters.tolist(), twins]
    return page.sortable_table(header, columns)


def _rows(rows: list[page.Comparison], nothing: str) -> Markup:
    return page.comparisons(rows) if rows else page.paragraph(nothing)


def _worst(scores: NDArray[np.float32], flagged: NDArray[np.bool_], number: int) -> list[int]:
    """Return the flagged ones with the highest scores, the first of equal ones first."""
    rows = np.flatnonzero(flagged)
    worst: list[int] = rows[np.argsort(-np.nan_to_num(scores[rows], nan=-1.0), kind="stable")[:number]].tolist()
    return worst


def _pair(shown: _Shown, own: int, is_own: str, other: int, is_other: str) -> str:
    text = f"{is_own} {shown.names[own]}"
    return text if other < 0 else f"{text}, {is_other} {shown.names[other]}"


def _cosine(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.2f}"
