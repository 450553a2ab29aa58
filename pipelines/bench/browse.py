"""Measure `lmk-shard browse` on a large dataset: opening, pages and queries, in seconds, milliseconds and megabytes.

    python -m pipelines.bench.browse DATASET [--out DIR] [--dim 1280]

DATASET is a dataset such as `pipelines.bench.full_scale` makes. The files of a run and of an inspection of all of its
samples are drawn: predictions of val and test, 80 % of them right, and scores with 2 % suspects. The features are a
hole, except those of the largest class. Everything is measured in a process of its own, each query three times with
other arguments: the median is shown, and the first call if it reads columns.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lmk_data.browse.catalogue import Catalogue
from lmk_data.browse.records import ClassQuery, GroupQuery, PictureQuery
from lmk_data.dataset import ShardedDataset
from lmk_data.dataset.evaluation import per_class_name, predictions_name
from lmk_data.dataset.inspection import (
    CLASSES,
    FEATURES,
    INSPECTION,
    SAMPLES,
    class_quality_schema,
    samples_schema,
)
from lmk_data.views.marks import Mark, MarksFile

_KEY = "drawn"
_PAGE = 200
_MARKS = 10_000


def write_run(dataset: ShardedDataset, out: Path) -> None:
    """Write drawn evaluations of val and test into the folder of a run."""
    out.mkdir(parents=True, exist_ok=True)
    rng, num_classes = np.random.default_rng(0), dataset.num_classes
    for split in dataset.splits[1:]:
        index = dataset.index_table(split, ["key", "label"])
        target = index["label"].to_numpy()
        columns = {"key": index["key"], "target": target}
        right = rng.random(len(target)) < 0.8
        probability = np.sort(rng.dirichlet(np.ones(6), len(target))[:, :5].astype(np.float32))[:, ::-1]
        for place in range(5):
            label = rng.integers(0, num_classes, len(target), dtype=np.int32)
            columns[f"label_{place + 1}"] = np.where(right, target, label) if place == 0 else label
            columns[f"probability_{place + 1}"] = probability[:, place]
        pq.write_table(pa.table(columns), out / predictions_name(split), compression="zstd")
        per_class = {
            "label": np.arange(num_classes),
            "landmark_id": pa.array(dataset.classes["landmark_id"].tolist()),
            "name": pa.array(dataset.classes["name"].tolist(), pa.string()),
            "support": np.bincount(target, minlength=num_classes),
            "f1": rng.random(num_classes),
        }
        pq.write_table(pa.table(per_class), out / per_class_name(split), compression="zstd")


def write_quality(dataset: ShardedDataset, out: Path, dim: int) -> None:
    """Write a drawn inspection of all splits; its features are a hole except those of the largest class."""
    rng, ids = np.random.default_rng(1), dataset.classes["landmark_id"].to_numpy()
    landmark_id = pa.int64() if ids.dtype == np.int64 else pa.string()
    folder = out / FEATURES / _KEY
    folder.mkdir(parents=True, exist_ok=True)
    tables = []
    for split in dataset.splits:
        index = dataset.index_table(split, ["key", "label"])
        labels = index["label"].to_numpy()
        columns = _drawn_samples(index["key"], labels, split, ids, rng)
        tables.append(pa.table(columns).cast(samples_schema(landmark_id)))
        features = np.lib.format.open_memmap(folder / f"{split}.npy", "w+", np.float16, (len(labels), dim))
        rows = np.flatnonzero(labels == 0)
        features[rows] = (rng.standard_normal((len(rows), dim)) / dim**0.5).astype(np.float16)
    pq.write_table(pa.concat_tables(tables), out / SAMPLES, compression="zstd")
    pq.write_table(_drawn_classes(dataset, ids, rng).cast(class_quality_schema(landmark_id)), out / CLASSES)
    stated = {
        "dataset": dataset.manifest["content_sha256"],
        "splits": {split: dataset.num_samples(split) for split in dataset.splits},
        "features": {"key": _KEY, "model": "drawn", "weights": "none", "dim": dim},
        "thresholds": {},
    }
    (out / INSPECTION).write_text(json.dumps(stated))


def _drawn_samples(
    keys: pa.ChunkedArray, labels: NDArray[np.int32], split: str, ids: NDArray[np.int64], rng: np.random.Generator
) -> dict[str, object]:
    count = len(labels)
    other = rng.integers(0, len(ids), count, dtype=np.int32)
    score, outlier = rng.random(count, dtype=np.float32), rng.random(count, dtype=np.float32)
    return {
        "key": keys,
        "split": pa.array([split]).take(pa.array(np.zeros(count, np.int64))),
        "label": labels,
        "landmark_id": ids[labels],
        "own_similarity": rng.random(count, dtype=np.float32),
        "other_label": other,
        "other_landmark_id": ids[other],
        "other_similarity": rng.random(count, dtype=np.float32),
        "wrong_label_score": score,
        "wrong_label": score > 0.98,
        "outlier_score": outlier,
        "outlier": outlier > 0.99,
    }


def _drawn_classes(dataset: ShardedDataset, ids: NDArray[np.int64], rng: np.random.Generator) -> pa.Table:
    count = len(ids)
    twin = rng.integers(0, count, count, dtype=np.int32)
    zeros = np.zeros(count, np.int32)
    return pa.table(
        {
            "label": np.arange(count, dtype=np.int32),
            "landmark_id": ids,
            "num_samples": dataset.classes["listed"].to_numpy(np.int32),
            "cohesion": rng.random(count, dtype=np.float32),
            "purity": rng.random(count, dtype=np.float32),
            "wrong_labels": zeros,
            "outliers": zeros,
            "clusters": rng.integers(1, 4, count, dtype=np.int32),
            "several_score": rng.random(count, dtype=np.float32),
            "several": rng.random(count) < 0.01,
            "twin_label": twin,
            "twin_landmark_id": ids[twin],
            "twin_similarity": rng.random(count, dtype=np.float32),
            "twin_duplicates": zeros,
            "twin_score": rng.random(count, dtype=np.float32),
            "twin": rng.random(count) < 0.01,
        }
    )


def measure(path: str, out: Path, started: float) -> list[dict[str, object]]:
    """Open a dataset with all files, query it, and return one row per step. The process was started at `started`."""
    (out / "marks.csv").unlink(missing_ok=True)
    rows: list[dict[str, object]] = []
    dataset = ShardedDataset.open(path)
    marks = MarksFile(out / "marks.csv")
    catalogue = Catalogue.open(dataset, run=out / "run", quality=out / "quality", marks=marks)
    catalogue.facts()
    rows.append(_row("start Python and open, with a run and an inspection", time.time() - started))
    rows.append(_row("the processor's time of that", time.process_time()))
    started = time.perf_counter()
    catalogue.warm()
    rows.append(_row("exact duplicates, in the background", time.perf_counter() - started))
    for what, query in _queries(catalogue):
        rows.append(_row(what, *_timed(query)))
    return rows


def _queries(catalogue: Catalogue) -> list[tuple[str, Callable[[int], object]]]:
    """Return what is measured: a name, and a query that takes the number of the repetition."""

    def with_jpegs(query: PictureQuery) -> None:
        for picture in catalogue.pictures(query).items:
            catalogue.jpeg(picture.key)

    largest = catalogue.classes(ClassQuery(page_size=3)).items
    key = catalogue.pictures(PictureQuery(label=0, page_size=9)).items
    every = catalogue.keys(PictureQuery(label=0)) + catalogue.keys(PictureQuery(label=1))
    every += [picture.key for page in range(12) for picture in catalogue.pictures(_suspects(page)).items]
    return [
        ("classes, 100 by size", lambda i: catalogue.classes(ClassQuery(page=i))),
        ("classes, searched", lambda i: catalogue.classes(ClassQuery(search=str(12 + i)))),
        (
            "classes by suspects, filtered",
            lambda i: catalogue.classes(ClassQuery(sort="suspects", filters=("several",))),
        ),
        ("complete a name", lambda i: catalogue.complete(str(12 + i))),
        ("a class", catalogue.class_row),
        (f"{_PAGE} pictures of a class", lambda i: catalogue.pictures(PictureQuery(label=largest[i].label))),
        (f"{_PAGE} pictures with their JPEGs", lambda i: with_jpegs(PictureQuery(label=largest[i].label))),
        (f"{_PAGE} of all pictures at random", lambda i: catalogue.pictures(PictureQuery(sort="random", seed=i))),
        (f"{_PAGE} suspects with their JPEGs", lambda i: with_jpegs(_suspects(i))),
        ("queues", lambda _: catalogue.queue_names()),
        ("20 groups of duplicates", lambda i: catalogue.groups(GroupQuery("duplicates", page=i))),
        ("20 confusions", lambda i: catalogue.groups(GroupQuery("confusions", page=i))),
        ("a picture, its neighbours and duplicates", lambda i: catalogue.picture(key[i].key)),
        ("mark one", lambda i: catalogue.mark({key[i].key: Mark("exclude")})),
        (f"mark {_MARKS:,}", lambda i: catalogue.mark(dict.fromkeys(every[i:_MARKS], Mark("exclude")))),
        ("mark one more", lambda i: (catalogue.mark({key[i].key: None}), catalogue.facts())),
    ]


def _suspects(page: int) -> PictureQuery:
    return PictureQuery(queue="suspects", page=page, page_size=_PAGE)


def _timed(query: Callable[[int], object]) -> tuple[float, float]:
    """Return the median of three repetitions and the first of them, in seconds."""
    times = []
    for i in range(3):
        started = time.perf_counter()
        query(i)
        times.append(time.perf_counter() - started)
    return median(times), times[0]


def _row(what: str, seconds: float, first: float | None = None) -> dict[str, object]:
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    row: dict[str, object] = {"what": what, "milliseconds": round(1000 * seconds), "peak_mb": peak_mb}
    return row if first is None else {**row, "first": round(1000 * first)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("--out", type=Path, default=Path("bench-browse"))
    parser.add_argument("--dim", type=int, default=1280)
    parser.add_argument("--started", type=float, help="measure a process that was started at this time")
    arguments = parser.parse_args()
    if arguments.started is not None:
        print(json.dumps(measure(arguments.dataset, arguments.out, arguments.started)))
        return
    if not (arguments.out / "quality" / INSPECTION).exists():
        dataset = ShardedDataset.open(arguments.dataset)
        write_run(dataset, arguments.out / "run")
        write_quality(dataset, arguments.out / "quality", arguments.dim)
    command = [*sys.orig_argv, "--started", repr(time.time())]
    rows = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    print("| step | milliseconds | the first time | peak MB |\n|---|---:|---:|---:|")
    for row in rows:
        print(f"| {row['what']} | {row['milliseconds']:,} | {row.get('first', '')} | {row['peak_mb']} |")
    (arguments.out / "browse.json").write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
