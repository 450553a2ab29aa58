"""The folder of an inspection: what may be in it, its lock, and its tables, written whole or not at all."""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lmk_data.dataset import ShardedDataset
from lmk_data.dataset.inspection import (
    CLASSES,
    FEATURES,
    INSPECTION,
    PAGE,
    SAMPLES,
    class_quality_schema,
    samples_schema,
)
from lmk_data.errors import UserError
from lmk_data.leftovers import is_leftover
from lmk_data.system.files import atomic_file, check_no_link, file_lock, is_unfinished, make_folder, remove_durably
from lmk_data.system.files import write_bytes as write_file
from lmk_train.inspection.classes import ClassJudgement
from lmk_train.inspection.features import InspectedFeatures
from lmk_train.inspection.labels import LabelJudgement
from lmk_train.inspection.outliers import OutlierJudgement
from lmk_train.runs.plain_file import read_json

_LOCK = ".lock"
_ROW_GROUP = 1 << 17


@dataclass(frozen=True)
class Findings:
    """What an inspection found.

    Attributes:
        splits: the inspected splits, in order; samples are those of the first split in the order of its index, then of
            the next.
        labels: of the samples, int32 [N].
        by_label: the judgement of their labels.
        by_outlier: how far they are from all classes.
        by_class: the judgement of the K classes.
    """

    splits: tuple[str, ...]
    labels: NDArray[np.int32]
    by_label: LabelJudgement
    by_outlier: OutlierJudgement
    by_class: ClassJudgement


class _Features(msgspec.Struct):
    """What the features of an inspection were made of; None in a file that does not say."""

    key: str
    dataset: str | None = None
    model: str | None = None
    weights: str | None = None
    dim: int | None = None
    precision: str | None = None


class _Description(msgspec.Struct):
    dataset: str
    features: _Features


@contextmanager
def inspection_folder(out: Path, store: InspectedFeatures) -> Iterator[None]:
    """Hold the folder of an inspection, which is made if it is missing, while the block runs.

    Raises:
        UserError: another inspection is at work there, or the folder holds another one or other files.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: is not a folder; name another")
    make_folder(out)
    with file_lock(
        out / _LOCK,
        wait_seconds=0,
        busy=f"--out {out}: another inspection is at work there; wait for it, or name another",
    ):
        _check_same(out, store)
        yield


def _check_same(out: Path, store: InspectedFeatures) -> None:
    """Raise UserError if a folder holds something else than the inspection of these features."""
    ours = {INSPECTION, SAMPLES, CLASSES, PAGE, FEATURES, _LOCK}
    names = sorted(name for name in os.listdir(out) if not is_unfinished(name) and not is_leftover(name))
    if others := [name for name in names if name not in ours]:
        raise UserError(f"--out {out}: holds {others[0]}, which is not of an inspection; name another folder")
    keys = os.listdir(out / FEATURES) if (out / FEATURES).is_dir() else []
    described = None
    try:
        described = read_json(out / INSPECTION, _Description, "the description of an inspection").features
        keys.append(described.key)
    except FileNotFoundError:
        pass
    if any(key != store.key and not is_leftover(key) for key in keys):
        raise UserError(
            f"{out}: holds the inspection of {_difference(described, store)}; name another folder with --out, or "
            "remove this one"
        )


def _difference(described: _Features | None, store: InspectedFeatures) -> str:
    """Return in words what the features of another inspection were made of, unlike ours."""
    others = {
        "dataset": "another dataset",
        "model": "another model",
        "weights": "other weights: of another checkpoint, or before more training",
        "dim": "another number of features",
        "precision": "another precision",
    }
    for name, words in others.items():
        if described is not None and getattr(described, name) != store.source[name]:
            return words
    return "another dataset, model, weights or precision"


def write_findings(out: Path, dataset: ShardedDataset, findings: Findings, description: dict[str, Any]) -> None:
    """Write quality.parquet, classes-quality.parquet and, last, quality.json; equal findings give equal bytes."""
    remove_durably(out / INSPECTION)  # it says that the tables are whole and belong together
    _write_samples(out / SAMPLES, dataset, findings)
    _write_classes(out / CLASSES, dataset, findings)
    write_file(out / INSPECTION, json.dumps(description, indent=2).encode() + b"\n")


def split_rows(dataset: ShardedDataset, splits: Sequence[str]) -> dict[str, slice]:
    """Return the rows of each split among the samples of all of them."""
    bounds = np.cumsum([0, *(dataset.num_samples(split) for split in splits)]).tolist()
    return {split: slice(bounds[i], bounds[i + 1]) for i, split in enumerate(splits)}


def _write_samples(path: Path, dataset: ShardedDataset, findings: Findings) -> None:
    ids = _landmark_ids(dataset)
    schema, judged, far = samples_schema(ids.type), findings.by_label, findings.by_outlier
    check_no_link(path)
    with atomic_file(path) as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for split, rows in split_rows(dataset, findings.splits).items():
            other = pa.array(judged.other_label[rows], mask=judged.other_label[rows] < 0)
            labels = pa.array(findings.labels[rows])
            columns = {
                "key": dataset.index_table(split, ["key"])["key"],
                "split": pa.array([split]).dictionary_encode().take(pa.array(np.zeros(len(labels), np.int8))),
                "label": labels,
                "landmark_id": ids.take(labels),
                "own_similarity": _nullable(judged.own_similarity[rows]),
                "other_label": other,
                "other_landmark_id": ids.take(other),
                "other_similarity": _nullable(judged.other_similarity[rows]),
                "wrong_label_score": _nullable(judged.wrong_label_score[rows]),
                "wrong_label": pa.array(judged.wrong_label[rows]),
                "outlier_score": _nullable(far.outlier_score[rows]),
                "outlier": pa.array(far.outlier[rows]),
            }
            table = pa.table({name: column.cast(schema.field(name).type) for name, column in columns.items()}, schema)
            writer.write_table(table, row_group_size=_ROW_GROUP)


def _write_classes(path: Path, dataset: ShardedDataset, findings: Findings) -> None:
    ids, judged = _landmark_ids(dataset), findings.by_class
    twin = pa.array(judged.twin_label, mask=judged.twin_label < 0)
    num_classes = dataset.num_classes

    def counted(flags: NDArray[np.bool_]) -> NDArray[np.int64]:
        return np.bincount(findings.labels[flags], minlength=num_classes)

    columns = {
        "label": pa.array(np.arange(num_classes)),
        "landmark_id": ids,
        "num_samples": pa.array(np.bincount(findings.labels, minlength=num_classes)),
        "cohesion": _nullable(judged.cohesion),
        "purity": _nullable(judged.purity),
        "wrong_labels": pa.array(counted(findings.by_label.wrong_label)),
        "outliers": pa.array(counted(findings.by_outlier.outlier)),
        "clusters": pa.array(judged.clusters),
        "several_score": _nullable(judged.several_score),
        "several": pa.array(judged.several),
        "twin_label": twin,
        "twin_landmark_id": ids.take(twin),
        "twin_similarity": _nullable(judged.twin_similarity),
        "twin_duplicates": pa.array(judged.twin_duplicates, mask=judged.twin_label < 0),
        "twin_score": _nullable(judged.twin_score),
        "twin": pa.array(judged.twin),
    }
    schema = class_quality_schema(ids.type)
    table = pa.table({name: column.cast(schema.field(name).type) for name, column in columns.items()}, schema)
    check_no_link(path)
    with atomic_file(path) as file:
        pq.write_table(table, file, compression="zstd")


def _landmark_ids(dataset: ShardedDataset) -> pa.Array:
    """Return the landmark id of each label."""
    return pa.array(dataset.classes["landmark_id"].tolist())


def _nullable(values: NDArray[np.float32]) -> pa.Array:
    """Return floats with nulls in the places of NaN."""
    return pa.array(values, pa.float32(), from_pandas=True)
