"""The names of all files of a run and of a search; the lock of a run's folder, and whether a training may use it."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from lmk_data.errors import UserError
from lmk_data.system.files import file_lock
from lmk_train.config.training import ResolvedConfig

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
        return self.path / f"predictions-{split}.parquet"

    def per_class(self, split: str) -> Path:
        """Return the path of the figures of each class on a split, Parquet."""
        return self.path / f"per-class-{split}.parquet"

    def confusion(self, split: str) -> Path:
        """Return the path of the sparse confusion matrix of a split, Parquet."""
        return self.path / f"confusion-{split}.parquet"

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


def is_run(run: Path) -> bool:
    """Return whether a folder holds the configuration of a training."""
    config = RunFolder(run).config
    return config.is_file() and b'"shards"' in config.read_bytes()


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
        raise UserError(f"--resume: {run} has no checkpoint to resume from; leave --resume out to start")
    if not config.resume and run.exists() and _names(run):
        what = (
            "holds a run; resume it with --resume or name another folder"
            if can_resume
            else "is not empty; name another"
        )
        raise UserError(f"--out {run}: {what}")
    return config


def _ended_before_checkpoint(run: Path) -> bool:
    """Return whether a folder holds only what a training leaves before its first checkpoint.

    The best weights of the first epoch are written before that checkpoint, so they may be there.
    """
    folder = RunFolder(run)
    if not is_run(run) or _names(run) - {path.name for path in folder.written_by_training}:
        return False
    checkpoints = set(folder.checkpoints.glob("*.pt"))
    lines = folder.metrics.read_text(errors="replace") if folder.metrics.exists() else ""
    return not checkpoints or (checkpoints == {folder.checkpoint("best")} and lines.count('"kind": "epoch"') <= 1)


def _names(run: Path) -> set[str]:
    """Return the names in a folder, without the lock and unfinished files of a process that was killed."""
    return {path.name for path in run.iterdir() if path.suffix != ".tmp"} - {_LOCK}


def remove_unfinished_files(run: Path) -> None:
    """Remove the unfinished files of a process that was killed; this process holds the folder's lock."""
    for left in (*run.glob("*.tmp"), *RunFolder(run).checkpoints.glob("*.tmp")):
        left.unlink(missing_ok=True)
