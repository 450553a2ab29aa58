"""A finished run to evaluate."""

import shutil
from pathlib import Path

import pytest

from lmk_train.config.training import TrainConfig
from lmk_train.training.loop import train


@pytest.fixture(scope="module")
def finished(dataset_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs, not to be written to."""
    run = tmp_path_factory.mktemp("evaluation") / "run"
    chosen = {"loss": "ldam", "epochs": 2, "batch_size": 10, "device": "cpu", "amp": "off", "quiet": True}
    train(TrainConfig(str(dataset_path), run, "efficientnet-lite0", **chosen))  # type: ignore[arg-type]
    return run


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of that run."""
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"
