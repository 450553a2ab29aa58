"""The index of a run whose dataset has a validation split: its blend and temperature are picked there."""

import json
from pathlib import Path

import numpy as np
import pytest

from lmk_data.build import BuildOptions, build
from lmk_data.dataset import ShardedDataset
from lmk_data.options import PlanRule, Recipe
from lmk_train.config.training import TrainConfig
from lmk_train.evaluation.calibration import MIN_SAMPLES
from lmk_train.predict import Predictor
from lmk_train.training.loop import train


@pytest.mark.slow
def test_a_training_calibrates_and_validation_picks_the_blend(collection: Path, tmp_path: Path) -> None:
    shards, run = tmp_path / "shards", tmp_path / "run"
    images, labels = [str(collection / "train")], str(collection / "train.csv")
    rule, recipe = PlanRule(split=(0.4, 0.6, 0.0)), Recipe(size=32)
    build(BuildOptions(images=images, labels=labels, out=shards, rule=rule, recipe=recipe, workers=1, quiet=True))
    chosen = {"weights": "none", "loss": "ldam", "epochs": 1, "batch_size": 8, "device": "cpu", "amp": "off"}
    train(TrainConfig(str(shards), run, "resnet32", quiet=True, **chosen))  # type: ignore[arg-type]
    fitted = json.loads((run / "calibration.json").read_text())
    predictor = Predictor(run, device="cpu", amp="off")
    assert predictor.temperature == fitted["temperature"]
    predictor.load_neighbours()
    said = json.loads((run / "neighbours" / "index.json").read_text())
    assert said["temperature"] == fitted["temperature"]
    assert said["picked_on"] == "val"
    assert said["num_validation"] == fitted["num_samples"] >= MIN_SAMPLES
    with ShardedDataset.open(shards) as dataset:
        index = dataset.index("val", ["key", "label"])
    photos = [str(collection / "train" / key[0] / key[1] / key[2] / f"{key}.jpg") for key in index["key"]]
    losses = []
    for number in (0, 3):
        answers = predictor(photos, top=9, neighbours=number)
        found = [{guess.label: guess.probability for guess in answer.guesses} for answer in answers]
        losses.append(-np.log([one[label] for one, label in zip(found, index["label"], strict=True)]).mean())
    assert losses[0] == pytest.approx(fitted["loss_after"], rel=1e-3)
    assert losses[1] <= losses[0] + 1e-6, "the blend of the least loss is no worse than no blend"
