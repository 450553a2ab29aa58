"""A run's folder: the names of its files, who may train in it, and whether a training may start or resume there."""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from lmk_data.errors import UserError
from lmk_train.config.training import TrainConfig
from lmk_train.runs.checkpoint import (
    BEST,
    FOLDER,
    LAST,
    checkpoint_path,
)

CONFIG = "config.json"
NONFINITE = "nonfinite.json"
METRICS, EVENTS = "metrics.jsonl", "tensorboard"
_LOCK = ".lock"


@contextmanager
def one_training_at_a_time(run: Path) -> Iterator[Callable[[], None]]:
    """A function that holds a run's folder until this context ends, and raises UserError where another training does.

    It holds a file in it, since a folder behind NFS is held on one machine only.
    """
    held: list[int] = []

    def hold() -> None:
        if held:
            return
        descriptor = os.open(run / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        held.append(descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"--out {run}: another training is at work there; wait for it or name another") from None

    try:
        yield hold
    finally:
        for descriptor in held:
            os.close(descriptor)


def is_run(run: Path) -> bool:
    """Whether a folder holds a training's configuration."""
    return (run / CONFIG).is_file() and b'"shards"' in (run / CONFIG).read_bytes()


def check_run(run: Path, config: TrainConfig) -> TrainConfig:
    """The configuration to train with: where a run ended before its first checkpoint, --resume starts it anew too.

    Raises UserError for a folder that the run can neither start nor go on in.
    """
    if run.exists() and not run.is_dir():
        raise UserError(f"--out {run}: is not a folder; name another")
    if _ended_before_a_checkpoint(run):
        return replace(config, resume=False)
    can_go_on = checkpoint_path(run, LAST).exists()
    if config.resume and not can_go_on:
        raise UserError(f"--resume: {run} has no checkpoint to go on from; leave --resume out to start")
    if not config.resume and run.exists() and _names(run):
        what = "holds a run; go on with --resume or name another folder" if can_go_on else "is not empty; name another"
        raise UserError(f"--out {run}: {what}")
    return config


def _ended_before_a_checkpoint(run: Path) -> bool:
    """Whether a folder holds what a training leaves before its first checkpoint, and nothing else.

    The best weights of its first epoch are written before that, so they may be there.
    """
    if not is_run(run) or _names(run) - {CONFIG, METRICS, EVENTS, NONFINITE, FOLDER}:
        return False
    checkpoints = {path.name for path in (run / FOLDER).glob("*.pt")}
    lines = (run / METRICS).read_text(errors="replace") if (run / METRICS).exists() else ""
    return not checkpoints or (checkpoints == {BEST} and lines.count('"kind": "epoch"') <= 1)


def _names(run: Path) -> set[str]:
    """What a folder holds, beside the lock and files that a kill left unfinished."""
    return {path.name for path in run.iterdir() if path.suffix != ".tmp"} - {_LOCK}


def remove_unfinished_files(run: Path) -> None:
    """Remove files that a kill left unfinished; this process holds the folder."""
    for left in (*run.glob("*.tmp"), *(run / FOLDER).glob("*.tmp")):
        left.unlink(missing_ok=True)
