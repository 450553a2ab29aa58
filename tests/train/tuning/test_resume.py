"""A stopped search goes on without losing or repeating a trial."""

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from lmk_data.build import BuildOptions, build
from lmk_data.options import Recipe
from lmk_train.cli import tune_main
from lmk_train.tuning.ax_client import Plan
from lmk_train.tuning.experiment import Experiment
from lmk_train.tuning.history import DONE, STOPPED
from lmk_train.tuning.space import Choice, SearchSpace
from tests import forked
from tests.train.tuning.searches import SPACE, record, searching

pytest.importorskip("ax", reason="the extra `tune` is not installed")


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_search_that_was_stopped_goes_on_without_losing_or_repeating_a_trial(
    dataset_path: Path, tmp_path: Path, how: signal.Signals, patience: None
) -> None:
    arguments = searching(dataset_path, tmp_path, "--trials", "4", "--poor-trials", "finish", "--parallel", "2")
    search = forked.start(tune_main, arguments, tmp_path / "said.txt")
    trials = tmp_path / "search" / "trials"
    forked.wait_until(lambda: len(list(trials.glob("*/checkpoints/last.pt"))) >= 2, search)
    search.kill(how)
    code, said = search.finish()
    if how == signal.SIGINT:
        assert code == 130, said
        assert "--resume" in said
    before = record(tmp_path)
    started = {path.stem: path.read_text() for path in trials.glob("*.json")}
    assert tune_main([*arguments, "--resume", "--quiet"]) == 0
    after = record(tmp_path)
    assert sorted(after) == list(range(4)), "every number once"
    for number, lines in before.items():
        assert after[number].startswith(lines), "what was found is kept, and found once"
    for name, spec in started.items():
        point = json.loads((trials / f"{name}.json").read_text())["config"]
        assert {**point, "resume": 0} == {**json.loads(spec)["config"], "resume": 0, "quiet": True}
    configs = [json.loads((trials / f"{n:03d}" / "config.json").read_text()) for n in range(4)]
    assert len({(config["head_lr"], config["weight_decay"]) for config in configs}) == 4
    assert all(lines.count('"kind": "epoch"') == 3 for lines in after.values())


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait longer for trials whose search was killed: they notice it once they have imported what they need."""
    monkeypatch.setattr("lmk_train.tuning.tune._LOCK_WAIT_SECONDS", 240.0)


def interrupted(arguments: list[str], said: Path, until: Path) -> None:
    """Start a search, and kill it once a file is there."""
    search = forked.start(tune_main, arguments, said)
    forked.wait_until(until.exists, search)
    search.kill()
    search.finish()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_search_is_the_same_however_often_it_was_interrupted(dataset_path: Path, tmp_path: Path) -> None:
    """Its last trial aims at something else, so it is stopped after the same epoch, wherever the search was killed."""
    text = "[search]\nlabel_smoothing = [0.0, 0.01, 0.02, 0.03, 0.04, 0.9]\n"
    text += "[fixed]\nhead_lr = 1e-2\nbatch_size = 10\n"
    more = ["--strategy", "grid", "--loss", "ce", "--objective", "loss", "--epochs", "8", "--quiet"]
    found = []
    for name, stops in (("at-once", ()), ("in-parts", ("004/metrics.jsonl", "005/metrics.jsonl"))):
        folder = tmp_path / name
        folder.mkdir()
        arguments = searching(dataset_path, folder, *more, space=text)
        for stop in stops:
            interrupted(arguments, folder / "said.txt", folder / "search" / "trials" / stop)
            arguments = [*arguments, *(["--resume"] if "--resume" not in arguments else [])]
        assert tune_main(arguments) == 0
        space = SearchSpace({"label_smoothing": Choice((0.0, 0.01, 0.02, 0.03, 0.04, 0.9))}, SPACE.base)
        found.append(Experiment.load(folder / "search" / "experiment.json", Plan(space, "loss", "grid", 0, 8)).trials())
    assert [trial.state for trial in found[0]] == [DONE] * 5 + [STOPPED]
    assert [len(trial.values) < 8 for trial in found[0]] == [False] * 5 + [True]
    assert found[0] == found[1]


@pytest.mark.slow
def test_a_grid_goes_on_where_its_dataset_is_now_and_with_no_other(
    dataset_path: Path,
    tmp_path: Path,
    options: Callable[..., BuildOptions],
    capsys: pytest.CaptureFixture[str],
    patience: None,
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    shutil.copytree(dataset_path, here)
    more = ["--strategy", "grid", "--loss", "ce", "--objective", "loss"]
    space = "[search]\nhead_lr = [1e-2, 1e29, 1e30]\n[fixed]\nbatch_size = 10\n"
    interrupted(
        searching(here, tmp_path, *more, space=space),
        tmp_path / "said.txt",
        tmp_path / "search" / "trials" / "001.json",
    )
    here.rename(there)
    assert tune_main([*searching(there, tmp_path, *more, space=space), "--resume", "--quiet"]) == 0
    specs = [json.loads((tmp_path / "search" / "trials" / f"{n:03d}.json").read_text()) for n in range(3)]
    assert [spec["config"]["head_lr"] for spec in specs] == [1e-2, 1e29, 1e30], "the grid's points in order, once"
    best = json.loads((tmp_path / "search" / "best.json").read_text())
    assert best["trial"] == 0, "which was trained where the dataset was"
    assert best["test"] is not None
    build(options(recipe=Recipe(size=48)))
    other = searching(tmp_path / "shards", tmp_path, *more, space=space)
    assert tune_main([*other, "--resume", "--quiet"]) == 1
    assert "--resume: dataset changed" in capsys.readouterr().err
