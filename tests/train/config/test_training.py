"""Defaults of `lmk-train`, and options that are refused."""

from pathlib import Path

import pytest
import torch

from lmk_data.errors import UserError
from lmk_train.cli import train_main
from lmk_train.config.training import TrainConfig
from lmk_train.training.loop import train
from tests.train.run_files import Config


def test_a_metric_of_no_class_is_refused_before_anything_is_written(config: Config, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"^--best-by many_accuracy: the validation split has no class that this metric is"
    ):
        train(config(best_by="many_accuracy"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--cosine-scale", "20", "--loss", "ce"], "--cosine-scale goes with --head cosine, not with a linear head"),
        (["--label-smoothing", "0.1"], "--label-smoothing goes with --loss ce"),
        (["--ldam-max-margin", "0.3", "--loss", "ce"], "--ldam-max-margin goes with --loss ldam, not with ce"),
        (["--warmup-epochs", "3", "--epochs", "2"], "--warmup-epochs 3: more than the 2 epochs of the training"),
        (["--sync-bn", "--device", "cpu"], "--sync-bn: works on CUDA only"),
        (["--drw-start", "1"], "--drw-start 1.0: must be from 0, below 1"),
        (["--ema", "1"], "--ema 1.0: must be between 0 and 1"),
        (["--dry-run", "--profile-input"], "give one of them"),
        (["--epochs", "0"], "--epochs 0: must be at least 1"),
        (["--lr", "-1"], "--lr -1.0: must be above 0"),
        (["--batch-size", "1000"], "--batch-size 1000: more than the"),
        (["--weights", "nowhere.pt"], "--weights nowhere.pt: no such file"),
        (["--shards", "nowhere"], "nowhere/dataset.json: no such file"),
        *([] if torch.cuda.is_available() else [(["--device", "cuda"], "no CUDA device is there")]),
    ],
)
def test_mistakes_are_one_line_and_exit_1(
    words: list[str], said: str, dataset_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    given = ["--shards", str(dataset_path), "--out", str(run), "--model", "efficientnet-lite0", *words]
    assert train_main(given) == 1
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not run.exists()


def test_the_default_warm_up_is_at_most_an_eighth_of_the_training() -> None:
    found = [TrainConfig("shards", epochs=epochs).resolved().warmup_epochs for epochs in (None, 16, 2)]
    assert found == [1.0, 1.0, 0.25]
    paper = [TrainConfig("shards", model="resnet32", epochs=epochs).resolved().warmup_epochs for epochs in (None, 8)]
    assert paper == [5.0, 1.0]
