"""The names of all files of a run and of a search; the lock of a run's folder, and whether a training may use it."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from lmk_data.dataset.evaluation import per_class_name, predictions_name
from lmk_data.errors import UserError
from lmk_data.leftovers import is_leftover
from lmk_data.system.files import check_no_link, file_lock, is_unfinished
from lmk_data.system.storage import is_url, stored_location
from lmk_train.config.training import ResolvedConfig
from lmk_train.runs.plain_file import read_bounded, read_json

_LOCK = ".lock"
_REPORT = "report"
_EXPORT_SUFFIXES = {"onnx": "onnx", "torch": "pt2"}


@dataclass(frozen=True)
class RunFolder:
    """The paths of all files of a run."""

    path: Path

    @property
    def config(self) -> Path:
        """Return the path of the configuration, JSON."""
        return self.path / "config.json"

    @property
    def metrics(self) -> Path:
        """Return the path of the metrics during training, a JSON object per line."""
        return self.path / "metrics.jsonl"

    @property
    def events(self) -> Path:
        """Return the folder of TensorBoard's events."""
        return self.path / "tensorboard"

    @property
    def nonfinite(self) -> Path:
        """Return the path of what is known of a step that was not finite, JSON."""
        return self.path / "nonfinite.json"

    @property
    def checkpoints(self) -> Path:
        """Return the folder of checkpoints."""
        return self.path / "checkpoints"

    @property
    def lock(self) -> Path:
        """Return the path of the file that a training holds."""
        return self.path / _LOCK

    @property
    def written_by_training(self) -> tuple[Path, ...]:
        """Return the files and folders that a training writes, without those of evaluations."""
        return (self.config, self.metrics, self.nonfinite, self.events, self.checkpoints)

    def checkpoint(self, name: str) -> Path:
        """Return the path of the checkpoint `best` or `last`."""
        return self.checkpoints / f"{name}.pt"

    def evaluation(self, split: str) -> Path:
        """Return the path of the metrics of a split, JSON."""
        return self.path / f"eval-{split}.json"

    def tau_sweep(self, split: str) -> Path:
        """Return the path of the sweep over tau on a split, JSON."""
        return self.path / f"tau-{split}.json"

    def predictions(self, split: str) -> Path:
        """Return the path of the predictions on a split, Parquet."""
        return self.path / predictions_name(split)

    def per_class(self, split: str) -> Path:
        """Return the path of the figures of each class on a split, Parquet."""
        return self.path / per_class_name(split)

    def confusion(self, split: str) -> Path:
        """Return the path of the sparse confusion matrix of a split, Parquet."""
        return self.path / f"confusion-{split}.parquet"

    @property
    def calibration(self) -> Path:
        """Return the path of the temperature of the run's probabilities, JSON."""
        return self.path / "calibration.json"

    @property
    def neighbours(self) -> Path:
        """Return the folder of the index of the training pictures."""
        return self.path / "neighbours"

    def report(self, split: str = "test") -> Path:
        """Return the path of the report on a split, HTML."""
        return self.path / _REPORT / ("index.html" if split == "test" else f"{split}.html")

    def exported(self, kind: str) -> Path:
        """Return the default path of the model as a file for other programs, of the kind `onnx` or `torch`."""
        return self.path / f"model.{_EXPORT_SUFFIXES[kind]}"


@dataclass(frozen=True)
class SearchFolder:
    """The paths of all files of a search."""

    path: Path

    @property
    def description(self) -> Path:
        """Return the path of what makes the search this search, JSON; it is written once all else is there."""
        return self.path / "search.json"

    @property
    def experiment(self) -> Path:
        """Return the path of the trials, JSON."""
        return self.path / "experiment.json"

    @property
    def best(self) -> Path:
        """Return the path of the best trial's parameters and metrics, JSON."""
        return self.path / "best.json"

    @property
    def features(self) -> Path:
        """Return the folder of cached features."""
        return self.path / "features"

    @property
    def report(self) -> Path:
        """Return the path of the report, HTML."""
        return self.path / _REPORT / "index.html"

    @property
    def lock(self) -> Path:
        """Return the path of the file that the search and its trials hold."""
        return self.path / _LOCK

    def trial(self, number: int) -> Path:
        """Return the run folder of a trial."""
        return self.path / "trials" / f"{number:03d}"

    def trial_spec(self, number: int) -> Path:
        """Return the path of what a trial's process is told, JSON."""
        return self.trial(number).with_suffix(".json")

    def trial_log(self, number: int) -> Path:
        """Return the path of what a trial's process prints."""
        return self.trial(number).with_suffix(".log")


@contextmanager
def training_lock(run: Path) -> Iterator[Callable[[], None]]:
    """Yield a function that locks a run's folder until the context ends; it raises UserError if another training does.

    The lock is a lock on a file in the folder. On NFS it holds for the trainings of one machine only.
    """
    busy = f"--out {run}: another training is at work there; wait for it or name another"
    with ExitStack() as held:

        @cache
        def hold() -> None:
            held.enter_context(file_lock(RunFolder(run).lock, wait_seconds=0, busy=busy))

        yield hold


def refuse_links(run: Path) -> None:
    """Raise UserError if something that a run writes into is a symbolic link.

    A run that came from somebody else may hold links. Files that are replaced as a whole need no check: the link is.
    """
    folder = RunFolder(run)
    for path in (folder.lock, folder.metrics, folder.events, folder.checkpoints, folder.report().parent):
        check_no_link(path)


def refuse_unwritable_name(run: Path) -> None:
    """Raise UserError for a folder whose path is not UTF-8: TensorBoard cannot write there."""
    try:
        str(run.absolute()).encode()
    except UnicodeEncodeError:
        raise UserError(f"--out {run}: TensorBoard writes only where the path is UTF-8; name another folder") from None


def stored_dataset(run: Path, shards: str) -> str:
    """Return the dataset that a run's checkpoint names.

    Raises UserError for a URL, which nobody named: the run may be a stranger's.
    """
    try:
        if not is_url(stored_location(shards)):
            return shards
        reason = "is behind a URL"
    except ValueError as error:
        reason = f"is {error}"
    raise UserError(f"{run}: its dataset {shards!r} {reason}; name the dataset with --shards to open it")


def is_run(run: Path) -> bool:
    """Return whether a folder holds the configuration of a training."""
    return stored_config(run) is not None


def stored_config(run: Path) -> dict[str, Any] | None:
    """Return config.json of a run; None if it is absent or not what a training writes."""
    try:
        config = read_json(RunFolder(run).config, dict[str, Any], "a configuration")
    except (OSError, UserError):
        return None
    return config if {"shards", "model", "loss"} <= config.keys() else None


def check_run(run: Path, config: ResolvedConfig) -> ResolvedConfig:
    """Return the configuration to train with; `resume` is off if the run ended before its first checkpoint.

    Raises UserError if a training can neither start nor resume in the folder.
    """
    if run.exists() and not run.is_dir():
        raise UserError(f"--out {run}: is not a folder; name another")
    if _ended_before_checkpoint(run):
        return replace(config, resume=False)
    can_resume = RunFolder(run).checkpoint("last").exists()
    if config.resume and not can_resume:
        advice = "name another folder" if RunFolder(run).checkpoint("best").exists() else "leave --resume out to start"
        raise UserError(f"--resume: {run} has no checkpoint to resume from; {advice}")
    if not config.resume and run.exists() and _names(run):
        raise UserError(f"--out {run}: {_what_it_holds(run)}")
    return config


def _what_it_holds(run: Path) -> str:
    """Return why no training starts in a folder that is not empty, and what to do."""
    if RunFolder(run).checkpoint("last").exists():
        return "holds a run; resume it with --resume or name another folder"
    if RunFolder(run).checkpoint("best").exists():
        return "holds a model (checkpoints/best.pt), which is never replaced; name another folder"
    return "is not empty; name another"


def _ended_before_checkpoint(run: Path) -> bool:
    """Return whether a folder holds only what a training leaves before its first checkpoint.

    Without a validation split the best weights of the first epoch are written before that checkpoint, so they may be
    there, with metrics that show at most this epoch of several. Any other model is finished work, as is every file that
    no training writes.
    """
    folder, config = RunFolder(run), stored_config(run)
    if config is None or _names(run) - {path.name for path in folder.written_by_training}:
        return False
    if not all(_is_left_by_training(path) for path in _left_by_training(run)):
        return False
    if not folder.checkpoint("best").exists():
        return True
    epochs = config.get("epochs")
    num_finished = _num_finished_epochs(folder.metrics)
    return isinstance(epochs, int) and epochs > 1 and num_finished is not None and num_finished <= 1


def _left_by_training(run: Path) -> list[Path]:
    """Return all files that a training wrote into a run, and whatever others put into the folders that it made."""
    folder = RunFolder(run)
    files = [path for path in (folder.config, folder.metrics, folder.nonfinite) if _exists(path)]
    for inner in (folder.events, folder.checkpoints):
        files += inner.iterdir() if inner.is_dir() and not inner.is_symlink() else [inner] if _exists(inner) else []
    return [path for path in files if not is_leftover(path.name)]


def _is_left_by_training(path: Path) -> bool:
    """Return whether a training writes a file of this name there before its first checkpoint."""
    if path.is_symlink() or not path.is_file():
        return False
    if path.parent.name == "tensorboard":
        return path.name.startswith("events.")
    return path.parent.name != "checkpoints" or path.name == "best.pt" or is_unfinished(path.name)


def _num_finished_epochs(metrics: Path) -> int | None:
    """Return how many epochs the metrics of a training show; None if there are none, or not of a training.

    A last line that a crash cut short does not count.
    """
    try:
        *lines, last = read_bounded(metrics).decode(errors="replace").split("\n")
        kinds = [json.loads(line)["kind"] for line in lines]
        return kinds.count("epoch") + last.startswith('{"kind": "epoch"')
    except (OSError, UserError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _exists(path: Path) -> bool:
    return path.exists() or path.is_symlink()


def _names(run: Path) -> set[str]:
    """Return the names in a folder, without the lock, unfinished files of a killed process, and what systems leave."""
    names = {path.name for path in run.iterdir()} - {_LOCK}
    return {name for name in names if not is_unfinished(name) and not is_leftover(name)}


def remove_interrupted_start(run: Path) -> None:
    """Remove what a training left that ended before its first checkpoint, except its configuration."""
    folder = RunFolder(run)
    for path in _left_by_training(run):
        if path != folder.config and _is_left_by_training(path):
            path.unlink(missing_ok=True)


def remove_unfinished_files(run: Path) -> None:
    """Remove the unfinished files of a training that was killed; this process holds the folder's lock.

    Those of an evaluation stay, because it may be at work: it does not hold the lock.
    """
    folder = RunFolder(run)
    files = [path for path in run.iterdir() if path.name.startswith(tuple(f.name for f in folder.written_by_training))]
    if folder.checkpoints.is_dir():
        files += folder.checkpoints.iterdir()
    for left in files:
        if is_unfinished(left.name):
            left.unlink(missing_ok=True)
