"""Files of a run and of an inspection of a small dataset, whose content a test knows."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lmk_data.browse.catalogue import Catalogue
from lmk_data.dataset import ShardedDataset
from lmk_data.dataset.inspection import (
    CLASSES,
    FEATURES,
    INSPECTION,
    SAMPLES,
    class_quality_schema,
    samples_schema,
)
from lmk_data.views.marks import MarksFile

ELSEWHERE = 999_999  # a landmark that the run knows and the dataset does not
DIM = 8
Columns = dict[str, NDArray[np.object_]]


def edit(path: Path, change: Callable[[Columns], object]) -> None:
    """Change values of a Parquet file in place; its columns keep their types, and those that are removed go."""
    table = pq.read_table(path)
    columns = {name: np.array(table[name].to_pylist(), dtype=object) for name in table.column_names}
    change(columns)
    schema = pa.schema([table.schema.field(name) for name in columns])
    arrays = {name: pa.array(columns[name].tolist(), schema.field(name).type) for name in columns}
    pq.write_table(pa.table(arrays, schema=schema), path)


def write_run(dataset: ShardedDataset, run: Path, wrong: dict[str, int], split: str = "val") -> None:
    """Write the evaluation of a split: every label is predicted rightly except for the keys of `wrong`.

    `wrong` has landmark ids. The run has the classes in the opposite order, and one more.
    """
    run.mkdir(parents=True, exist_ok=True)
    ids = [*reversed(dataset.classes["landmark_id"].tolist()), ELSEWHERE]
    index = dataset.index(split, ["key", "landmark_id"])
    right = [ids.index(landmark_id) for landmark_id in index["landmark_id"]]
    keys = index["key"].tolist()
    best = [ids.index(wrong[key]) if key in wrong else label for key, label in zip(keys, right, strict=True)]
    count = len(keys)
    columns: dict[str, Any] = {"key": keys, "target": np.array(right, np.int32)}
    for place in range(5):
        columns[f"label_{place + 1}"] = ((np.array(best) + place) % len(ids)).astype(np.int32)
        columns[f"probability_{place + 1}"] = np.full(count, (0.6, 0.2, 0.1, 0.05, 0.02)[place], np.float32)
    order = np.random.default_rng(0).permutation(count)  # as several ranks write it
    pq.write_table(pa.table(columns).take(pa.array(order)), run / f"predictions-{split}.parquet")
    support = np.bincount(right, minlength=len(ids))
    per_class = {
        "label": np.arange(len(ids)),
        "landmark_id": ids,
        "name": pa.nulls(len(ids), pa.string()),
        "support": support,
        "f1": np.where(support > 0, np.linspace(0, 1, len(ids)), 0.0),
    }
    pq.write_table(pa.table(per_class), run / f"per-class-{split}.parquet")


def write_quality(dataset: ShardedDataset, out: Path, suspects: dict[str, int], outliers: set[str]) -> None:
    """Write the inspection of all splits: `suspects` have a proposed landmark id. The first two classes are twins.

    The features of a picture are those of its class with a little noise, of a suspect those of its proposed class.
    """
    ids = dataset.classes["landmark_id"].tolist()
    landmark_id = pa.int64() if isinstance(ids[0], int) else pa.string()
    folder = out / FEATURES / "drawn-key"
    folder.mkdir(parents=True, exist_ok=True)
    rng, tables = np.random.default_rng(0), []
    for split in dataset.splits:
        index = dataset.index(split, ["key", "label", "landmark_id"])
        keys, label = index["key"].tolist(), index["label"].to_numpy()
        proposed = np.array([ids.index(suspects[key]) if key in suspects else -1 for key in keys])
        suspect = proposed >= 0
        other = np.where(suspect, proposed, (label + 1) % len(ids)).astype(np.int32)
        np.save(folder / f"{split}.npy", features(np.where(suspect, proposed, label), rng))
        outlier = np.array([key in outliers for key in keys])
        columns = {
            "key": keys,
            "split": [split] * len(keys),
            "label": label,
            "landmark_id": index["landmark_id"].tolist(),
            "own_similarity": np.where(suspect, 0.2, 0.9),
            "other_label": other,
            "other_landmark_id": [ids[place] for place in other],
            "other_similarity": np.where(suspect, 0.8, 0.1),
            "wrong_label_score": np.where(suspect, 0.99, rng.random(len(keys)) / 2),
            "wrong_label": suspect,
            "outlier_score": np.where(outlier, 0.98, 0.1),
            "outlier": outlier,
        }
        tables.append(pa.table(columns).cast(samples_schema(landmark_id)))
    pq.write_table(pa.concat_tables(tables), out / SAMPLES)
    count = len(ids)
    twin = np.array([1, 0, *[-1] * (count - 2)])
    per_class = {
        "label": np.arange(count),
        "landmark_id": ids,
        "num_samples": dataset.classes["listed"].to_numpy(),
        **dict.fromkeys(("cohesion", "several_score", "twin_similarity", "twin_score"), np.full(count, 0.5)),
        "purity": np.linspace(1, 0.5, count),
        **dict.fromkeys(("wrong_labels", "outliers", "twin_duplicates"), np.zeros(count, np.int32)),
        "clusters": np.where(np.arange(count) == 2, 3, 1),
        "several": np.arange(count) == 2,
        "twin_label": pa.array(twin, mask=twin < 0),
        "twin_landmark_id": pa.array([ids[place] for place in twin], mask=twin < 0),
        "twin": twin >= 0,
    }
    schema = class_quality_schema(landmark_id)
    pq.write_table(pa.table({name: per_class[name] for name in schema.names}).cast(schema), out / CLASSES)
    stated = {
        "dataset": dataset.manifest["content_sha256"],
        "splits": {split: dataset.num_samples(split) for split in dataset.splits},
        "features": {"key": "drawn-key", "model": "drawn", "weights": "none", "dim": DIM},
    }
    (out / INSPECTION).write_text(json.dumps(stated))


def features(classes: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.float16]:
    """Return features of pictures of these classes, float16 [N, 8] of length 1."""
    drawn = np.eye(DIM)[classes] + 0.1 * rng.standard_normal((len(classes), DIM))
    return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float16)


class Opened:
    """The edited dataset with all files: two suspects, an outlier, and two wrong predictions of the same pair."""

    def __init__(self, path: Path, out: Path) -> None:
        self.dataset = ShardedDataset.open(path)
        self.ids = self.dataset.classes["landmark_id"].tolist()
        train, val = (self.dataset.index(split) for split in ("train", "val"))
        self.suspects = dict(
            zip(train.loc[train["label"] == 0, "key"].iloc[:2], [self.ids[1], self.ids[3]], strict=True)
        )
        self.outlier = train["key"].iloc[-1]
        self.wrong = dict.fromkeys(val.loc[val["label"] == 0, "key"].iloc[:2], self.ids[1])
        self.run, self.quality, self.marks = out / "run", out / "quality", out / "my marks.csv"
        write_run(self.dataset, self.run, {**self.wrong, val.loc[val["label"] == 1, "key"].iloc[0]: ELSEWHERE})
        write_quality(self.dataset, self.quality, self.suspects, {self.outlier})

    def open(self, dataset: ShardedDataset | None = None) -> Catalogue:
        marks = MarksFile(self.marks)
        return Catalogue.open(dataset or self.dataset, run=self.run, quality=self.quality, marks=marks)
