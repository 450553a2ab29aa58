"""Losses, weights and updates that are not finite."""

import json
from pathlib import Path

import pytest
import torch

from lmk_data.dataset import ShardedDataset
from lmk_data.errors import TrainingError
from lmk_train.runtime.precision import Precision
from lmk_train.training.loop import train
from tests.train.run_files import Config, lines, weights


def test_a_loss_that_is_not_finite_stops_with_the_step_the_rate_and_the_pictures(
    config: Config, tmp_path: Path, dataset: ShardedDataset
) -> None:
    changes = {
        "model": "efficientnet-lite0",
        "optimizer": "sgd",
        "lr": 1e30,
        "head_lr": 1e30,
        "warmup_epochs": 0.0,
        "loss": "ce",
        "batch_size": 4,
    }
    with pytest.raises(
        TrainingError, match=r"not finite at step [12] \(learning rate 9\.\d+e\+29, pictures "
    ) as caught:
        train(config(**changes))
    named = str(caught.value).split("pictures ")[1].split(")")[0].split(", ")
    assert len(named) == 4
    assert set(named) <= set(dataset.index("train")["key"])
    assert not (tmp_path / "run" / "checkpoints").exists(), "nothing that is not finite is kept"
    assert f"{tmp_path}/run/nonfinite.json names them all" in str(caught.value)
    assert json.loads((tmp_path / "run" / "nonfinite.json").read_text())["keys"] == named


DIVERGING = {"model": "resnet32", "loss": "ce", "optimizer": "sgd", "lr": 1e30, "head_lr": 1e30, "warmup_epochs": 0.0}


def test_nonfinite_json_has_the_pictures_that_the_line_has_no_room_for(config: Config, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"not finite at step \d+ .* and 2 more\)"):
        train(config(**DIVERGING))
    assert len(set(json.loads((tmp_path / "run" / "nonfinite.json").read_text())["keys"])) == 10


@pytest.mark.parametrize(("rate", "what"), [(1e30, "the validation loss is"), (1e60, "the weights are")])
def test_an_epochs_last_update_that_diverges_is_found_by_validation(
    config: Config, dataset: ShardedDataset, tmp_path: Path, rate: float, what: str
) -> None:
    """With one step an epoch no loss of the epoch shows it."""
    changes = {**DIVERGING, "lr": rate, "head_lr": rate, "batch_size": dataset.num_samples("train")}
    with pytest.raises(TrainingError, match=f"{what} not finite at step 0 "):
        train(config(**changes))
    assert not list((tmp_path / "run").glob("checkpoints/*"))


@pytest.mark.parametrize("optimizer", [pytest.param("adamw", marks=pytest.mark.slow), "sgd"])
def test_updates_that_overflow_in_float16_are_skipped_and_counted(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    """A scale that is far too large overflows until it has been halved often enough."""
    monkeypatch.setattr(Precision, "grad_scaler", lambda _: torch.amp.GradScaler("cpu", init_scale=2.0**40))
    train(config(amp="fp16", epochs=1, optimizer=optimizer))
    last = lines(tmp_path / "run", "train")[-1]
    assert last["step"] == 4
    assert last["skipped_updates"] >= 3
    assert last["grad_scale"] == 2.0 ** (40 - last["skipped_updates"])
    assert all(torch.isfinite(value).all() for value in weights(tmp_path / "run").values())
