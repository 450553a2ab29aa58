"""Searches of seconds, and what they find."""

import math
from pathlib import Path

from lmk_train.config.training import TrainConfig
from lmk_train.tuning.experiment import Experiment
from lmk_train.tuning.history import DONE
from lmk_train.tuning.space import Choice, Point, Range, SearchSpace

SPACE = SearchSpace(
    {"lr": Range(1e-5, 1e-1, log=True), "loss": Choice(("ce", "ldam")), "weight_decay": Range(1e-4, 1e-1, log=True)},
    TrainConfig("shards", epochs=4),
)


HEAD = "[search]\nhead_lr = { range = [1e-3, 1e-1], log = true }\nweight_decay = { range = [0.0, 0.1] }\n"


def bowl(point: Point) -> float:
    """What a training would find: least at lr 1e-3 under LDAM."""
    return (math.log10(float(point["lr"])) + 3) ** 2 + 0.5 * (point["loss"] == "ce")


def told(experiment: Experiment, number: int, epochs: int = 4) -> None:
    """Ask `number` times and tell what the bowl says, worse before the last epoch."""
    for _ in range(number):
        trial = experiment.ask()
        assert trial is not None
        for epoch in range(1, epochs + 1):
            experiment.tell(trial.number, epoch, bowl(trial.point) + epochs - epoch)
        experiment.end(trial.number, DONE)


def points(experiment: Experiment) -> list[Point]:
    return [trial.point for trial in experiment.trials()]


def searching(dataset_path: Path, folder: Path, *more: str, space: str = HEAD) -> list[str]:
    (folder / "space.toml").write_text(space)
    return [
        *("--shards", str(dataset_path), "--out", str(folder / "search"), "--model", "efficientnet-lite0"),
        *("--search", str(folder / "space.toml"), "--cached-features", "--epochs", "3", "--device", "cpu", *more),
    ]


def record(folder: Path) -> dict[int, str]:
    """The lines of every trial's epochs, without times."""
    found = {}
    for path in sorted((folder / "search" / "trials").glob("*/metrics.jsonl")):
        found[int(path.parent.name)] = "".join(line for line in path.read_text().splitlines(True) if "epoch" in line)
    return found
