"""What an inspection says of a dataset: by sample, joined by key, and by class, joined by landmark id.

The inspection may be of the base of a view, or of an earlier version: samples that it lacks are not known.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lmk_data.browse.feature_file import FeatureFile
from lmk_data.browse.samples import Samples
from lmk_data.browse.tables import (
    Column,
    Declared,
    check_labels,
    labels_by_id,
    read_columns,
    rows_of_keys,
)
from lmk_data.dataset.format import SPLITS
from lmk_data.dataset.inspection import CLASSES, FEATURES, INSPECTION, SAMPLES
from lmk_data.errors import UserError, one_line
from lmk_data.system.files import read_bounded

_MAX_JSON_BYTES = 16 << 20
_MAX_DIM = 65_536
_FOLDER = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,150}")
_AGAIN = "run lmk-inspect again"
_SIMILARITY = Column("real", -1.01, 1.01, nullable=True)  # of float16 features
_SCORE = Column("real", 0, 1, nullable=True)
_CLASSES = Declared(
    {
        "label": Column("whole"),
        "landmark_id": Column("id"),
        "purity": Column("real", 0, 1, nullable=True),
        "clusters": Column("whole", nullable=True),
        "several": Column("flag"),
        "twin_label": Column("whole", nullable=True),
        "twin": Column("flag"),
    },
    "the classes of an inspection",
    _AGAIN,
)


class _Features(msgspec.Struct):
    key: Annotated[str, msgspec.Meta(max_length=200)]
    dim: Annotated[int, msgspec.Meta(ge=1, le=_MAX_DIM)]


class _Description(msgspec.Struct):
    """What quality.json has at least."""

    dataset: Annotated[str, msgspec.Meta(max_length=200)]
    splits: dict[str, Annotated[int, msgspec.Meta(ge=0)]]
    features: _Features | None = None


@dataclass(frozen=True, slots=True)
class ClassQuality:
    """What an inspection says of K classes: NaN, 0, False and -1 where it does not know the class.

    purity float32, clusters int32, several bool, twin int32 (a label of the dataset), each [K].
    """

    purity: NDArray[np.float32]
    clusters: NDArray[np.int32]
    several: NDArray[np.bool_]
    twin: NDArray[np.int32]


class QualityFiles:
    """What an inspection says of N samples of a dataset with K classes; NaN, -1 and False where it lacks a sample.

    Attributes:
        path: the folder of the inspection.
        covered: how many samples it has.
        own_similarity, other_similarity, score, outlier_score: float32 [N]; `score` is wrong_label_score.
        other: the class that fits best among the others, int32 [N], a label of the dataset.
        wrong, outlier: bool [N].
        classes: by label of the dataset.
    """

    def __init__(self, path: Path, samples: Samples, ids: pa.LargeStringArray) -> None:
        self.path = path
        self._description = _read_description(path)
        read = read_columns(path / CLASSES, _CLASSES)
        check_labels(path / CLASSES, read, _AGAIN)
        labels = labels_by_id(read["landmark_id"], ids)
        self.classes = _by_label(path / CLASSES, read, labels, len(ids))
        self._read_samples(samples, labels)
        if not self.covered:
            raise UserError(f"--quality {path}: inspects no picture of this dataset; {_AGAIN} with it")

    def feature_files(self) -> dict[str, FeatureFile]:
        """Return the features of each split; nothing if they were deleted.

        Raises UserError for a file that is not what the inspection states.
        """
        stated = self._description.features
        if stated is None:
            return {}
        if not _FOLDER.fullmatch(stated.key):
            raise UserError(f"{self.path / INSPECTION}: features.key is no name of a folder; {_AGAIN}")
        files = {}
        for split, num_samples in self._description.splits.items():
            path = self.path / FEATURES / stated.key / f"{split}.npy"
            if path.exists():
                files[split] = FeatureFile(path, (num_samples, stated.dim), _AGAIN)
        return files

    def feature_place(self, row: int) -> tuple[str, int] | None:
        """Return the split and the row in its features of a sample; None for one that was not inspected."""
        place = int(self._places[row])
        if place < 0:
            return None
        number = int(np.searchsorted(self._starts, place, side="right")) - 1
        return self._splits[number], place - int(self._starts[number])

    def feature_places(self, rows: NDArray[np.int32], split: str) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Return those of M rows that were inspected in a split, and their rows in its features."""
        number = self._splits.index(split)
        places = self._places[rows]
        inside = (places >= self._starts[number]) & (places < self._starts[number + 1])
        return rows[inside], places[inside].astype(np.int64) - int(self._starts[number])

    def _read_samples(self, samples: Samples, labels: NDArray[np.int32]) -> None:
        path = self.path / SAMPLES
        stated = {split: count for split, count in self._description.splits.items() if count}
        is_same = self._description.dataset == samples.content_sha256 and stated.items() <= samples.counts().items()
        read = read_columns(path, _declared_samples(len(labels), "label" if is_same else "key"))
        runs = read.pop("split")
        if len({name for name, _ in runs}) != len(runs) or dict(runs) != stated:
            raise UserError(f"{path}: its splits are not those that {INSPECTION} states; {_AGAIN}")
        self._splits, self._starts = [name for name, _ in runs], np.cumsum([0, *(count for _, count in runs)])
        if is_same:  # the rows are those of the dataset: reading the keys would take most of the time and memory
            ranges = [np.arange(*samples.range_of(split), dtype=np.int32) for split in self._splits]
            rows = np.concatenate([np.empty(0, np.int32), *ranges])
            if not np.array_equal(read.pop("label"), samples.labels[rows]):
                raise UserError(f"{path}: its labels are not those of the dataset that {INSPECTION} names; {_AGAIN}")
        else:
            rows = self._rows(read.pop("key"), samples)
        known = rows >= 0
        self.covered = int(known.sum())
        read["other_label"] = np.append(labels, np.int32(-1))[read["other_label"]]  # the place -1 stands for null
        places = np.arange(len(rows), dtype=np.int32)
        columns = {name: _scattered(read.pop(name), rows, known, len(samples)) for name in [*read]}
        self.own_similarity, self.other_similarity = columns["own_similarity"], columns["other_similarity"]
        self.score, self.outlier_score = columns["wrong_label_score"], columns["outlier_score"]
        self.other, self.wrong, self.outlier = columns["other_label"], columns["wrong_label"], columns["outlier"]
        self._places = _scattered(places, rows, known, len(samples))

    def _rows(self, keys: pa.LargeStringArray, samples: Samples) -> NDArray[np.int32]:
        """Return the row of each key of the table, int32 [M]; -1 for other keys."""
        parts = [np.empty(0, np.int32)]
        for number, split in enumerate(self._splits):
            start, end = int(self._starts[number]), int(self._starts[number + 1])
            parts.append(rows_of_keys(samples.keys, keys.slice(start, end - start), samples.range_of(split)[0]))
        return np.concatenate(parts)


def _read_description(path: Path) -> _Description:
    location = path / INSPECTION
    try:
        value = json.loads(read_bounded(str(location), _MAX_JSON_BYTES))
        description = msgspec.convert(value, _Description)
        if unknown := set(description.splits) - set(SPLITS):
            raise ValueError(f"{min(unknown)!r} is no split")
    except FileNotFoundError:
        raise UserError(f"--quality {path}: not an inspection; give the folder that lmk-inspect wrote") from None
    except (OSError, ValueError, RecursionError, msgspec.ValidationError) as error:
        raise UserError(f"{location}: not the description of an inspection ({one_line(error)}); {_AGAIN}") from None
    return description


def _declared_samples(num_classes: int, joined_by: Literal["key", "label"]) -> Declared:
    columns = {
        joined_by: Column("text" if joined_by == "key" else "whole"),
        "split": Column("runs"),
        "own_similarity": _SIMILARITY,
        "other_label": Column("whole", 0, num_classes - 1, nullable=True),
        "other_similarity": _SIMILARITY,
        "wrong_label_score": _SCORE,
        "wrong_label": Column("flag"),
        "outlier_score": _SCORE,
        "outlier": Column("flag"),
    }
    return Declared(columns, "the samples of an inspection", _AGAIN)


def _by_label(path: Path, read: dict[str, Any], labels: NDArray[np.int32], num_classes: int) -> ClassQuality:
    """Return what the table of classes says by label of the dataset; `labels` has that of each row, int32, or -1."""
    twin = read["twin_label"]
    if len(twin) and twin.max() >= len(labels):
        raise UserError(f"{path}: a twin_label is out of range; {_AGAIN}")
    known = labels >= 0
    columns = {name: read[name] for name in ("purity", "clusters", "several")}
    columns["twin"] = np.where(read["twin"], np.append(labels, np.int32(-1))[twin], np.int32(-1))
    return ClassQuality(**{name: _scattered(column, labels, known, num_classes) for name, column in columns.items()})


def _scattered(column: NDArray[Any], rows: NDArray[np.int32], known: NDArray[np.bool_], num_rows: int) -> NDArray[Any]:
    """Return a column in another order, [num_rows]: NaN, -1 or False in rows that are not in `rows`."""
    empty = {"f": np.nan, "i": -1, "b": False}[column.dtype.kind]
    scattered = np.full(num_rows, empty, dtype=column.dtype)
    scattered[rows[known]] = column[known]
    return scattered
