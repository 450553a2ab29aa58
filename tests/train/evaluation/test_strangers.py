"""Evaluation on datasets with other labels than the run's."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from lmk_data.dataset import ShardedDataset
from lmk_data.errors import UserError
from lmk_data.options import Selection
from lmk_data.views.view import write_view
from lmk_train.cli import eval_main, export_main, train_main
from lmk_train.config.commands import EvalConfig
from lmk_train.evaluation.evaluate import evaluate_run

EXACT = ["--amp", "off", "--device", "cpu"]


def test_a_view_with_other_labels_is_joined_by_landmark(run: Path, dataset: ShardedDataset, tmp_path: Path) -> None:
    """A view numbers its classes anew; the metrics are those of the same samples under the run's labels."""
    write_view(dataset, Selection(classes=("83144", "113209", "7")), str(tmp_path / "view"))
    (found,) = evaluate_run(EvalConfig(run, str(tmp_path / "view"), device="cpu", amp="off", quiet=True))
    with ShardedDataset.open(tmp_path / "view") as view:
        index = view.index("test").set_index("key")
    whole = pd.read_parquet(run / "predictions-test.parquet").set_index("key")
    landmark = dataset.classes["landmark_id"]
    assert len(whole) == len(index) == found.metrics["num_samples"]
    assert {key: landmark[target] for key, target in whole["target"].items()} == index["landmark_id"].to_dict()
    assert found.metrics["num_unknown"] == 0


@pytest.mark.parametrize(
    ("main", "words"),
    [
        (eval_main, ["{run}", *EXACT]),
        pytest.param(
            train_main, ["--model", "resnet32", "--batch-size", "8", "--dry-run", *EXACT], marks=pytest.mark.slow
        ),
        pytest.param(export_main, ["{run}", "--to", "torch", "--out", "{out}/model.pt2"], marks=pytest.mark.slow),
    ],
)
def test_the_base_of_a_view_is_named_to_train_and_evaluate(
    run: Path,
    dataset: ShardedDataset,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    main: Callable[[list[str]], int],
    words: list[str],
) -> None:
    """The base that the view itself names is not there: no command opens another than the one given."""
    view = tmp_path / "base" / "view"
    write_view(dataset, Selection(classes=("83144", "113209", "7")), str(view))
    view = view.rename(tmp_path / "view")
    command = [*(word.format(run=run, out=tmp_path) for word in words), "--shards", str(view), "--quiet"]
    assert main(command) == 1
    assert "dataset.json: no such file" in capsys.readouterr().err
    assert main([*command, "--base", dataset.location]) == 0


def relabelled(dataset_path: Path, out: Path, change: Callable[["pd.Series[Any]"], "pd.Series[Any]"]) -> Path:
    """A copy of a dataset with other landmark ids."""
    shutil.copytree(dataset_path, out)
    for path in (out / "classes.parquet", *(out / "index").iterdir()):
        table = pd.read_parquet(path)
        table["landmark_id"] = change(table["landmark_id"])
        table.to_parquet(path)
    return out


def test_ids_that_are_text_on_one_side_are_joined(run: Path, dataset_path: Path, tmp_path: Path) -> None:
    """One class whose id is no number makes the ids of its whole dataset text."""
    before = json.loads((run / "eval-test.json").read_text())
    other = relabelled(dataset_path, tmp_path / "other", lambda ids: ids.astype(str).replace("7", "tower"))
    (found,) = evaluate_run(EvalConfig(run, str(other), device="cpu", amp="off", quiet=True))
    with ShardedDataset.open(other) as dataset:
        towers = int(dataset.classes.set_index("landmark_id").loc["tower", "test"])
    assert found.metrics["num_unknown"] == towers > 0
    assert found.metrics["num_samples"] == before["num_samples"] - towers


def test_a_split_without_a_known_landmark_is_refused_before_anything_is_written(
    run: Path, dataset_path: Path, tmp_path: Path
) -> None:
    other = relabelled(dataset_path, tmp_path / "other", lambda ids: ids.where(ids == 7, ids + 1_000_000))
    classes = pd.read_parquet(other / "classes.parquet")
    (gone,) = classes.index[classes["landmark_id"] == 7]
    index = pd.read_parquet(other / "index" / "test.parquet")
    moved = index["landmark_id"] == 7
    stranger = classes.index[classes["landmark_id"] != 7][0]
    index.loc[moved, ["label", "landmark_id"]] = [stranger, classes.loc[stranger, "landmark_id"]]
    classes.loc[stranger, "test"] += moved.sum()
    classes.loc[gone, "test"] = 0
    classes["listed"] = classes[["train", "val", "test", "rejected"]].sum(axis=1).astype("int32")
    index.to_parquet(other / "index" / "test.parquet")
    classes.to_parquet(other / "classes.parquet")
    before = (run / "eval-test.json").read_text()
    with pytest.raises(UserError, match=r"--split test: none of its images in .*/other is of one of the 5 classes"):
        evaluate_run(EvalConfig(run, str(other), tau=True, device="cpu", amp="off", quiet=True))
    assert (run / "eval-test.json").read_text() == before
    assert not list(run.glob("tau-*"))


def test_landmarks_that_the_model_does_not_know_are_counted_and_kept(
    run: Path, dataset_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = relabelled(dataset_path, tmp_path / "other", lambda ids: ids.replace(138982, 777))
    assert eval_main([str(run), "--shards", str(other), *EXACT]) == 0
    with ShardedDataset.open(dataset_path) as dataset:
        index = dataset.index("test")
    strangers = set(index.loc[index["landmark_id"] == 138982, "key"])
    metrics = json.loads((run / "eval-test.json").read_text())
    assert metrics["num_unknown"] == len(strangers) > 0
    assert metrics["num_samples"] == len(index) - len(strangers)
    predictions = pd.read_parquet(run / "predictions-test.parquet")
    assert set(predictions.loc[predictions["target"].isna(), "key"]) == strangers
    assert len(predictions) == len(index)
    assert f"{len(strangers)} of landmarks it does not know" in capsys.readouterr().out


@pytest.mark.parametrize("shards", ["reference://::http://127.0.0.1:1/spec.json", "http://127.0.0.1:1/x", "s3://a/b"])
def test_the_dataset_of_another_machine_is_opened_only_when_it_is_named(run: Path, tmp_path: Path, shards: str) -> None:
    shutil.copytree(run, tmp_path / "strangers")
    path = tmp_path / "strangers" / "checkpoints" / "best.pt"
    state = torch.load(path, weights_only=True)
    state["config"]["shards"] = shards
    torch.save(state, path)
    with pytest.raises(UserError, match="name the dataset with --shards to open it"):
        evaluate_run(EvalConfig(tmp_path / "strangers", device="cpu", quiet=True))
