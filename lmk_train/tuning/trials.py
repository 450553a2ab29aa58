"""Run the trials of a search as processes: start them, report their metrics to the experiment, stop poor ones."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import torch

from lmk_data.errors import TrainingError, UserError
from lmk_data.system.files import check_no_link, make_folder, write_bytes
from lmk_data.system.terminal import EXIT_INTERRUPTED, progress_bar
from lmk_train.config.commands import TuneConfig
from lmk_train.evaluation.metrics import spelled
from lmk_train.runs.folder import RunFolder, SearchFolder
from lmk_train.runs.metrics_file import read_metrics_file
from lmk_train.runs.plain_file import read_end
from lmk_train.runtime.precision import device_type
from lmk_train.tuning.experiment import Experiment, Trial, best_trial, better
from lmk_train.tuning.history import DONE, FAILED, RUNNING, STOPPED, State
from lmk_train.tuning.space import Point, SearchSpace

_FAILURES_THAT_END = 5
_SECONDS_BETWEEN_LOOKS = 0.1
_LOG_BYTES = 64 << 10  # of a trial's log, in which its reason stands last


@dataclass
class Search:
    """A search in progress.

    `points` are those of a grid, None otherwise. `lock` is the descriptor of the folder's lock, which trials inherit.
    `num_before` is the number of trials of earlier commands. `exhausted` is set once no new point is left.
    """

    config: TuneConfig
    folder: SearchFolder
    space: SearchSpace
    experiment: Experiment
    points: list[Point] | None
    num_trials: int
    lock: int
    announce: Callable[[str], None]
    num_before: int
    exhausted: bool = False


@dataclass
class _Child:
    """The process of a trial and its log; `stopping` is set once the trial was found to be poor."""

    trial: Trial
    slot: int
    process: "subprocess.Popen[bytes]"
    log: IO[bytes]
    stopping: bool = False

    def tell(self, place: dict[str, str | None]) -> None:
        """Write the line of standard input that says where the dataset lies."""
        if self.process.stdin is not None:
            with suppress(BrokenPipeError):  # the process has ended already, and its log says why
                os.write(self.process.stdin.fileno(), json.dumps(place).encode() + b"\n")

    def close(self) -> None:
        """Close the files of the process, which has ended."""
        self.log.close()
        if self.process.stdin is not None:
            self.process.stdin.close()


def run_trials(search: Search) -> None:
    """Run trials until the search has all it needs, interrupted ones first; no process outlives this call."""
    experiment, config = search.experiment, search.config
    slots = _slots(config)
    for interrupted in experiment.trials():
        # Its last epoch was reported, and the search was killed before it ended the trial.
        if interrupted.state == RUNNING and _is_poor(search, interrupted):
            _end(search, interrupted, STOPPED)
    waiting = [trial for trial in experiment.trials() if trial.state == RUNNING]
    children: list[_Child] = []
    ended = len(experiment.trials()) - len(waiting)
    try:
        with progress_bar(search.num_trials, "searching", "trials", quiet=config.quiet, initial=ended) as bar:
            while True:
                free = sorted(set(range(len(slots))) - {child.slot for child in children})
                for slot in free:
                    if (trial := waiting.pop(0) if waiting else _next(search)) is None:
                        break
                    children.append(_start(search, trial, slot, slots[slot]))
                if not children:
                    return
                time.sleep(_SECONDS_BETWEEN_LOOKS)
                for child in list(children):
                    if _update(search, child):
                        children.remove(child)
                        bar.update()
                        bar.set_postfix_str(_best_so_far(search), refresh=False)
    finally:
        for child in children:
            child.process.terminate()
        for child in children:
            child.process.wait()
            child.close()


def _slots(config: TuneConfig) -> list[dict[str, str]]:
    """Return the environment of each trial that runs at once: its own CUDA device, and its share of the cores.

    Does not use a device: this process would keep memory of it.
    """
    devices = torch.cuda.device_count() if device_type(config.device) == "cuda" else 0
    number = config.parallel or max(1, devices)
    threads = max(1, len(os.sched_getaffinity(0)) // number)
    # The second is what torchrun sets for processes that share a machine: decoding takes a share of the cores as well.
    cores = {"OMP_NUM_THREADS": str(threads), "LOCAL_WORLD_SIZE": str(number)} if number > 1 else {}
    if not devices:
        return [cores] * number
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    names = visible[:devices] or [str(device) for device in range(devices)]
    return [{"CUDA_VISIBLE_DEVICES": names[slot % len(names)], **cores} for slot in range(number)]


def _next(search: Search) -> Trial | None:
    """Return the next trial of the search, None if there is none."""
    trials = search.experiment.trials()
    if search.exhausted or len(trials) >= search.num_trials:
        return None
    if search.points is not None:
        return search.experiment.attach(search.points[len(trials)])
    _check_failures(trials[search.num_before :])
    trial = search.experiment.ask()
    if trial is None:
        search.exhausted = True
        search.announce(f"after {len(trials)} trials every proposed point has been tried: the search ends")
    return trial


def _check_failures(trials: list[Trial]) -> None:
    """Raise TrainingError if the first trials of this command all failed before an epoch ended, for the same reason."""
    reasons = {trial.reason for trial in trials if trial.state == FAILED and not trial.values}
    all_failed = all(trial.state == FAILED and not trial.values for trial in trials)
    if len(trials) >= _FAILURES_THAT_END and all_failed and len(reasons) == 1:
        raise TrainingError(f"the first {len(trials)} trials all failed with: {reasons.pop()}; --resume tries others")


def _start(search: Search, trial: Trial, slot: int, environment: dict[str, str]) -> _Child:
    folder = search.folder
    run, spec = folder.trial(trial.number), folder.trial_spec(trial.number)
    for path in (run.parent, run, folder.trial_log(trial.number)):
        check_no_link(path)
    make_folder(run.parent)
    config = replace(search.space.config(trial.point), out=run, quiet=True)
    features = str(folder.features) if search.config.cached_features else None
    write_bytes(spec, json.dumps({"config": config.public_json(), "features": features}, indent=2).encode() + b"\n")
    log = open(folder.trial_log(trial.number), "ab")  # noqa: SIM115 - closed when the trial ends
    process = subprocess.Popen(  # noqa: S603
        [sys.executable, "-m", "lmk_train.tuning.trial", str(spec)],
        stdin=subprocess.PIPE,
        stdout=log,
        stderr=log,
        env={**os.environ, **environment},
        start_new_session=True,  # Ctrl-C reaches the search alone, which then ends its trials
        pass_fds=(search.lock,),
    )
    child = _Child(trial, slot, process, log)
    child.tell({"shards": config.shards, "base": config.base})
    return child


def _update(search: Search, child: _Child) -> bool:
    """Report a trial's new epochs, stop it if it is poor, and return whether it has ended."""
    trial = child.trial
    code = child.process.poll()  # before its lines are read, so that none is missed
    values = _values(search.folder.trial(trial.number), search.experiment.objective)
    _report(search, child, values)
    if code is None:
        return False
    child.close()
    if child.stopping:
        _end(search, trial, STOPPED)
    elif code == 0 and len(trial.values) == len(values) > 0:
        _end(search, trial, DONE)
    elif code == 0 and values:
        _end(search, trial, FAILED, "the objective is not finite")
    else:
        _end(search, trial, FAILED, _reason(search.folder.trial_log(trial.number), code))
    return True


def _report(search: Search, child: _Child, values: list[float]) -> None:
    """Report each new epoch to the experiment; stop the trial after the first epoch at which it is poor.

    Later epochs of a poor trial are not reported, since how many there are by then is chance.
    """
    trial, told = child.trial, len(child.trial.values)
    for epoch, value in enumerate(values[told:], start=told + 1):
        if child.stopping or not math.isfinite(value):
            return
        trial.values[epoch] = value
        search.experiment.tell(trial.number, epoch, value)
        child.stopping = _is_poor(search, trial)
        if child.stopping:
            child.process.terminate()


def _is_poor(search: Search, trial: Trial) -> bool:
    return search.config.poor_trials == "stop" and bool(trial.values) and search.experiment.is_poor(trial.number)


def _values(run: Path, objective: str) -> list[float]:
    """Return the best value of the objective up to each finished epoch, which is the one that the trial keeps."""
    try:
        lines = read_metrics_file(RunFolder(run).metrics)  # a line that is being written is left out
    except FileNotFoundError:
        return []
    values: list[float] = []
    for line in lines:
        if line["kind"] == "epoch":
            value = line.get(f"val_{objective}")
            if value is None:
                raise UserError(f"{RunFolder(run).metrics}: an epoch has no val_{objective}; start another search")
            values.append(value if not values or better(value, values[-1], objective) else values[-1])
    return values


def _reason(log: Path, code: int) -> str:
    """Return why a trial failed, in one line."""
    if code in (EXIT_INTERRUPTED, -signal.SIGTERM):
        return "interrupted from outside"
    if code < 0:
        return f"its process was killed by signal {-code}"
    lines = [line for line in read_end(log, _LOG_BYTES).decode(errors="replace").splitlines() if line.strip()]
    return lines[-1].removeprefix("trial: error: ") if lines else f"it ended with exit code {code} and printed nothing"


def _end(search: Search, trial: Trial, state: State, reason: str = "") -> None:
    search.experiment.end(trial.number, state, reason)
    shown = ", ".join(f"{k} {_short(v)}" for k, v in search.space.meaningful(trial.point).items())
    objective = spelled(search.experiment.objective)
    outcome = f"{objective} {trial.value:.4f}" if trial.value is not None and state != FAILED else reason
    search.announce(f"trial {trial.number} {state}: {outcome} ({shown})")


def _best_so_far(search: Search) -> str:
    best = best_trial(search.experiment.trials(), search.experiment.objective)
    return "" if best is None else f"best {best.value:.4f} of trial {best.number}"


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
