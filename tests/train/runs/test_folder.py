"""What is in a run's folder, and which folders are refused."""

import json
import os
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch

from lmk_data.dataset import ShardedDataset
from lmk_data.errors import UserError
from lmk_train.config.commands import EvalConfig
from lmk_train.evaluation.evaluate import evaluate_run
from lmk_train.runs.folder import check_run, is_run
from lmk_train.training.dry_run import dry_run
from lmk_train.training.loop import train
from tests.train.run_files import Config, lines
from tests.train.updates import after_each_update


@pytest.mark.slow
def test_run_folder_holds_what_is_promised(config: Config, dataset: ShardedDataset, tmp_path: Path) -> None:
    result = train(config(model="efficientnet-lite0", weights="imagenet", epochs=3))
    run = tmp_path / "run"
    assert json.loads((run / "config.json").read_text())["lr"] == 3e-4
    epochs = lines(run, "epoch")
    assert [line["epoch"] for line in epochs] == [1, 2, 3]
    assert epochs[-1]["train_loss"] < epochs[0]["train_loss"]
    assert list((run / "tensorboard").glob("events.*"))
    metrics = json.loads((run / "eval-test.json").read_text())
    assert result.test is not None
    assert metrics == {**result.test.metrics, **result.test.source}
    assert metrics["num_samples"] == dataset.num_samples("test")
    predictions = pd.read_parquet(run / "predictions-test.parquet")
    assert set(predictions["key"]) == set(dataset.index("test")["key"])
    assert (predictions["target"] == predictions["label_1"]).mean() == pytest.approx(metrics["accuracy"])
    per_class = pd.read_parquet(run / "per-class-test.parquet")
    assert per_class["support"].tolist() == dataset.classes["test"].tolist()
    confusion = pd.read_parquet(run / "confusion-test.parquet")
    assert confusion["count"].sum() == metrics["num_samples"]
    assert confusion.loc[confusion["target"] == confusion["prediction"], "count"].sum() == per_class["correct"].sum()
    best = torch.load(run / "checkpoints" / "best.pt", weights_only=True)
    assert best["classes"] == dataset.classes["landmark_id"].tolist()
    assert best["content_sha256"] == dataset.manifest["content_sha256"]
    assert {"optimizer", "progress"}.isdisjoint(best)
    (again,) = evaluate_run(EvalConfig(run, split="test", device="cpu", quiet=True, batch_size=3))
    assert again.metrics["accuracy"] == metrics["accuracy"]


def test_two_trainings_never_share_a_folder(config: Config, tmp_path: Path) -> None:
    refused = []

    def beside_others(*_: object) -> None:
        for resume in (False, True):  # before the first checkpoint both would start anew
            with pytest.raises(UserError, match="run: another training is at work there") as error:
                train(config(model="resnet32", seed=1, resume=resume))
            refused.append(error)

    with after_each_update(beside_others):
        train(config(model="resnet32", seed=2))
    assert len(refused) == 16
    assert json.loads((tmp_path / "run" / "config.json").read_text())["seed"] == 2
    train(config(model="resnet32", seed=2, resume=True))


def test_a_folder_of_something_else_is_never_started_in(config: Config, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.write_text("a file")
    with pytest.raises(UserError, match="run: is not a folder"):
        train(config())
    run.unlink()
    run.mkdir()
    (run / "config.json").write_text('{"architectures": ["another tool\'s"]}')
    for refused in (train, lambda config: dry_run(config, lambda _: None)):
        with pytest.raises(UserError, match="run: is not empty; name another"):
            refused(config())
    with pytest.raises(UserError, match="has no checkpoint to resume from"):
        train(config(resume=True))
    (run / "config.json").unlink()
    train(config(model="resnet32", epochs=1))
    (run / "checkpoints" / "last.pt").unlink()
    with pytest.raises(UserError, match=r"run: holds a model \(checkpoints/best.pt\), which is never replaced"):
        train(config(model="resnet32", epochs=1))
    assert (run / "checkpoints" / "best.pt").exists()


def test_a_model_and_files_of_ones_own_are_never_removed(config: Config, tmp_path: Path) -> None:
    """A run that was passed on, or whose last.pt was deleted to save room, looks like one that was interrupted."""
    run = tmp_path / "run"
    train(config(model="resnet32", epochs=1))
    (run / "checkpoints" / "last.pt").unlink()
    for left in run.glob("*-test.*"):
        left.unlink()
    model = (run / "checkpoints" / "best.pt").read_bytes()
    metrics = (run / "metrics.jsonl").read_text()
    shutil.rmtree(run / "report", ignore_errors=True)
    for written in (metrics, metrics * 2, "not of a training\n", None):
        (run / "metrics.jsonl").unlink(missing_ok=True)
        if written is not None:
            (run / "metrics.jsonl").write_text(written)
        for resume in (False, True):
            with pytest.raises(UserError, match=r"holds a model|has no checkpoint to resume from"):
                train(config(model="resnet32", resume=resume))
    assert (run / "checkpoints" / "best.pt").read_bytes() == model
    (run / "checkpoints" / "best.pt").unlink()
    for own in ("checkpoints/best.pt.bak", "checkpoints/export/a.onnx", "tensorboard/notes.txt"):
        (run / own).parent.mkdir(exist_ok=True)
        (run / own).write_text("mine")
        with pytest.raises(UserError, match="run: is not empty; name another"):
            train(config(model="resnet32"))
        assert (run / own).read_text() == "mine"
        (run / own).unlink()
    (run / "checkpoints" / "export").rmdir()
    (run / "notes.tmp").write_text("mine")
    with pytest.raises(UserError, match="run: is not empty; name another"):
        train(config(model="resnet32"))
    (run / "notes.tmp").unlink()
    evaluating = run / f"predictions-val.parquet.{os.getpid()}-0123abcd.tmp"
    killed = run / "checkpoints" / "best.pt.1-0123abcd.tmp"
    evaluating.touch()
    killed.touch()
    train(config(model="resnet32", epochs=1))
    assert evaluating.exists()
    assert not killed.exists()


def test_nothing_is_written_through_a_link_in_a_run(config: Config, tmp_path: Path) -> None:
    """A run that somebody passed on brings its links with it."""
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    train(config(model="resnet32", epochs=1))
    elsewhere.mkdir()
    for name in (".lock", "metrics.jsonl", "tensorboard", "checkpoints", "report"):
        kept = tmp_path / "kept"
        (run / name).replace(kept)
        for target in (elsewhere / "made", elsewhere):
            (run / name).symlink_to(target)
            with pytest.raises(UserError, match=f"{name}: is a symbolic link"):
                train(config(model="resnet32", epochs=1, resume=True))
            with pytest.raises(UserError, match=f"{name}: is a symbolic link"):
                evaluate_run(EvalConfig(run, split="test", device="cpu", quiet=True))
            assert not list(elsewhere.iterdir())
            (run / name).unlink()
        kept.replace(run / name)
    (elsewhere / "eval").write_text("mine")
    (run / "eval-val.json").symlink_to(elsewhere / "eval")
    evaluate_run(EvalConfig(run, split="val", device="cpu", quiet=True))
    assert (elsewhere / "eval").read_text() == "mine"
    assert not (run / "eval-val.json").is_symlink()


def test_what_systems_leave_in_a_folder_is_nobodys_file(config: Config, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for name in (".DS_Store", "Thumbs.db", "@eaDir/x", "checkpoints/._best.pt", "tensorboard/.nfs0001"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).touch()
    (run / "config.json").write_text(json.dumps(config().resolved().json()))
    assert check_run(run, config(resume=True).resolved()).resume is False  # it ended before its first checkpoint
    (run / "checkpoints" / "mine.txt").touch()
    with pytest.raises(UserError, match="run: is not empty; name another"):
        check_run(run, config().resolved())


def test_a_run_whose_files_never_begin_or_never_end_is_none(config: Config, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints" / "best.pt").touch()
    os.mkfifo(run / "config.json")
    assert not is_run(run)
    (run / "config.json").unlink()
    with open(run / "config.json", "wb") as file:
        file.truncate(1 << 40)
    assert not is_run(run)
    (run / "config.json").write_text(json.dumps(config().resolved().json()))
    assert is_run(run)
    os.mkfifo(run / "metrics.jsonl")
    with pytest.raises(UserError, match="holds a model"):
        check_run(run, config().resolved())
