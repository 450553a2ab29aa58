"""How trials end, and on which device they run."""

import json
import math
import os
import shlex
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lmk_data.errors import TrainingError
from lmk_data.system.files import file_lock
from lmk_train.cli import tune_main
from lmk_train.config.commands import TuneConfig
from lmk_train.runs.folder import SearchFolder
from lmk_train.tuning.ax_client import Plan
from lmk_train.tuning.experiment import Experiment, Trial
from lmk_train.tuning.history import DONE, FAILED, STOPPED
from lmk_train.tuning.trials import Search, _check_failures, _Child, _reason, _slots, _start, _update, run_trials
from lmk_train.tuning.tune import training_command
from tests import forked
from tests.train.tuning.searches import SPACE, searching

pytest.importorskip("ax", reason="the extra `tune` is not installed")


def a_search(folder: Path, values: list[float]) -> tuple[Search, Trial]:
    """Five trials that are done, and the run of a sixth whose epochs had these losses."""
    experiment = Experiment.new(folder / "experiment.json", Plan(SPACE, "loss", "random", 0, 4))
    for loss in (0.1, 0.2, 0.3, 0.4, 0.5):
        number = experiment.ask().number  # type: ignore[union-attr]
        for epoch in range(1, 5):
            experiment.tell(number, epoch, loss)
        experiment.end(number, DONE)
    trial = experiment.ask()
    assert trial is not None
    search = Search(
        TuneConfig("shards", objective="loss"), SearchFolder(folder), SPACE, experiment, None, 6, 0, lambda _: None, 0
    )
    run = search.folder.trial(trial.number)
    run.mkdir(parents=True)
    epoch = {"kind": "epoch", "epoch": 1, "step": 1, "train_loss": 1.0, "train_accuracy": 0.5}
    lines = [json.dumps({**epoch, "val_loss": value}) + "\n" for value in values]
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
        assert _update(search, child), "it has ended before anybody looked"
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


def test_the_reason_of_a_failure_is_the_end_of_its_log(tmp_path: Path) -> None:
    with open(tmp_path / "log", "wb") as log:
        log.truncate(1 << 40)  # whatever it printed before
        log.seek(0, os.SEEK_END)
        log.write(b"\nnote: slow\ntrial: error: no space left\n\n")
    assert _reason(tmp_path / "log", 1) == "no space left"


def test_the_secrets_of_urls_reach_a_trial_but_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url, base = "http://alice:s3cr3t@127.0.0.1:1/view?token=t0ken", "s3://key:s3cr3t@bucket/shards"
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\ncat > {tmp_path}/told\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    (tmp_path / "search").mkdir()
    search, trial = a_search(tmp_path / "search", [])
    space = replace(SPACE, base=replace(SPACE.base, shards=url, base=base))
    with file_lock(tmp_path / "lock") as lock:
        child = _start(replace(search, space=space, lock=lock), trial, 0, {})
        child.close()
        assert child.process.wait() == 0
    assert json.loads((tmp_path / "told").read_text()) == {"shards": url, "base": base}
    spec = json.loads(search.folder.trial_spec(trial.number).read_text())
    assert (spec["config"]["shards"], spec["config"]["base"]) == ("http://127.0.0.1:1/view", "s3://bucket/shards")
    written = [path.read_text() for path in (tmp_path / "search").rglob("*") if path.is_file()]
    shown = [json.dumps(space.json()), training_command(space.base), *written]
    assert not [text for text in shown if "s3cr3t" in text or "t0ken" in text]
    assert shlex.split(training_command(space.base))[1:5] == [
        "--shards",
        "http://127.0.0.1:1/view",
        "--base",
        "s3://bucket/shards",
    ]


def _not_in_this_process(*_: object) -> None:
    pytest.fail("the search itself uses the device, and keeps memory of it as long as it lives")


def test_each_trial_has_a_device_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def slots(parallel: int | None, visible: str | None, device: str = "cuda") -> list[dict[str, str]]:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        return _slots(TuneConfig("shards", parallel=parallel, device=device))  # type: ignore[arg-type]

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", _not_in_this_process)
    monkeypatch.setattr(torch.cuda, "get_device_properties", _not_in_this_process)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    name, half = "CUDA_VISIBLE_DEVICES", {"OMP_NUM_THREADS": "4", "LOCAL_WORLD_SIZE": "2"}
    assert slots(None, None) == [{name: "0", **half}, {name: "1", **half}]
    assert slots(None, "3,GPU-ab") == [{name: "3", **half}, {name: "GPU-ab", **half}]
    third = {"OMP_NUM_THREADS": "2", "LOCAL_WORLD_SIZE": "3"}
    assert slots(3, "3,5") == [{name: "3", **third}, {name: "5", **third}, {name: "3", **third}]
    assert slots(None, "3,5,-1,7") == [{name: "3", **half}, {name: "5", **half}], "CUDA ends the list there"
    assert slots(1, "3,5") == [{name: "3"}]
    assert slots(None, None, "cpu") == [{}]
    assert slots(4, None, "cpu") == [{"OMP_NUM_THREADS": "2", "LOCAL_WORLD_SIZE": "4"}] * 4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "reason"), [(signal.SIGKILL, "killed by signal 9"), (signal.SIGTERM, "interrupted from outside")]
)
def test_a_killed_trial_fails_and_the_search_goes_on(
    dataset_path: Path, tmp_path: Path, how: signal.Signals, reason: str
) -> None:
    arguments = searching(dataset_path, tmp_path, "--trials", "2", "--quiet")
    search = forked.start(tune_main, arguments, tmp_path / "said.txt")
    killed, trial = False, str(tmp_path / "search" / "trials" / "000.json").encode()
    while search.is_running:
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                if not killed and trial in path.read_bytes():
                    os.kill(int(path.parent.name), how)
                    killed = True
            except OSError:
                continue  # it has just ended
        search.process.join(0.02)
    code, said = search.finish()
    assert code == 0, said
    report = (tmp_path / "search" / "report" / "index.html").read_text()
    assert reason in report
    assert json.loads((tmp_path / "search" / "best.json").read_text())["trial"] == 1
