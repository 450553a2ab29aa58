"""Files of an evaluation as a stranger may have written them."""

import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lmk_data.errors import UserError
from lmk_train.evaluation.evaluation_files import read_evaluation, read_sweep, read_tables
from lmk_train.runs.folder import RunFolder

EVALUATION = {
    **{"dataset": "0" * 64, "trained_on": "0" * 64, "shards": "shards", "checkpoint": "best"},
    **{"num_samples": 2, "accuracy": 0.5, "top5_accuracy": 1.0, "macro_f1": None, "gap": 0.5, "num_unknown": 0},
}
PREDICTIONS = {"key": ["a", "b"], "target": [0, None], "label_1": [0, 1], "probability_1": [0.5, 0.5]}
PER_CLASS = {
    **{"label": [0, 1], "landmark_id": [7, 9], "name": ["tower", None]},
    **{key: [1, 1] for key in ("train", "support", "predicted", "correct")},
    **{key: [0.5, 0.5] for key in ("precision", "recall", "f1")},
}
CONFUSION = {"target": [0], "prediction": [1], "count": [1]}


def written(run: Path, **changes: dict[str, Any]) -> RunFolder:
    folder = RunFolder(run)
    for name, table in (("predictions", PREDICTIONS), ("per_class", PER_CLASS), ("confusion", CONFUSION)):
        columns = {key: value for key, value in {**table, **changes.get(name, {})}.items() if value is not None}
        pq.write_table(pa.table(columns), getattr(folder, name)("val"))
    return folder


def test_tables_that_fit_are_read(tmp_path: Path) -> None:
    predictions, classes, confusion = read_tables(written(tmp_path), "val")
    assert [len(predictions), len(classes), len(confusion)] == [2, 2, 1]


@pytest.mark.parametrize(
    "change",
    [
        {"predictions": {"key": None}},
        {"predictions": {"key": [1, 2]}},
        {"predictions": {"key": ["a", None]}},
        {"predictions": {"label_1": [0, 2]}},
        {"predictions": {"target": [-1, None]}},
        {"predictions": {"probability_1": ["x", "y"]}},
        {"per_class": {"label": [1, 0]}},
        {"per_class": {"landmark_id": [[7], [9]]}},
        {"per_class": {"f1": [0.5, None]}},
        {"per_class": {"train": None}},
        {"per_class": {"train": [-1, 1]}},
        {"per_class": {"support": [0, 0]}},
        {"confusion": {"prediction": [2]}},
        {"confusion": {"count": [0.5]}},
    ],
)
def test_tables_that_do_not_fit_are_refused(tmp_path: Path, change: dict[str, dict[str, Any]]) -> None:
    with pytest.raises(UserError, match=rf"{tmp_path}/.*-val\.parquet: .*; evaluate the split again"):
        read_tables(written(tmp_path, **change), "val")


@pytest.mark.parametrize("how", ["damaged", "absent", "pipe"])
@pytest.mark.parametrize("name", ["predictions", "per_class", "confusion"])
def test_files_that_are_no_tables_are_refused(tmp_path: Path, name: str, how: str) -> None:
    folder = written(tmp_path)
    path = getattr(folder, name)("val")
    path.unlink()
    if how == "damaged":
        path.write_bytes(b"PAR1" * 9)
    elif how == "pipe":
        os.mkfifo(path)
    with pytest.raises(UserError, match=rf"{path}: "):
        read_tables(folder, "val")


def test_an_evaluation_is_read(tmp_path: Path) -> None:
    (tmp_path / "eval-val.json").write_text(json.dumps(EVALUATION))
    assert read_evaluation(tmp_path / "eval-val.json") == EVALUATION


@pytest.mark.parametrize(
    "value",
    [
        [],
        5,
        {},
        *({**EVALUATION, name: value} for name in EVALUATION for value in ([], {}, True)),
        *({key: value for key, value in EVALUATION.items() if key != name} for name in list(EVALUATION)[:-1]),
    ],
)
def test_what_is_no_evaluation_is_refused(tmp_path: Path, value: object) -> None:
    (tmp_path / "eval-val.json").write_text(json.dumps(value))
    with pytest.raises(UserError, match=r"eval-val\.json: not an evaluation \("):
        read_evaluation(tmp_path / "eval-val.json")


@pytest.mark.parametrize("value", [[], {}, {"picked": "x", "picked_on": "val", "sweep": []}, {"sweep": [{"tau": 1}]}])
def test_what_is_no_sweep_is_refused(tmp_path: Path, value: object) -> None:
    (tmp_path / "tau-val.json").write_text(json.dumps(value))
    with pytest.raises(UserError, match=r"tau-val\.json: not a sweep over tau \("):
        read_sweep(tmp_path / "tau-val.json")
