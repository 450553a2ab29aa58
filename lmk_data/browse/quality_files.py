"""What an inspection says of a dataset: by sample, joined by key, and by class, joined by landmark id.

The inspection may be of the base of a view, or of an earlier version: samples that it lacks are not known.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

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
from lmk_data.dataset.inspection import CLASSES, FEATURES, INSPECTION, SAMPLES
from lmk_data.errors import UserError
from lmk_data.system.files import open_regular, read_bounded

_MAX_JSON_BYTES = 16 << 20
_MOST = 2**31 - 1
_MAX_DIM = 65_536
_FOLDER = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,150}")
_AGAIN = "run lmk-inspect again"
_SAMPLES: dict[str, Kind] = {
    "key": "text",
    "split": "text",
    "own_similarity": "real",
    "other_label": "whole",
    "other_similarity": "real",
    "wrong_label_score": "real",
    "wrong_label": "flag",
    "outlier_score": "real",
    "outlier": "flag",
}
_CLASSES: dict[str, Kind] = {
    "label": "whole",
    "landmark_id": "id",
    "purity": "real",
    "clusters": "whole",
    "several": "flag",
    "twin_label": "whole",
    "twin": "flag",
}


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

    def __init__(self, path: Path, samples: Samples, ids: pa.Array) -> None:
        self.path = path
        self._description = _read_description(path)
        table = _read_classes(path)
        labels = labels_by_id(table["landmark_id"], ids)
        self.classes = _by_label(path / CLASSES, table, labels, len(ids))
        self._read_samples(samples, labels)
        if not self.covered:
            raise UserError(f"--quality {path}: inspects no picture of this dataset; {_AGAIN} with it")

    def feature_files(self) -> dict[str, NDArray[np.float16]]:
        """Return the features of each split as memory-mapped arrays, float16 [M, D]; nothing if they were deleted.

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
                files[split] = _mapped(path, (num_samples, stated.dim))
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
        nullable = frozenset(
            {"own_similarity", "other_label", "other_similarity", "wrong_label_score", "outlier_score"}
        )
        try:
            table = read_columns(path, Declared(_SAMPLES, nullable, "the table of an inspection", _AGAIN))
            self._splits, self._starts = _split_starts(table["split"], self._description.splits)
            rows = self._rows(table["key"], samples)
            known = rows >= 0
            own = np.append(labels, np.int32(-1))  # for the place -1, which stands for null
            columns: dict[str, NDArray[Any]] = {
                "own_similarity": reals_of(table, "own_similarity", -1.01, 1.01),
                "other_similarity": reals_of(table, "other_similarity", -1.01, 1.01),
                "score": reals_of(table, "wrong_label_score", 0, 1),
                "outlier_score": reals_of(table, "outlier_score", 0, 1),
                "other": own[column_of(table, "other_label", 0, len(labels) - 1)],
                "wrong": table["wrong_label"].to_numpy(),
                "outlier": table["outlier"].to_numpy(),
            }
        except FileNotFoundError:
            raise UserError(f"{path}: no such file; {_AGAIN}") from None
        except (ValueError, pa.ArrowException) as error:
            raise UserError(f"{path}: {one_line(error)}; {_AGAIN}") from None
        self.covered = int(known.sum())
        scattered = {name: _scattered(column, rows, known, len(samples)) for name, column in columns.items()}
        self.own_similarity, self.other_similarity = scattered["own_similarity"], scattered["other_similarity"]
        self.score, self.outlier_score = scattered["score"], scattered["outlier_score"]
        self.other, self.wrong, self.outlier = scattered["other"], scattered["wrong"], scattered["outlier"]
        self._places = np.full(len(samples), -1, dtype=np.int32)
        self._places[rows[known]] = np.flatnonzero(known).astype(np.int32)

    def _rows(self, keys: pa.ChunkedArray, samples: Samples) -> NDArray[np.int32]:
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


def _read_classes(path: Path) -> pa.Table:
    location = path / CLASSES
    try:
        nullable = frozenset({"purity", "clusters", "twin_label"})
        table = read_columns(location, Declared(_CLASSES, nullable, "the classes of an inspection", _AGAIN))
    except FileNotFoundError:
        raise UserError(f"{location}: no such file; {_AGAIN}") from None
    if not np.array_equal(table["label"].to_numpy(), np.arange(len(table))):
        raise UserError(f"{location}: its labels are not 0, 1, 2 and so on; {_AGAIN}")
    if pc.count_distinct(table["landmark_id"]).as_py() != len(table):
        raise UserError(f"{location}: a landmark_id occurs twice; {_AGAIN}")
    return table


def _by_label(path: Path, table: pa.Table, labels: NDArray[np.int32], num_classes: int) -> ClassQuality:
    """Return what the table of classes says by label of the dataset; `labels` has that of each row, int32, or -1."""
    try:
        twin = column_of(table, "twin_label", 0, len(labels) - 1)
        columns: dict[str, NDArray[Any]] = {
            "purity": reals_of(table, "purity", 0, 1),
            "clusters": column_of(table, "clusters", 0, _MOST),
            "several": table["several"].to_numpy(),
        }
    except (ValueError, pa.ArrowException) as error:
        raise UserError(f"{path}: {one_line(error)}; {_AGAIN}") from None
    columns["twin"] = np.where(table["twin"].to_numpy(), np.append(labels, np.int32(-1))[twin], np.int32(-1))
    known = labels >= 0
    return ClassQuality(**{name: _scattered(column, labels, known, num_classes) for name, column in columns.items()})


def _scattered(column: NDArray[Any], rows: NDArray[np.int32], known: NDArray[np.bool_], num_rows: int) -> NDArray[Any]:
    """Return a column in another order, [num_rows]: NaN, -1 or False in rows that are not in `rows`."""
    empty = {"f": np.nan, "i": -1, "b": False}[column.dtype.kind]
    scattered = np.full(num_rows, empty, dtype=column.dtype)
    scattered[rows[known]] = column[known]
    return scattered


def _split_starts(splits: pa.ChunkedArray, stated: dict[str, int]) -> tuple[list[str], NDArray[np.int64]]:
    """Return the splits of a table that is ordered by split, and their first rows and the end, int64 [S + 1].

    Raises ValueError unless the splits are together and have as many rows as the inspection states.
    """
    names: list[str] = []
    counts: list[int] = []
    codes = splits.combine_chunks().dictionary_encode()
    numbers = codes.indices.to_numpy()
    starts = np.flatnonzero(np.diff(numbers, prepend=-1))
    if len(starts) > len(SPLITS):
        raise ValueError("its rows are not in the order of the splits")
    for start, end in zip(starts.tolist(), [*starts[1:].tolist(), len(numbers)], strict=True):
        names.append(codes.dictionary[int(numbers[start])].as_py())
        counts.append(end - start)
    if len(set(names)) != len(names) or dict(zip(names, counts, strict=True)) != {k: n for k, n in stated.items() if n}:
        raise ValueError("its splits are not those that quality.json states")
    return names, np.cumsum([0, *counts])


def _mapped(path: Path, shape: tuple[int, int]) -> NDArray[np.float16]:
    """Return a file of features as a memory-mapped array. Raises UserError unless it has this shape, in float16."""
    try:
        open_regular(path).close()  # NumPy would wait for somebody to write into a FIFO
        array: NDArray[np.float16] = np.load(path, mmap_mode="r", allow_pickle=False)
        if array.dtype != np.float16 or array.shape != shape:
            raise ValueError(f"{array.dtype} {array.shape} instead of float16 {shape}")
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: not the features of an inspection ({one_line(error)}); {_AGAIN}") from None
    return array
