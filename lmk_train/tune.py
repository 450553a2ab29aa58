"""The search for hyper-parameters: trials as processes, poor ones stopped, the winner tested once; `lmk-tune`."""

import fcntl
import json
import math
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import IO, Any

import torch

from lmk_data.dataset import ShardedDataset
from lmk_data.errors import TrainingError, UserError
from lmk_data.files import write_bytes
from lmk_data.terminal import progress_bar
from lmk_train.config import DEFAULTS, TrainConfig
from lmk_train.evaluation import evaluate_run
from lmk_train.experiment import DONE, FAILED, RUNNING, STOPPED, Experiment, Trial, best_trial, better, import_ax
from lmk_train.features import SPLITS, compute_features
from lmk_train.loop import MAY_CHANGE_ON_RESUME
from lmk_train.metrics import FEW_BELOW, MANY_ABOVE, spelled
from lmk_train.options import EvalConfig, TuneConfig
from lmk_train.precision import resolve_device
from lmk_train.record import METRICS
from lmk_train.report import write_run_report
from lmk_train.search_report import write_search_report
from lmk_train.search_space import OF_THE_BACKBONE, Point, SearchSpace, default_space, read_space

TRIALS = "trials"
_SEARCH, _EXPERIMENT, _FEATURES, _BEST, _LOCK = "search.json", "experiment.json", "features", "best.json", ".lock"
_DEFAULT_TRIALS, _LARGE_GRID = 20, 200
_FAILURES_THAT_END = 5
_SECONDS_BETWEEN_LOOKS, _SECONDS_FOR_THE_LOCK = 0.1, 30.0
_INTERRUPTED = 130


@dataclass(frozen=True)
class TuneResult:
    """How a search ended: its trials, the best of them and the command that trains it again, its test metrics (None
    without a test split), and the report."""

    trials: list[Trial]
    best: Trial
    command: str
    test: dict[str, float | int | None] | None
    report: Path


@dataclass
class _Search:
    """A search in progress; `num_before` of its trials are of earlier commands, `exhausted` once no point is left."""

    config: TuneConfig
    out: Path
    space: SearchSpace
    experiment: Experiment
    points: list[Point] | None
    num_trials: int
    lock: int
    announce: Callable[[str], None]
    num_before: int
    exhausted: bool = False

    def run_of(self, number: int) -> Path:
        """The run folder of a trial."""
        return self.out / TRIALS / f"{number:03d}"


@dataclass
class _Child:
    """The process of a trial and its log; `stopping` once the trial was found to be poor."""

    trial: Trial
    slot: int
    process: "subprocess.Popen[bytes]"
    log: IO[bytes]
    stopping: bool = False

    def close(self) -> None:
        """Let go of the process, which has ended."""
        self.log.close()
        if self.process.stdin is not None:
            self.process.stdin.close()


def tune(config: TuneConfig, announce: Callable[[str], None] = lambda _: None) -> TuneResult:
    """Search, or go on with a search, and evaluate the best trial on the test split.

    `announce` is given a line about each trial that ends. Raises UserError for what does not work, TrainingError if
    every one of the first trials fails, KeyboardInterrupt when interrupted: all that was found is kept.
    """
    base = _base(config)
    with ShardedDataset.open(config.shards) as dataset:
        if config.search:
            space = read_space(config.search, base)
        else:
            space = default_space(base, dataset.num_samples("train"), features=config.cached_features)
        _check(config, space, base, dataset)
        identity = _identity(config, space, dataset)
    points = list(space.grid()) if config.strategy == "grid" else None
    num_trials = _num_trials(config, points)
    out = config.out or Path("runs") / f"tune-{base.model}-{base.loss}"
    _check_folder(out, config, identity)
    import_ax()  # before anything is written: it may not be installed
    with _locked(out) as lock:
        _check_folder(out, config, identity)  # a search may have begun there while this one waited for the lock
        experiment = _experiment(config, space, out, identity)
        before = len(experiment.trials())
        search = _Search(config, out, space, experiment, points, num_trials, lock, announce, before)
        try:
            if config.cached_features:
                compute_features(space.base.resolved(), out / _FEATURES, announce)
            _run_trials(search)
            return _finish(search)
        except KeyboardInterrupt:
            raise KeyboardInterrupt("give the same command with --resume to go on") from None


def _base(config: TuneConfig) -> TrainConfig:
    """What every trial has in common."""
    model = config.model or "efficientnet-b0"
    epochs = config.epochs or DEFAULTS[model].epochs
    frozen: dict[str, Any] = {"freeze_backbone_epochs": epochs, "hflip": 0.0, "color_jitter": 0.0}
    return TrainConfig(
        config.shards,
        model=model,
        loss=config.loss or "ldam",
        epochs=epochs,
        best_by=config.objective,
        device=config.device,
        workers=config.workers,
        cache=config.cache,
        cache_gb=config.cache_gb,
        seed=config.seed,
        quiet=config.quiet,
        **(frozen if config.cached_features else {}),
    )


def _check(config: TuneConfig, space: SearchSpace, base: TrainConfig, dataset: ShardedDataset) -> None:
    """Refuse what would fail in every trial, before the first one starts."""
    for name in ("model", "loss"):
        if name in space.parameters and getattr(config, name) is not None:
            raise UserError(f"--{name} {getattr(config, name)}: --search varies it; leave one of them out")
    odd = [n for n in OF_THE_BACKBONE if n in space.parameters or getattr(space.base, n) != getattr(base, n)]
    if config.cached_features and odd:
        raise UserError(f"--cached-features: {min(odd)} does nothing to a frozen backbone's features; leave it out")
    if config.cached_features and space.base.resolved().weights == "none":
        raise UserError("--cached-features: random weights make no features; fix `weights` to a file, or leave it out")
    resolve_device(config.device)
    for split in SPLITS:
        if not dataset.num_samples(split):
            raise UserError(f"{dataset.location}: has no {split} split; a search needs one")
    _check_objective(config.objective, dataset)
    sizes = space.parameters.get("batch_size")
    batch = max(map(int, sizes.ends())) if sizes else space.base.resolved().batch_size or 0
    if batch > dataset.num_samples("train"):
        where = f"--search {config.search}" if config.search else f"--shards {config.shards}"
        images = f"{dataset.num_samples('train')} training images"
        raise UserError(f"{where}: batch size {batch}: more than the {images}; give a smaller batch_size in --search")


def _check_objective(objective: str, dataset: ShardedDataset) -> None:
    """Refuse a metric of classes of which the validation split has none."""
    train = dataset.classes["train"][dataset.classes["val"] > 0]
    about = {
        "many_accuracy": train > MANY_ABOVE,
        "medium_accuracy": train.between(FEW_BELOW, MANY_ABOVE),
        "few_accuracy": train < FEW_BELOW,
    }
    if objective in about and not about[objective].any():
        raise UserError(f"--objective {objective}: the validation split has no class that it is about; give another")


def _num_trials(config: TuneConfig, points: list[Point] | None) -> int:
    if points is None:
        return config.trials or _DEFAULT_TRIALS
    if config.trials is None and len(points) > _LARGE_GRID:
        raise UserError(f"the grid has {len(points):,} points; give --trials {len(points)} if you mean it, or --search")
    if config.trials is not None and config.trials < len(points):
        raise UserError(f"--trials {config.trials}: the grid has {len(points):,} points; give fewer in --search")
    return len(points)


def _identity(config: TuneConfig, space: SearchSpace, dataset: ShardedDataset) -> dict[str, Any]:
    """What makes a search the same search."""
    described = space.json()
    described["config"] = {k: v for k, v in described["config"].items() if k not in MAY_CHANGE_ON_RESUME - {"weights"}}
    return {
        "strategy": config.strategy,
        "objective": config.objective,
        "cached_features": config.cached_features,
        "poor_trials": config.poor_trials,
        "dataset": dataset.manifest["content_sha256"],
        **described,
    }


def _check_folder(out: Path, config: TuneConfig, identity: dict[str, Any]) -> None:
    if not config.resume:
        if (out / _SEARCH).exists():
            raise UserError(f"--out {out}: holds a search; go on with --resume or name another folder")
        if out.exists() and (not out.is_dir() or not all(map(_is_of_a_start, out.iterdir()))):
            raise UserError(f"--out {out}: is not empty; name another folder")
        return
    try:
        earlier = json.loads((out / _SEARCH).read_bytes())
    except (OSError, ValueError):
        raise UserError(f"--resume: {out} has no search to go on with; leave --resume out to start") from None
    now = json.loads(json.dumps(identity))
    changed = [name for name in now if earlier.get(name) != now[name]]
    if "config" in changed:
        changed += [name for name in now["config"] if earlier["config"].get(name) != now["config"][name]]
        changed.remove("config")
    if changed:
        raise UserError(f"--resume: {', '.join(changed)} changed; give the search's own settings, or another --out")


def _is_of_a_start(path: Path) -> bool:
    """Whether a search that died before search.json was there may have left it."""
    return path.name in (_LOCK, _EXPERIMENT) or path.suffix == ".tmp"


def _experiment(config: TuneConfig, space: SearchSpace, out: Path, identity: dict[str, Any]) -> Experiment:
    """The experiment of the folder, begun or gone on with; search.json, written last, makes it one."""
    path, epochs = out / _EXPERIMENT, space.base.epochs or 1
    if config.resume:
        return Experiment.load(path, space, config.objective, config.seed, epochs)
    experiment = Experiment.new(path, space, config.objective, config.strategy, config.seed, epochs)
    write_bytes(out / _SEARCH, json.dumps(identity, indent=2).encode() + b"\n")
    return experiment


@contextmanager
def _locked(out: Path) -> Iterator[int]:
    """Hold the search's folder; its trials inherit the lock, so it is free only when the last of them has ended."""
    out.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + _SECONDS_FOR_THE_LOCK
    with open(out / _LOCK, "w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise UserError(f"--out {out}: another lmk-tune or a trial of it is at work there") from None
                time.sleep(_SECONDS_BETWEEN_LOOKS)
        yield file.fileno()


def _run_trials(search: _Search) -> None:
    experiment, config = search.experiment, search.config
    slots = _slots(config)
    for cut_short in experiment.trials():
        # Its last epoch was told, and the search was killed before it ended the trial.
        if cut_short.state == RUNNING and _is_poor(search, cut_short):
            _end(search, cut_short, STOPPED)
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
                    if _look_after(search, child):
                        children.remove(child)
                        bar.update()
                        bar.set_postfix_str(_so_far(search), refresh=False)
    finally:
        for child in children:
            child.process.terminate()
        for child in children:
            child.process.wait()
            child.close()


def _slots(config: TuneConfig) -> list[dict[str, str]]:
    """The environment of each trial that may run at once: a CUDA device of its own, or its share of the cores."""
    on_cuda = resolve_device(config.device).type == "cuda"
    devices = torch.cuda.device_count() if on_cuda else 0
    number = config.parallel or max(1, devices)
    if not on_cuda:
        threads = max(1, (os.cpu_count() or 1) // number)
        return [{"OMP_NUM_THREADS": str(threads)} if number > 1 else {} for _ in range(number)]
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    names = visible[:devices] or [str(device) for device in range(devices)]
    return [{"CUDA_VISIBLE_DEVICES": names[slot % len(names)]} for slot in range(number)]


def _next(search: _Search) -> Trial | None:
    """The next trial of the search, None if there is none."""
    trials = search.experiment.trials()
    if search.exhausted or len(trials) >= search.num_trials:
        return None
    if search.points is not None:
        return search.experiment.attach(search.points[len(trials)])
    _check_failures(trials[search.num_before :])
    found = search.experiment.ask()
    if found is None:
        search.exhausted = True
        search.announce(f"after {len(trials)} trials every point that is proposed was tried: the search ends")
    return found


def _check_failures(trials: list[Trial]) -> None:
    """Give up where nothing works: the first trials since the command began all failed at once, and all alike."""
    reasons = {trial.reason for trial in trials if trial.state == FAILED and not trial.values}
    in_vain = all(trial.state == FAILED and not trial.values for trial in trials)
    if len(trials) >= _FAILURES_THAT_END and in_vain and len(reasons) == 1:
        raise TrainingError(f"the first {len(trials)} trials all failed with: {reasons.pop()}; --resume tries others")


def _start(search: _Search, trial: Trial, slot: int, environment: dict[str, str]) -> _Child:
    run = search.run_of(trial.number)
    run.parent.mkdir(exist_ok=True)
    config = replace(search.space.config(trial.point), out=run, quiet=True)
    features = str(search.out / _FEATURES) if search.config.cached_features else None
    spec = run.with_suffix(".json")
    write_bytes(spec, json.dumps({"config": config.json(), "features": features}, indent=2).encode() + b"\n")
    log = open(run.with_suffix(".log"), "ab")  # noqa: SIM115 - closed when the trial ends
    process = subprocess.Popen(  # noqa: S603
        [sys.executable, "-m", "lmk_train.trial", str(spec)],
        stdin=subprocess.PIPE,
        stdout=log,
        stderr=log,
        env={**os.environ, **environment},
        start_new_session=True,  # Ctrl-C reaches the search alone, which then ends its trials
        pass_fds=(search.lock,),
    )
    return _Child(trial, slot, process, log)


def _look_after(search: _Search, child: _Child) -> bool:
    """Tell what a trial has found since the last look, and stop it if it is poor; whether it has ended."""
    trial = child.trial
    code = child.process.poll()  # before its lines are read, so that none is missed
    values = _values(search.run_of(trial.number), search.experiment.objective)
    _tell(search, child, values)
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
        _end(search, trial, FAILED, _reason(search.run_of(trial.number).with_suffix(".log"), code))
    return True


def _tell(search: _Search, child: _Child, values: list[float]) -> None:
    """Tell epoch by epoch and judge after each, and tell nothing after a poor one: when it was looked at is chance."""
    trial, told = child.trial, len(child.trial.values)
    for epoch, value in enumerate(values[told:], start=told + 1):
        if child.stopping or not math.isfinite(value):
            return
        trial.values[epoch] = value
        search.experiment.tell(trial.number, epoch, value)
        child.stopping = _is_poor(search, trial)
        if child.stopping:
            child.process.terminate()


def _is_poor(search: _Search, trial: Trial) -> bool:
    return search.config.poor_trials == "stop" and bool(trial.values) and search.experiment.is_poor(trial.number)


def _values(run: Path, objective: str) -> list[float]:
    """The best of the objective after each finished epoch: what the trial would keep."""
    try:
        lines = (run / METRICS).read_text().splitlines()
    except FileNotFoundError:
        return []
    values: list[float] = []
    for line in lines:
        try:
            said = json.loads(line)
        except ValueError:
            break  # it is being written
        if said["kind"] == "epoch":
            value = said[f"val_{objective}"]
            values.append(value if not values or better(value, values[-1], objective) else values[-1])
    return values


def _reason(log: Path, code: int) -> str:
    """Why a trial failed, in one line."""
    if code in (_INTERRUPTED, -signal.SIGTERM):
        return "interrupted from outside"
    if code < 0:
        return f"its process was killed by signal {-code}"
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].removeprefix("trial: error: ") if lines else f"it ended with exit code {code} and said nothing"


def _end(search: _Search, trial: Trial, state: str, reason: str = "") -> None:
    search.experiment.end(trial.number, state, reason)
    shown = ", ".join(f"{k} {_short(v)}" for k, v in search.space.meaningful(trial.point).items())
    objective = spelled(search.experiment.objective)
    found = f"{objective} {trial.value:.4f}" if trial.value is not None and state != FAILED else reason
    search.announce(f"trial {trial.number} {state}: {found} ({shown})")


def _so_far(search: _Search) -> str:
    best = best_trial(search.experiment.trials(), search.experiment.objective)
    return "" if best is None else f"best {best.value:.4f} of trial {best.number}"


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _finish(search: _Search) -> TuneResult:
    """Evaluate the winner on the test split, unless it was, and write best.json and the report."""
    config, trials = search.config, search.experiment.trials()
    best = best_trial(trials, config.objective)
    if best is None:
        why = next((trial.reason for trial in reversed(trials) if trial.reason), "every one was stopped")
        raise TrainingError(f"none of {len(trials)} trials finished: {why}")
    run, test = search.run_of(best.number), None
    with ShardedDataset.open(config.shards) as dataset:
        if dataset.num_samples("test"):
            if not (run / "eval-test.json").exists():
                evaluate_run(
                    EvalConfig(
                        run,
                        shards=config.shards,
                        device=config.device,
                        workers=config.workers,
                        cache=config.cache,
                        cache_gb=config.cache_gb,
                        quiet=config.quiet,
                    )
                )
                write_run_report(run, dataset, "test")
            test = json.loads((run / "eval-test.json").read_text())
    command = training_command(search.space.config(best.point))
    found = {
        "trial": best.number,
        "run": str(run),
        config.objective: best.value,
        "parameters": search.space.meaningful(best.point),
        "command": command,
        "test": test,
    }
    write_bytes(search.out / _BEST, json.dumps(found, indent=2).encode() + b"\n")
    report = write_search_report(search.out, search.experiment, search.space, trials, best, command, test)
    return TuneResult(trials, best, command, test, report)


def training_command(config: TrainConfig) -> str:
    """The `lmk-train` command of a configuration, ready to paste: what differs from the defaults."""
    words = ["lmk-train", "--shards", config.shards]
    left_out = {"shards", "out", "resume", "quiet", "device", "workers", "cache", "cache_gb"}
    for field in fields(TrainConfig):
        value = getattr(config, field.name)
        if field.name not in left_out and (value != field.default or field.name in ("model", "loss")):
            flag = f"--{field.name.replace('_', '-')}"
            words += [flag] if value is True else [flag, str(value)]
    return shlex.join(words)
