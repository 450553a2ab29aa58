"""The loop of curation: its own arithmetic, and the whole of it on drawn pictures with wrong labels."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import lmk_data.cli
import lmk_train.cli
from lmk_data.dataset import ShardedDataset
from lmk_data.dataset.inspection import SAMPLES
from lmk_data.errors import UserError
from lmk_data.views.marks import Mark, read_marks
from pipelines import clean_and_retrain, steps
from pipelines.clean_and_retrain import Loop, counts, flip_labels, recovered, regained
from pipelines.scores import Scores

MAINS = {
    "lmk-shard": lmk_data.cli.main,
    "lmk-train": lmk_train.cli.train_main,
    "lmk-eval": lmk_train.cli.eval_main,
    "lmk-inspect": lmk_train.cli.inspect_main,
}


def test_flipped_labels_are_wrong_in_the_training_split_only_and_drawn_by_the_seed(dataset: ShardedDataset) -> None:
    truth = dataset.index("train", ["key", "landmark_id"]).set_index("key")["landmark_id"].astype(str)
    flips = flip_labels(dataset, 0.5, seed=1)
    assert len(flips) == round(0.5 * len(truth))
    assert all(mark.landmark_id in set(truth) - {truth[key]} for key, mark in flips.items())
    assert flip_labels(dataset, 0.5, seed=1) == flips
    assert flip_labels(dataset, 0.5, seed=2) != flips
    assert flip_labels(dataset, 0, seed=1) == {}


def test_the_counts_are_of_what_was_flagged_marked_and_flipped() -> None:
    samples = pd.DataFrame({"wrong_label": [True, True, False], "outlier": [False, True, False]})
    flips = {"a": Mark("relabel", "2"), "b": Mark("relabel", "3"), "c": Mark("relabel", "2")}
    marks = {"a": Mark("relabel", "1"), "b": Mark("exclude"), "d": Mark("relabel", "2")}
    assert counts(samples, marks, 0.9) == [
        "3 training pictures inspected: 2 flagged as wrong labels, 1 as outliers.",
        "Marked at a confidence of at least 0.9: 1 excluded, 2 relabelled.",
    ]
    assert recovered(pd.Series({"a": "1", "b": "1", "c": "1", "d": "1"}), flips, marks) == (
        "Of 3 flipped labels 2 are marked, 1 of these with the right class; 1 marks are on other labels."
    )


def test_the_share_that_is_regained_is_of_the_mean_over_the_seeds() -> None:
    noisy, cleaned, clean = (
        Scores(pd.DataFrame({"macro_recall": recalls}), np.zeros((2, 1), bool), np.zeros(1, np.int64))
        for recalls in ([0.5, 0.7], [0.7, 0.8], [0.8, 0.8])
    )
    assert regained(noisy, cleaned, clean).startswith("Regained: 75% of the 20.0 points of balanced accuracy ")
    assert "cost no balanced accuracy" in regained(clean, cleaned, clean)


def test_mistakes_are_said_before_anything_is_made(dataset_path: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for changes, message in {
        ("seeds", 0): "--seeds 0: must be at least 1",
        ("flipped", 1.0): "--flip-labels 1.0: must be at least 0 and below 1",
        ("min_confidence", 2.0): "--min-confidence 2.0: must be between 0 and 1",
    }.items():
        with pytest.raises(UserError, match=re.escape(message)):
            clean_and_retrain.clean_and_retrain(Loop(dataset_path, out, **dict([changes])))  # type: ignore[arg-type]
    assert not out.exists()


def draw_patterns(folder: Path, num_classes: int, num_images: int) -> Path:
    """Class folders of coarse patterns: those of a class are alike, and no two are near duplicates."""
    for number in range(num_classes):
        pattern = np.random.default_rng(number).integers(0, 256, (8, 8, 3))
        for i in range(num_images):
            noise = np.random.default_rng([number, i]).integers(0, 256, (8, 8, 3))
            path = folder / f"class-{number:02d}" / f"{i:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            mixed = (0.8 * pattern + 0.2 * noise).astype(np.uint8)
            Image.fromarray(mixed).resize((64, 64)).save(path)
    return folder


@pytest.mark.slow
def test_the_loop_regains_two_thirds_of_what_wrong_labels_cost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = []

    def run(*command: object, log: Path | None = None) -> None:
        assert log is None
        program, *words = map(str, command)
        commands.append(program)
        assert MAINS[program]([*words, "--quiet"]) == 0, command

    monkeypatch.setattr(steps, "run", run)
    images, shards = draw_patterns(tmp_path / "images", 12, 24), tmp_path / "shards"
    source = ("--images", images, "--labels", "classes", "--split", 0.5, 0, 0.5, "--size", 64, "--workers", 1)
    run("lmk-shard", "build", *source, "--out", shards, "--no-report")
    training = ("--model", "efficientnet-lite0", "--epochs", 30, "--loss", "ce", "--device", "cpu", "--amp", "off")
    loop = Loop(shards, tmp_path / "out", training, heads=True, min_confidence=0.6, flipped=0.4)
    said = clean_and_retrain.clean_and_retrain(loop)
    (share, lost) = re.findall(r"Regained: (\d+)% of the ([\d.]+) points", said)[0]
    assert float(lost) > 6
    assert int(share) >= 67
    assert (loop.out / "table.md").read_text() == said
    flips, marks = (read_marks(str(loop.out / name)) for name in ("flips.csv", "marks.csv"))
    quality = pd.read_parquet(loop.out / "inspection" / SAMPLES).set_index("key")
    assert set(quality["split"]) == {"train"}
    assert {key: quality["landmark_id"][key] for key in flips} == {
        key: mark.landmark_id for key, mark in flips.items()
    }, "the inspection saw the flipped labels"
    assert len(flips.keys() & marks.keys()) > 0.9 * len(marks)
    with ShardedDataset.open(loop.out / "cleaned") as cleaned, ShardedDataset.open(shards) as dataset:
        assert cleaned.index("test", ["key", "landmark_id"]).equals(dataset.index("test", ["key", "landmark_id"]))
    commands.clear()
    assert clean_and_retrain.clean_and_retrain(loop) == said
    assert set(commands) <= {"lmk-shard"}, "nothing is inspected, trained or evaluated twice"
