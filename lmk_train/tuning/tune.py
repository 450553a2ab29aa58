"""Start or resume a search for hyper-parameters and test its best trial once; `lmk-tune`."""

import json
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmk_data.dataset import ShardedDataset
from lmk_data.errors import TrainingError, UserError
from lmk_data.leftovers import is_leftover
from lmk_data.system.files import file_lock, make_folder, write_bytes
from lmk_data.system.terminal import without_secrets
from lmk_train.config.commands import EvalConfig, TuneConfig
from lmk_train.config.defaults import DEFAULT_LOSS, DEFAULT_MODEL, DEFAULTS
from lmk_train.config.option import values_of
from lmk_train.config.training import TrainConfig
from lmk_train.data.features import CACHED_SPLITS
from lmk_train.evaluation.evaluate import check_metric, evaluate_run
from lmk_train.evaluation.evaluation_files import read_evaluation
from lmk_train.evaluation.report import write_run_report
from lmk_train.runs.folder import RunFolder, SearchFolder, refuse_unwritable_name
from lmk_train.runs.plain_file import read_json
from lmk_train.runtime.precision import device_type
from lmk_train.tuning.ax_client import Plan, import_ax
from lmk_train.tuning.experiment import Experiment, Trial, best_trial
from lmk_train.tuning.feature_process import ensure_features
from lmk_train.tuning.report import SearchResult, write_search_report
from lmk_train.tuning.space import OPTIONS, Point, SearchSpace, default_space, read_space
from lmk_train.tuning.trials import Search, run_trials

_DEFAULT_TRIALS, _LARGE_GRID = 20, 200
_LOCK_WAIT_SECONDS = 30.0


@dataclass(frozen=True)
class TuneResult:
    """How a search ended.

    `command` trains the best trial again. `test` has its test metrics, None without a test split.
    """

    trials: list[Trial]
    best: Trial
    command: str
    test: dict[str, float | int | None] | None
    report: Path


def tune(config: TuneConfig, announce: Callable[[str], None] = lambda _: None) -> TuneResult:
    """Start or resume a search, and evaluate the best trial on the test split.

    `announce` is given one line about each trial that ends. Raises UserError for options or a dataset that do not work,
    TrainingError if all of the first trials fail, KeyboardInterrupt when interrupted; finished trials are kept.
    """
    base = _base(config)
    with ShardedDataset.open(config.shards, base=config.base) as dataset:
        if config.search:
            space = read_space(config.search, base)
        else:
            space = default_space(base, dataset.num_samples("train"), features=config.cached_features)
        _check(config, space, base, dataset)
        identity = _identity(config, space, dataset)
    points = list(space.grid()) if config.strategy == "grid" else None
    num_trials = _num_trials(config, points)
    folder = SearchFolder(config.out or Path("runs") / f"tune-{base.model}-{base.loss}")
    refuse_unwritable_name(folder.path)
    _check_folder(folder, config, identity)
    import_ax()  # before anything is written, since it may not be installed
    with _locked(folder) as lock:
        _check_folder(folder, config, identity)  # a search may have started there while this one waited for the lock
        experiment = _experiment(config, space, folder, identity)
        before = len(experiment.trials())
        search = Search(config, folder, space, experiment, points, num_trials, lock, announce, before)
        try:
            if config.cached_features:
                ensure_features(space.base.resolved(), folder.features, lock, announce)
            run_trials(search)
            return _finish(search)
        except KeyboardInterrupt:
            raise KeyboardInterrupt("give the same command with --resume to continue") from None


def _base(config: TuneConfig) -> TrainConfig:
    """Return the configuration that all trials have in common."""
    model = config.model or DEFAULT_MODEL
    epochs = config.epochs or DEFAULTS[model]["epochs"]
    frozen: dict[str, Any] = {"freeze_backbone_epochs": epochs, "hflip": 0.0, "color_jitter": 0.0}
    return TrainConfig(
        config.shards,
        base=config.base,
        model=model,
        loss=config.loss or DEFAULT_LOSS,
        epochs=epochs,
        best_by=config.objective,
        device=config.device,
        workers=config.workers,
        cache=config.cache,
        seed=config.seed,
        quiet=config.quiet,
        **(frozen if config.cached_features else {}),
    )


def _check(config: TuneConfig, space: SearchSpace, base: TrainConfig, dataset: ShardedDataset) -> None:
    """Raise UserError for what would fail in every trial, before the first one starts."""
    for name in ("model", "loss"):
        if name in space.parameters and getattr(config, name) is not None:
            raise UserError(f"--{name} {getattr(config, name)}: --search varies it; leave one of them out")
    if config.cached_features:
        _check_features(space, base)
    device_type(config.device)
    for split in CACHED_SPLITS:
        if not dataset.num_samples(split):
            raise UserError(f"{dataset.location}: has no {split} split; a search needs one")
    check_metric(f"--objective {config.objective}", config.objective, dataset)
    sizes = space.parameters.get("batch_size")
    batch = max(map(int, sizes.ends())) if sizes else space.base.resolved().batch_size
    if batch > dataset.num_samples("train"):
        where = f"--search {config.search}" if config.search else f"--shards {config.shards}"
        images = f"{dataset.num_samples('train')} training images"
        raise UserError(f"{where}: batch size {batch}: more than the {images}; give a smaller batch_size in --search")


def _check_features(space: SearchSpace, base: TrainConfig) -> None:
    """Raise UserError for options that have no effect on a head that is trained on cached features."""
    of_backbone = [name for name, option in OPTIONS.items() if option.info.acts_on_backbone]
    given = [n for n in of_backbone if n in space.parameters or getattr(space.base, n) != getattr(base, n)]
    if given:
        raise UserError(f"--cached-features: {min(given)} has no effect on a frozen backbone's features; leave it out")
    if space.base.resolved().weights == "none":
        raise UserError(
            "--cached-features: random weights give no useful features; set `weights` to a file under [fixed] in "
            "--search, choose another --model, or leave --cached-features out"
        )


def _num_trials(config: TuneConfig, points: list[Point] | None) -> int:
    if points is None:
        return config.trials or _DEFAULT_TRIALS
    if config.trials is None and len(points) > _LARGE_GRID:
        raise UserError(f"the grid has {len(points):,} points; give --trials {len(points)} if you mean it, or --search")
    if config.trials is not None and config.trials < len(points):
        raise UserError(f"--trials {config.trials}: the grid has {len(points):,} points; give fewer in --search")
    return len(points)


def _identity(config: TuneConfig, space: SearchSpace, dataset: ShardedDataset) -> dict[str, Any]:
    """Return what must not change when the search is resumed."""
    described = space.json()
    described["config"] = {
        name: value for name, value in described["config"].items() if not OPTIONS[name].info.may_change_on_resume
    }
    return {
        "strategy": config.strategy,
        "objective": config.objective,
        "cached_features": config.cached_features,
        "poor_trials": config.poor_trials,
        "dataset": dataset.manifest["content_sha256"],
        **described,
    }


def _check_folder(folder: SearchFolder, config: TuneConfig, identity: dict[str, Any]) -> None:
    """Raise UserError if the search can neither start nor resume in the folder."""
    out = folder.path
    if not config.resume:
        if folder.description.exists():
            raise UserError(f"--out {out}: holds a search; resume it with --resume or name another folder")
        if out.exists() and (not out.is_dir() or not all(_is_of_a_start(folder, path) for path in out.iterdir())):
            raise UserError(f"--out {out}: is not empty; name another folder")
        return
    earlier = _description(folder)
    now = json.loads(json.dumps(identity))
    changed = [name for name in now if earlier.get(name) != now[name]]
    if "config" in changed:
        changed += [name for name in now["config"] if earlier["config"].get(name) != now["config"][name]]
        changed.remove("config")
    if changed:
        raise UserError(f"--resume: {', '.join(changed)} changed; give the search's own settings, or another --out")


def _description(folder: SearchFolder) -> dict[str, Any]:
    """Return what search.json says about a search. Raises UserError if it is absent or not the one of a search."""
    try:
        earlier = read_json(folder.description, dict[str, Any], "the description of a search")
    except FileNotFoundError:
        raise UserError(f"--resume: {folder.path} has no search to resume; leave --resume out to start") from None
    if not isinstance(earlier.get("config"), dict):
        raise UserError(f"{folder.description}: not the description of a search; start another with --out")
    return earlier


def _is_of_a_start(folder: SearchFolder, path: Path) -> bool:
    """Return whether a search that was killed before it wrote search.json may have left a file, or a system did."""
    return path in (folder.lock, folder.experiment) or path.suffix == ".tmp" or is_leftover(path.name)


def _experiment(config: TuneConfig, space: SearchSpace, folder: SearchFolder, identity: dict[str, Any]) -> Experiment:
    """Start or resume the experiment of a folder; search.json is written last and makes it a search."""
    path = folder.experiment
    plan = Plan(space, config.objective, config.strategy, config.seed, space.base.epochs or 1)
    if config.resume:
        return Experiment.load(path, plan)
    experiment = Experiment.new(path, plan)
    write_bytes(folder.description, json.dumps(identity, indent=2).encode() + b"\n")
    return experiment


@contextmanager
def _locked(folder: SearchFolder) -> Iterator[int]:
    """Lock a search's folder and yield the descriptor; trials inherit it, so the lock ends with the last of them."""
    make_folder(folder.path)
    busy = f"--out {folder.path}: another lmk-tune or a trial of it is at work there; wait for it or stop it"
    with file_lock(folder.lock, wait_seconds=_LOCK_WAIT_SECONDS, busy=busy) as descriptor:
        yield descriptor


def _finish(search: Search) -> TuneResult:
    """Evaluate the best trial on the test split, unless that is done, and write best.json and the report.

    Raises TrainingError if no trial finished.
    """
    config, trials = search.config, search.experiment.trials()
    best = best_trial(trials, config.objective)
    if best is None:
        why = next((trial.reason for trial in reversed(trials) if trial.reason), "every one was stopped")
        raise TrainingError(f"none of {len(trials)} trials finished: {why}")
    run = search.folder.trial(best.number)
    test = _test_metrics(run, config)
    command = training_command(search.space.config(best.point))
    described = {
        "trial": best.number,
        "run": str(run),
        config.objective: best.value,
        "parameters": search.space.meaningful(best.point),
        "command": command,
        "test": test,
    }
    write_bytes(search.folder.best, json.dumps(described, indent=2).encode() + b"\n")
    result = SearchResult(search.experiment, search.space, trials, best, command, test)
    report = write_search_report(search.folder.path, result)
    return TuneResult(trials, best, command, test, report)


def _test_metrics(run: Path, config: TuneConfig) -> dict[str, float | int | None] | None:
    """Return the test metrics of a run, evaluated unless they are there; None without a test split."""
    evaluation = RunFolder(run).evaluation("test")
    with ShardedDataset.open(config.shards, base=config.base) as dataset:
        if not dataset.num_samples("test"):
            return None
        if not _is_of_best(evaluation, dataset.manifest["content_sha256"]):
            evaluate_run(
                EvalConfig(
                    run,
                    shards=config.shards,
                    base=config.base,
                    device=config.device,
                    workers=config.workers,
                    cache=config.cache,
                    quiet=config.quiet,
                )
            )
            write_run_report(run, dataset, "test")
    return read_evaluation(evaluation)


def _is_of_best(path: Path, content_sha256: str) -> bool:
    """Return whether an evaluation is that of the best checkpoint on this dataset; others are made by hand."""
    found = read_evaluation(path) if path.exists() else {}
    return (found.get("checkpoint"), found.get("dataset")) == ("best", content_sha256)


def training_command(config: TrainConfig) -> str:
    """Return the `lmk-train` command of a configuration, ready to paste: the options that differ from the defaults.

    Files show it, so the URLs in it are without their secrets.
    """
    words = ["lmk-train", "--shards", without_secrets(config.shards)]
    if config.base is not None:
        words += ["--base", without_secrets(config.base)]
    values = values_of(config)
    for name, option in OPTIONS.items():
        if option.info.decides_training and (values[name] != option.default or name in ("model", "loss")):
            words += [option.flag] if values[name] is True else [option.flag, str(values[name])]
    return shlex.join(words)
