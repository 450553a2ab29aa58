"""`lmk-tune`: a search that stops and goes on without losing or repeating a trial, and tests its winner only."""

import json
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import tyro

from lmk_data.build import BuildOptions, build
from lmk_data.dataset import ShardedDataset
from lmk_data.errors import TrainingError
from lmk_data.format import Recipe
from lmk_train.cli import eval_main, tune_main
from lmk_train.config import TrainConfig
from lmk_train.experiment import DONE, FAILED, STOPPED, Experiment, Trial, best_trial
from lmk_train.features import FeatureStore, compute_features
from lmk_train.loop import train
from lmk_train.options import TuneConfig
from lmk_train.search_report import _fit, write_search_report
from lmk_train.search_space import Choice, Point, Range, SearchSpace
from lmk_train.trials import Search, _check_failures, _Child, _look_after, _slots, run_trials

pytest.importorskip("ax", reason="the extra `tune` is not installed")

SPACE = SearchSpace(
    {"lr": Range(1e-5, 1e-1, log=True), "loss": Choice(("ce", "ldam")), "weight_decay": Range(1e-4, 1e-1, log=True)},
    TrainConfig("shards", epochs=4),
)
PROGRAM = [sys.executable, "-c", "import sys; from lmk_train.cli import tune_main; sys.exit(tune_main())"]
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


def test_a_search_that_was_loaded_proposes_what_one_that_ran_on_does(tmp_path: Path) -> None:
    at_once = Experiment.new(tmp_path / "a.json", SPACE, "loss", "bayesian", 0, 4)
    told(at_once, 9)
    Experiment.new(tmp_path / "b.json", SPACE, "loss", "bayesian", 0, 4)
    for _ in range(9):
        told(Experiment.load(tmp_path / "b.json", SPACE, "loss", 0, 4), 1)
    in_parts = Experiment.load(tmp_path / "b.json", SPACE, "loss", 0, 4)
    assert points(at_once) == points(in_parts)
    assert in_parts.trials()[3].values == {
        epoch: pytest.approx(bowl(points(in_parts)[3]) + 4 - epoch) for epoch in range(1, 5)
    }
    best = best_trial(in_parts.trials(), "loss")
    assert best is not None
    assert best.value == min(bowl(point) for point in points(in_parts))
    # Chance: of 9 log-uniform rates one in eight is within a factor of 3 of the best; a search has come closer.
    assert best.value < 0.1


def test_what_failed_is_not_proposed_again_and_a_search_ends_when_all_is_tried(tmp_path: Path) -> None:
    space = SearchSpace({"batch_size": Choice((8, 16, 32)), "loss": Choice(("ce", "ldam"))}, SPACE.base)
    experiment = Experiment.new(tmp_path / "x.json", space, "accuracy", "bayesian", 0, 4)
    while (trial := experiment.ask()) is not None:
        if trial.point["loss"] == "ce":
            experiment.end(trial.number, FAILED, "the loss is not finite")
        else:
            experiment.tell(trial.number, 1, float(trial.point["batch_size"]))
            experiment.end(trial.number, DONE)
        experiment = Experiment.load(tmp_path / "x.json", space, "accuracy", 0, 4)
    assert len(points(experiment)) == 6
    assert len({tuple(point.items()) for point in points(experiment)}) == 6
    failed = [trial for trial in experiment.trials() if trial.state == FAILED]
    assert [trial.reason for trial in failed] == ["the loss is not finite"] * 3


def test_poor_trials_are_told_apart_by_epoch(tmp_path: Path) -> None:
    experiment = Experiment.new(tmp_path / "x.json", SPACE, "macro_f1", "random", 0, 8)
    for value in (0.5, 0.6, 0.7, 0.8, 0.9):
        number = experiment.ask().number  # type: ignore[union-attr]
        for epoch in range(1, 9):
            experiment.tell(number, epoch, value * epoch / 8)
        experiment.end(number, DONE)
    for factor, poor in ((0.9, False), (0.1, True)):
        number = experiment.ask().number  # type: ignore[union-attr]
        experiment.tell(number, 1, factor / 8)
        assert not experiment.is_poor(number), "the first epochs say too little"
        experiment.tell(number, 2, factor * 2 / 8)
        assert experiment.is_poor(number) == poor
        experiment.end(number, STOPPED if poor else DONE)
    assert [trial.state for trial in experiment.trials()] == [DONE] * 6 + [STOPPED]


@pytest.mark.parametrize("epochs", [1, 2])
def test_trials_of_an_epoch_or_two_are_never_poor(tmp_path: Path, epochs: int) -> None:
    experiment = Experiment.new(tmp_path / "x.json", SPACE, "loss", "random", 0, epochs)
    told(experiment, 6, epochs)
    number = experiment.ask().number  # type: ignore[union-attr]
    experiment.tell(number, 1, 1e6)
    assert not experiment.is_poor(number)


def a_search(folder: Path, values: list[float]) -> tuple[Search, Trial]:
    """Five trials that are done, and the run of a sixth whose epochs had these losses."""
    experiment = Experiment.new(folder / "experiment.json", SPACE, "loss", "random", 0, 4)
    for loss in (0.1, 0.2, 0.3, 0.4, 0.5):
        number = experiment.ask().number  # type: ignore[union-attr]
        for epoch in range(1, 5):
            experiment.tell(number, epoch, loss)
        experiment.end(number, DONE)
    trial = experiment.ask()
    assert trial is not None
    search = Search(TuneConfig("shards", objective="loss"), folder, SPACE, experiment, None, 6, 0, lambda _: None, 0)
    run = search.run_of(trial.number)
    run.mkdir(parents=True)
    lines = [json.dumps({"kind": "epoch", "val_loss": value}) + "\n" for value in values]
    (run / "metrics.jsonl").write_text("".join(lines))
    return search, trial


@pytest.mark.parametrize(
    ("values", "state", "told", "reason"),
    [
        ([0.9, 0.8, 0.01, 0.01], STOPPED, 1, ""),
        ([0.1, 0.9, 0.9, 0.9], DONE, 4, ""),
        ([math.nan, 0.1, 0.1, 0.1], FAILED, 0, "the objective is not finite"),
    ],
)
def test_what_becomes_of_a_trial_depends_on_its_epochs_not_on_when_they_are_seen(
    tmp_path: Path, values: list[float], state: str, told: int, reason: str
) -> None:
    search, trial = a_search(tmp_path, values)
    with open(tmp_path / "log", "wb") as log:
        child = _Child(trial, 0, subprocess.Popen(["true"]), log)
        child.process.wait()
        assert _look_after(search, child), "it has ended before anybody looked"
    last = search.experiment.trials()[-1]
    assert (last.state, len(last.values), last.reason) == (state, told, reason)


def test_a_search_killed_before_it_stopped_a_poor_trial_stops_it_when_it_goes_on(tmp_path: Path) -> None:
    search, trial = a_search(tmp_path, [0.9])
    search.experiment.tell(trial.number, 1, 0.9)
    run_trials(search)
    assert search.experiment.trials()[-1].state == STOPPED


def test_a_search_is_given_up_when_its_first_trials_fail_at_once_and_alike(tmp_path: Path) -> None:
    def failed(reason: str, values: dict[int, float]) -> Trial:
        return Trial(0, {}, FAILED, values, reason)

    _check_failures([failed(f"the loss is not finite at step {n}", {}) for n in range(9)])
    _check_failures([failed("killed", {1: 0.5})] * 9)
    _check_failures([failed("no space left", {})] * 4)
    with pytest.raises(TrainingError, match="the first 5 trials all failed with: no space left"):
        _check_failures([failed("no space left", {})] * 5)


def test_each_trial_has_a_device_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def slots(parallel: int | None, visible: str | None, device: str = "cuda") -> list[dict[str, str]]:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        return _slots(TuneConfig("shards", parallel=parallel, device=device))  # type: ignore[arg-type]

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    name = "CUDA_VISIBLE_DEVICES"
    assert slots(None, None) == [{name: "0"}, {name: "1"}]
    assert slots(None, "3,GPU-ab") == [{name: "3"}, {name: "GPU-ab"}]
    assert slots(3, "3,5") == [{name: "3"}, {name: "5"}, {name: "3"}]
    assert slots(None, "3,5,-1,7") == [{name: "3"}, {name: "5"}], "CUDA ends the list at what is no device"
    assert slots(None, None, "cpu") == [{}]
    assert slots(4, None, "cpu") == [{"OMP_NUM_THREADS": "2"}] * 4


def test_the_report_says_what_mattered_and_shows_every_trial(tmp_path: Path) -> None:
    experiment = Experiment.new(tmp_path / "x.json", SPACE, "loss", "bayesian", 0, 4)
    told(experiment, 8)
    number = experiment.ask().number  # type: ignore[union-attr]
    experiment.end(number, FAILED, "it <died>")
    trials = experiment.trials()
    best = best_trial(trials, "loss")
    model = _fit(experiment, trials)
    assert best is not None
    assert model is not None
    shares = model.sensitivities()
    assert shares["lr"] > max(shares["weight_decay"], shares["loss"]), "the bowl is deep along the rate alone"
    near, far = model.predict([{**best.point, "lr": 1e-3}, {**best.point, "lr": 1e-1}])[0]
    assert near < far
    path = write_search_report(tmp_path, experiment, SPACE, trials, best, "lmk-train", {"loss": None, "accuracy": 0.5})
    page = path.read_text()
    for said in ("0.5000", "test accuracy", "total Sobol indices", "correlation", "the large dot is the best", "95 %"):
        assert said in page
    assert "test loss" not in page, "the test split has none"
    assert page.count("<figure>") == 5, "history, curves, slices, sensitivity, cross-validation"
    assert "it <died>" not in page
    rows = [f"{trial.value:.4f}" for trial in trials if trial.value is not None]
    assert len(rows) == 8
    assert all(row in page for row in rows)


def test_without_ax_nothing_is_left_behind(
    dataset_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ax.api.client", None)
    assert tune_main(searching(dataset_path, tmp_path)) == 1
    assert "pip install 'lmk[tune]'" in capsys.readouterr().err
    assert not (tmp_path / "search").exists()


def frozen(dataset_path: Path, out: Path) -> TrainConfig:
    return TrainConfig(
        str(dataset_path),
        out,
        "efficientnet-lite0",
        epochs=2,
        batch_size=10,
        freeze_backbone_epochs=2,
        hflip=0.0,
        color_jitter=0.0,
        device="cpu",
        amp="off",
        workers=2,
        quiet=True,
    )


def test_a_head_on_cached_features_is_the_training_with_a_frozen_backbone(
    dataset_path: Path, dataset: ShardedDataset, tmp_path: Path
) -> None:
    config = frozen(dataset_path, tmp_path / "pictures")
    compute_features(config.resolved(), tmp_path / "features", lambda _: None)
    train(config, evaluate_test=False)
    on_features = replace(config, out=tmp_path / "head")
    result = train(on_features, features=tmp_path / "features", evaluate_test=False)
    assert result.test is None
    assert not list((tmp_path / "head").glob("eval-*"))
    epochs = [
        [json.loads(line) for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()]
        for run in ("pictures", "head")
    ]
    for one, other in zip(*([line for line in lines if line["kind"] == "epoch"] for lines in epochs), strict=True):
        assert one["train_loss"] == pytest.approx(other["train_loss"], rel=1e-4)
        assert one["val_loss"] == pytest.approx(other["val_loss"], rel=1e-4)
    # What it leaves is a whole model: evaluated on pictures, it is as good as it was on features.
    assert eval_main([str(tmp_path / "head"), "--split", "val", "--checkpoint", "last", "--amp", "off", "--quiet"]) == 0
    judged = json.loads((tmp_path / "head" / "eval-val.json").read_text())
    assert judged["loss"] == pytest.approx(epochs[1][-1]["val_loss"], rel=1e-4)
    predictions = pd.read_parquet(tmp_path / "head" / "predictions-val.parquet")
    assert dataset.num_classes <= 5, "all probabilities are in the table"
    own = [
        row[f"probability_{1 + [row[f'label_{k}'] for k in range(1, dataset.num_classes + 1)].index(row['target'])}"]
        for _, row in predictions.iterrows()
    ]
    assert judged["loss"] == pytest.approx(-np.log(own).mean(), rel=1e-4)


def test_features_of_another_dataset_or_damaged_ones_are_refused(
    dataset_path: Path, dataset: ShardedDataset, tmp_path: Path
) -> None:
    config = frozen(dataset_path, tmp_path / "run").resolved()
    compute_features(config, tmp_path / "features", lambda _: None)
    path = tmp_path / "features" / "val.npy"
    whole = path.read_bytes()
    for damaged in (whole[:-4], b"", np.zeros(3, np.float32).tobytes()):
        path.write_bytes(damaged)
        with pytest.raises(Exception, match=r"val\.npy.*remove the folder"):
            FeatureStore.open(tmp_path / "features", dataset, config).reader("val")
    with pytest.raises(Exception, match="another dataset or backbone"):
        FeatureStore.open(tmp_path / "features", dataset, replace(config, amp="bf16"))


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


@pytest.mark.slow
def test_a_grid_with_a_trial_that_diverges(
    dataset_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    space = "[search]\nhead_lr = [1e-2, 1e30]\nlabel_smoothing = [0.0, 0.1]\n[fixed]\nbatch_size = 10\namp = 'off'\n"
    arguments = searching(
        dataset_path, tmp_path, "--strategy", "grid", "--loss", "ce", "--objective", "loss", space=space
    )
    assert tune_main(arguments) == 0
    said = capsys.readouterr().out
    assert "4 trials: 2 done, 2 failed" in said
    search = tmp_path / "search"
    best = json.loads((search / "best.json").read_text())
    # The winner alone has seen the test split, and every trial is a run that can be evaluated.
    assert [path.parent.name for path in search.glob("trials/*/eval-test.json")] == [f"{best['trial']:03d}"]
    assert best["test"] == json.loads((search / "trials" / f"{best['trial']:03d}" / "eval-test.json").read_text())
    other = min({0, 1} - {best["trial"]})
    assert eval_main([str(search / "trials" / f"{other:03d}"), "--split", "val", "--quiet"]) == 0
    judged = json.loads((search / "trials" / f"{other:03d}" / "eval-val.json").read_text())
    assert judged["loss"] >= best["loss"] - 1e-4
    failed = (search / "trials" / "002.log").read_text()
    assert "the loss is not finite at step" in failed
    page = (search / "report" / "index.html").read_text()
    assert "the loss is not finite at step" in page
    # The command that it gives trains what the trial trained.
    words = shlex.split(best["command"])
    assert words[0] == "lmk-train"
    assert best["command"] in said
    pasted = tyro.cli(TrainConfig, args=words[1:], config=(tyro.conf.FlagCreatePairsOff,)).resolved().json()
    trained = json.loads((search / "trials" / f"{best['trial']:03d}" / "config.json").read_text())
    assert {k: v for k, v in pasted.items() if trained[k] != v}.keys() <= {"out", "quiet", "device"}


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_search_that_was_stopped_goes_on_without_losing_or_repeating_a_trial(
    dataset_path: Path, tmp_path: Path, how: signal.Signals, patience: None
) -> None:
    arguments = searching(dataset_path, tmp_path, "--trials", "7", "--poor-trials", "finish", "--parallel", "2")
    search = subprocess.Popen([*PROGRAM, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 240
    trials = tmp_path / "search" / "trials"
    while len(list(trials.glob("*/checkpoints/last.pt"))) < 3 and time.monotonic() < deadline:
        assert search.poll() is None, search.communicate()[0]
        time.sleep(0.05)
    search.send_signal(how)
    said = search.communicate()[0]
    if how == signal.SIGINT:
        assert search.returncode == 130, said
        assert "--resume" in said
    before = record(tmp_path)
    started = {path.stem: path.read_text() for path in trials.glob("*.json")}
    assert tune_main([*arguments, "--resume", "--quiet"]) == 0
    after = record(tmp_path)
    assert sorted(after) == list(range(7)), "every number once"
    for number, lines in before.items():
        assert after[number].startswith(lines), "what was found is kept, and found once"
    for name, spec in started.items():
        point = json.loads((trials / f"{name}.json").read_text())["config"]
        assert {**point, "resume": 0} == {**json.loads(spec)["config"], "resume": 0, "quiet": True}
    configs = [json.loads((trials / f"{n:03d}" / "config.json").read_text()) for n in range(7)]
    assert len({(config["head_lr"], config["weight_decay"]) for config in configs}) == 7
    assert all(lines.count('"kind": "epoch"') == 3 for lines in after.values())


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait longer for trials whose search was killed: they notice it once they have imported what they need."""
    monkeypatch.setattr("lmk_train.tune._SECONDS_FOR_THE_LOCK", 240.0)


def interrupted(arguments: list[str], until: Path) -> None:
    """Start a search, and kill it once a file is there."""
    search = subprocess.Popen([*PROGRAM, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + 240
    while not until.exists() and time.monotonic() < deadline:
        assert search.poll() is None
        time.sleep(0.02)
    search.kill()
    search.wait()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_search_is_the_same_however_often_it_was_interrupted(dataset_path: Path, tmp_path: Path) -> None:
    """Its last two trials aim at something else, so they are stopped after the same epoch, wherever it was killed."""
    text = "[search]\nlabel_smoothing = [0.0, 0.01, 0.02, 0.03, 0.04, 0.8, 0.9]\n"
    text += "[fixed]\nhead_lr = 1e-2\nbatch_size = 10\n"
    more = ["--strategy", "grid", "--loss", "ce", "--objective", "loss", "--epochs", "8", "--quiet"]
    found = []
    for name, stops in (("at-once", ()), ("in-parts", ("004/metrics.jsonl", "005/metrics.jsonl"))):
        folder = tmp_path / name
        folder.mkdir()
        arguments = searching(dataset_path, folder, *more, space=text)
        for stop in stops:
            interrupted(arguments, folder / "search" / "trials" / stop)
            arguments = [*arguments, *(["--resume"] if "--resume" not in arguments else [])]
        assert tune_main(arguments) == 0
        space = SearchSpace({}, SPACE.base)
        found.append(Experiment.load(folder / "search" / "experiment.json", space, "loss", 0, 8).trials())
    assert [trial.state for trial in found[0]] == [DONE] * 5 + [STOPPED] * 2
    assert [len(trial.values) < 8 for trial in found[0]] == [False] * 5 + [True] * 2
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
    interrupted(searching(here, tmp_path, *more, space=space), tmp_path / "search" / "trials" / "001.json")
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


@pytest.mark.slow
def test_whole_trainings_with_the_default_space_after_a_start_that_died(dataset_path: Path, tmp_path: Path) -> None:
    search = tmp_path / "search"
    search.mkdir()
    for left in (".lock", "experiment.json", "search.json.7-ab.tmp"):
        (search / left).touch()
    words = ["--shards", str(dataset_path), "--out", str(search), "--model", "efficientnet-lite0", "--device", "cpu"]
    assert tune_main([*words, "--epochs", "1", "--trials", "2", "--strategy", "random"]) == 0
    best = json.loads((search / "best.json").read_text())
    assert {"lr", "head_lr", "color_jitter", "batch_size"} <= best["parameters"].keys()
    assert "--freeze-backbone-epochs" not in best["command"]
    assert best["test"]["accuracy"] >= 0
    assert len(record(tmp_path)) == 2
    assert not (search / "features").exists()


@pytest.mark.slow
def test_a_search_ends_when_every_point_was_tried(
    dataset_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    space = "[search]\nbatch_size = [8, 10]\n"
    assert tune_main(searching(dataset_path, tmp_path, "--trials", "4", "--parallel", "2", space=space)) == 0
    said = capsys.readouterr().out
    assert said.count("after 2 trials every point that is proposed was tried") == 1
    assert "2 trials: 2 done" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "reason"), [(signal.SIGKILL, "killed by signal 9"), (signal.SIGTERM, "interrupted from outside")]
)
def test_a_killed_trial_fails_and_the_search_goes_on(
    dataset_path: Path, tmp_path: Path, how: signal.Signals, reason: str
) -> None:
    arguments = searching(dataset_path, tmp_path, "--trials", "2", "--quiet")
    search = subprocess.Popen([*PROGRAM, *arguments])
    killed, trial = False, str(tmp_path / "search" / "trials" / "000.json").encode()
    while search.poll() is None:
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                if not killed and trial in path.read_bytes():
                    os.kill(int(path.parent.name), how)
                    killed = True
            except OSError:
                continue  # it has just ended
        time.sleep(0.02)
    assert search.returncode == 0
    report = (tmp_path / "search" / "report" / "index.html").read_text()
    assert reason in report
    assert json.loads((tmp_path / "search" / "best.json").read_text())["trial"] == 1


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        (["--resume"], "has no search to go on with"),
        (["--strategy", "grid", "--trials", "3"], "--trials 3: the grid has 9 points"),
        (["--objective", "many_accuracy"], "--objective many_accuracy: the validation split has no class"),
        (["--loss", "ce", "--objective", "few_accuracy", "--search", "nowhere.toml"], "nowhere.toml: no such file"),
    ],
)
def test_mistakes_are_one_line(
    dataset_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], complaint: str
) -> None:
    assert tune_main([*searching(dataset_path, tmp_path), *more]) == 1
    said = capsys.readouterr().err.strip()
    assert complaint in said
    assert "\n" not in said
    assert not (tmp_path / "search").exists()


def test_what_says_nothing_to_a_frozen_backbone_is_refused(
    dataset_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tune_main(searching(dataset_path, tmp_path, space="[search]\ncolor_jitter = [0.1, 0.2]\n")) == 1
    assert "color_jitter does nothing to a frozen backbone's features" in capsys.readouterr().err
    fixed = HEAD + "[fixed]\nweights = 'none'\n"
    assert tune_main(searching(dataset_path, tmp_path, space=fixed)) == 1
    assert "--cached-features: random weights" in capsys.readouterr().err
    assert tune_main(searching(dataset_path, tmp_path, space="[search]\nbatch_size = [8, 4096]\n")) == 1
    assert "batch size 4096: more than the" in capsys.readouterr().err
