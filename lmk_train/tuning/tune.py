"""The search for hyper-parameters: begun or gone on with, and its winner tested once; `lmk-tune`."""

import fcntl
import json
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from lmk_data.dataset import ShardedDataset
from lmk_data.errors import TrainingError, UserError
from lmk_data.system.files import write_bytes
from lmk_train.config.commands import EvalConfig, TuneConfig
from lmk_train.config.training import DEFAULTS, TrainConfig
from lmk_train.data.features import SPLITS, compute_features
from lmk_train.evaluation.evaluate import check_metric, evaluate_run
from lmk_train.evaluation.report import write_run_report
from lmk_train.runtime.precision import resolve_device
from lmk_train.training.resume import MAY_CHANGE_ON_RESUME
from lmk_train.tuning.experiment import Experiment, Trial, best_trial, import_ax
from lmk_train.tuning.report import SearchResult, write_search_report
from lmk_train.tuning.space import OF_THE_BACKBONE, Point, SearchSpace, default_space, read_space
from lmk_train.tuning.trials import FEATURES, Search, run_trials

_SEARCH, _EXPERIMENT, _BEST, _LOCK = "search.json", "experiment.json", "best.json", ".lock"
_DEFAULT_TRIALS, _LARGE_GRID = 20, 200
_SECONDS_BETWEEN_LOOKS, _SECONDS_FOR_THE_LOCK = 0.1, 30.0


@dataclass(frozen=True)
class TuneResult:
    """How a search ended: its trials, the best of them and the command that trains it again, its test metrics (None
    without a test split), and the report."""

    trials: list[Trial]
    best: Trial
    command: str
    test: dict[str, float | int | None] | None
    report: Path


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
        search = Search(config, out, space, experiment, points, num_trials, lock, announce, before)
        try:
            if config.cached_features:
                compute_features(space.base.resolved(), out / FEATURES, announce)
            run_trials(search)
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
    check_metric(f"--objective {config.objective}", config.objective, dataset)
    sizes = space.parameters.get("batch_size")
    batch = max(map(int, sizes.ends())) if sizes else space.base.resolved().batch_size or 0
    if batch > dataset.num_samples("train"):
        where = f"--search {config.search}" if config.search else f"--shards {config.shards}"
        images = f"{dataset.num_samples('train')} training images"
        raise UserError(f"{where}: batch size {batch}: more than the {images}; give a smaller batch_size in --search")


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


def _finish(search: Search) -> TuneResult:
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
    result = SearchResult(search.experiment, search.space, trials, best, command, test)
    report = write_search_report(search.out, result)
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
