"""The recipes: their own arithmetic, and each of them whole, on drawn pictures."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lmk_data.errors import UserError
from lmk_train.config import TrainConfig
from lmk_train.evaluation import evaluate_run
from lmk_train.loop import train
from lmk_train.options import EvalConfig
from pipelines.cifar10_lt import draw_tail
from pipelines.compare import Row, bootstrap, comparison
from pipelines.table1_top12 import TABLE as TABLE1
from pipelines.table2_top20 import TABLE as TABLE2
from pipelines.table3_full import TABLE as TABLE3
from tests.conftest import draw

ROOT = Path(__file__).resolve().parents[1]


def row(name: str, targets: "np.ndarray[tuple[int], np.dtype[np.int64]]", right: float, seed: int) -> Row:
    """A run that is right with a probability, independently for each picture."""
    random = np.random.default_rng(seed)
    labels = np.where(random.random(len(targets)) < right, targets, (targets + 1) % 10)
    keys = [f"{i:05d}" for i in range(len(targets))]
    return Row(name, {}, None, 0, 0, 0.0, pd.DataFrame({"target": targets, "label_1": labels}, index=keys))


def test_the_interval_holds_the_true_difference_and_leaves_out_nought() -> None:
    targets = np.random.default_rng(0).integers(0, 10, 4000)
    found = bootstrap(row("a", targets, 0.80, 1), row("b", targets, 0.85, 2), 300)
    for middle, low, high in found.values():
        assert 0 < low < middle < high
        assert low < 0.05 < high
        # Independent answers: the variance is that of two binomials.
        assert high - low == pytest.approx(2 * 1.96 * np.sqrt((0.8 * 0.2 + 0.85 * 0.15) / 4000), rel=0.25)
    same = bootstrap(row("a", targets, 0.8, 1), row("a", targets, 0.8, 1), 50)
    assert set(same.values()) == {(0.0, 0.0, 0.0)}


def test_runs_on_other_pictures_are_not_compared() -> None:
    targets = np.random.default_rng(0).integers(0, 10, 100)
    with pytest.raises(UserError, match="other pictures"):
        bootstrap(row("a", targets, 0.8, 1), row("b", targets[::-1].copy(), 0.8, 1), 10)


@pytest.mark.slow
def test_the_table_of_runs(dataset_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders of one name are told apart, training accuracy is there where it is known, one run has no differences."""
    monkeypatch.setattr("pipelines.compare._SECONDS", 0.01)
    run, other = tmp_path / "a" / "run", tmp_path / "b" / "run"
    chosen = {"model": "resnet32", "epochs": 1, "batch_size": 10, "device": "cpu", "amp": "off", "quiet": True}
    train(TrainConfig(str(dataset_path), run, **chosen))  # type: ignore[arg-type]
    alone = comparison([run], "test", 10).splitlines()
    assert len(alone) == 3
    assert alone[2].startswith("| run | ")
    assert "training accuracy" not in alone[0]
    shutil.copytree(run, other)
    evaluate_run(EvalConfig(run, split="train", device="cpu", amp="off", quiet=True))
    table = [line.split(" | ") for line in comparison([run, other], "test", 10).splitlines()]
    column = table[0].index("training accuracy")
    accuracy = json.loads((run / "eval-train.json").read_text())["accuracy"]
    assert [(row[0], row[column]) for row in table[2:4]] == [(f"| {run}", f"{accuracy:.4f}"), (f"| {other}", "")]
    assert table[-1] == [f"| {other}", "+0.0000 (+0.0000 to +0.0000)", "+0.0000 (+0.0000 to +0.0000) |"]
    with pytest.raises(UserError, match="--resamples 0: must be at least 1"):
        comparison([run, other], "test", 0)


def recipe(module: str, *arguments: object) -> str:
    """Run a recipe to its end; what it said."""
    command = [sys.executable, "-m", f"pipelines.{module}", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout


@pytest.mark.slow
def test_every_table_is_made_and_nothing_is_done_twice(tmp_path: Path) -> None:
    """One build serves all; a recipe that is run again only reads what is there."""
    for module, table in (("table1_top12", TABLE1), ("table2_top20", TABLE2), ("table3_full", TABLE3)):
        said = recipe(module, "--smoke", "--out", tmp_path)
        assert said.count("$ lmk-train") == len(table.rows)
        made = (tmp_path / f"{table.name}.md").read_text()
        assert made in said
        for row in table.rows:
            (line,) = [line for line in made.splitlines() if line.startswith(f"| {row.name} |")]
            assert f"{100 * row.reported[1]:.2f} %" in line  # type: ignore[operator]
        assert "nothing" in made.splitlines()[0], "it says that drawn pictures prove nothing"
    again = recipe("table1_top12", "--smoke", "--out", tmp_path)
    assert "$ lmk-train" not in again
    assert "$ lmk-eval" not in again


def class_folders(folder: Path, sizes: dict[str, int]) -> Path:
    for number, (name, size) in enumerate(sizes.items()):
        for i in range(size):
            draw(folder / name / f"{i:04d}.png", number, i, (32, 32))
    return folder


def test_the_tail_falls_exponentially(tmp_path: Path) -> None:
    folder = class_folders(tmp_path, dict.fromkeys("abcdef", 32))
    tail = draw_tail(folder, 32)
    assert tail["class"].value_counts().sort_index().tolist() == [32, *(int(32 * 32 ** (-i / 5)) for i in range(1, 6))]
    assert draw_tail(folder, 32).equals(tail)
    assert all((folder / path).exists() for path in tail["path"])
    with pytest.raises(UserError, match="needs two or more folders"):
        draw_tail(folder / "a", 10)


@pytest.mark.slow
def test_the_long_tail_benchmark_makes_its_table(tmp_path: Path) -> None:
    train = class_folders(tmp_path / "train", dict.fromkeys("abcde", 80))
    test = class_folders(tmp_path / "test", dict.fromkeys("abcde", 8))
    options = ("--out", tmp_path / "out", "--imbalance", 10, "--epochs", 1, "--seeds", 1)
    said = recipe("cifar10_lt", train, test, *options)
    table = (tmp_path / "out" / "table.md").read_text()
    assert table in said
    rows = [line.split(" | ") for line in table.splitlines() if line.startswith("| 10")]
    assert [row[1] for row in rows] == ["CE", "LDAM", "LDAM-DRW", "balanced softmax"]
    assert [row[4].rstrip(" |") for row in rows] == ["86.39", "86.96", "88.16", ""]
    assert "1 epochs" in table
