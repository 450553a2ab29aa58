"""Trainings of seconds."""

from pathlib import Path

import pytest

from lmk_data.build import BuildOptions, build
from lmk_data.options import PlanRule, Recipe
from lmk_train.config.training import TrainConfig
from tests.train.run_files import Config


@pytest.fixture(scope="session")
def dataset_path(collection: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small dataset again, in pictures of 32 pixels, which take a quarter of the time to train on."""
    out = tmp_path_factory.mktemp("dataset-32") / "shards"
    images, labels = [str(collection / "train")], str(collection / "train.csv")
    rule, recipe = PlanRule(samples_per_shard=8), Recipe(size=32)
    build(BuildOptions(images=images, labels=labels, out=out, rule=rule, recipe=recipe, workers=1, quiet=True))
    return out


@pytest.fixture
def config(dataset_path: Path, tmp_path: Path) -> Config:
    """A training of seconds; keywords change it."""

    def make(**changes: object) -> TrainConfig:
        chosen: dict[str, object] = {
            "shards": str(dataset_path),
            "out": tmp_path / "run",
            "model": "resnet32",
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
