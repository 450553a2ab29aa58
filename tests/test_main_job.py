"""The main job on real photos, as its users run it."""

import json
from pathlib import Path

import pytest

from lmk_data.cli import main as shard_main
from lmk_train.cli import train_main


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_monuments_reach_ninety_percent_with_default_settings(shared: Path, tmp_path: Path) -> None:
    monuments = shared / "monuments"
    shards, run = tmp_path / "shards", tmp_path / "run"
    words = ["--images", str(monuments / "train"), "--labels", str(monuments / "train.csv"), "--out", str(shards)]
    assert shard_main(["build", *words, "--min-samples", "6", "--quiet"]) == 0
    given = ["--shards", str(shards), "--model", "efficientnet-lite0", "--out", str(run)]
    assert train_main(given) == 0
    metrics = json.loads((run / "eval-test.json").read_text())
    assert metrics["num_samples"] == 56
    assert metrics["accuracy"] >= 0.90
