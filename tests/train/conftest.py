"""Trainings of seconds."""

from pathlib import Path

import pytest

from lmk_train.config.training import TrainConfig
from tests.train.run_files import Config


@pytest.fixture
def config(dataset_path: Path, tmp_path: Path) -> Config:
    """A training of seconds; keywords change it."""

    def make(**changes: object) -> TrainConfig:
        chosen: dict[str, object] = {
            "shards": str(dataset_path),
            "out": tmp_path / "run",
            "model": "efficientnet-lite0",
            "weights": "none",
            "epochs": 2,
            "batch_size": 10,
            "device": "cpu",
            "amp": "off",
            "workers": 2,
            "quiet": True,
        }
        return TrainConfig(**{**chosen, **changes})  # type: ignore[arg-type]

    return make
