"""A run's folder: starting in it, and going on with what it holds."""

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from lmk_data.errors import UserError
from lmk_data.files import sha256_file, write_bytes
from lmk_train.checkpoint import BEST, FOLDER, LAST, checkpoint_path, load_checkpoint
from lmk_train.config import TrainConfig
from lmk_train.evaluation import CONFIG, check_classes
from lmk_train.record import EVENTS, METRICS, buffers
from lmk_train.trainer import NONFINITE, Progress, Trainer

_LOCK = ".lock"
MAY_CHANGE_ON_RESUME = {
    "shards",
    "out",
    "device",
    "workers",
    "grad_accum",
    "cache",
    "cache_gb",
    "checkpoint_minutes",
    "dry_run",
    "profile_input",
    "resume",
    "quiet",
}


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


def _sweep(run: Path) -> None:
    """Remove files that a kill left unfinished; this process holds the folder."""
    for left in (*run.glob("*.tmp"), *(run / FOLDER).glob("*.tmp")):
        left.unlink(missing_ok=True)


def start_run(trainer: Trainer, hold: Callable[[], None], announce: Callable[[str], None]) -> None:
    """Make the run's folder and hold it; everything else that could be refused has been checked by now."""
    run = trainer.run
    try:
        run.mkdir(parents=True, exist_ok=True)
        hold()
        check_run(run, trainer.config)  # another training may have been there meanwhile
        _sweep(run)
        if (run / CONFIG).exists():
            announce(f"{run}: the training there ended before its first checkpoint; it starts anew")
            for name in (METRICS, NONFINITE):
                (run / name).unlink(missing_ok=True)
            for name in (EVENTS, FOLDER):
                shutil.rmtree(run / name, ignore_errors=True)
        write_bytes(run / CONFIG, json.dumps(trainer.config.json(), indent=2).encode() + b"\n")
    except OSError as error:
        raise UserError(f"--out {run}: cannot be written: {error.strerror}") from error


def restore_run(trainer: Trainer) -> None:
    """Go on where the last checkpoint stands; refuse what would make it another training."""
    if trainer.world.is_first:
        _sweep(trainer.run)
    state = load_checkpoint(trainer.run, LAST)
    earlier, now = state["config"], trainer.config.json()
    changed = [name for name in now if name not in MAY_CHANGE_ON_RESUME and earlier.get(name) != now[name]]
    trainer.weights_sha256 = state.get("weights_sha256")
    if "weights" in changed and _has_sha256(Path(now["weights"]), trainer.weights_sha256):
        changed.remove("weights")  # the same file lies elsewhere now
    if changed:
        shown = "; ".join(f"--{name.replace('_', '-')} was {earlier.get(name)}, is {now[name]}" for name in changed)
        raise UserError(f"--resume: {shown}; give the run's own settings, or start another run with --out")
    check_classes(trainer.dataset, state["classes"])
    if state["content_sha256"] != trainer.dataset.manifest["content_sha256"]:
        raise UserError(f"--resume: {trainer.dataset.location} is not the dataset that the run was trained on")
    trainer.model.load_state_dict(state["model"])
    if trainer.averaged is not None:
        trainer.averaged.load_state_dict(state["averaged"])
    _restore_buffers(trainer, state["buffers"])
    trainer.optimizer.load_state_dict(state["optimizer"])
    if state["scaler"]:  # empty where the run did not scale its gradients
        trainer.scaler.load_state_dict(state["scaler"])
    trainer.epoch_sums.load_skipped(state["epoch_sums"])
    if trainer.world.is_first:
        trainer.epoch_sums.load(state["epoch_sums"])
    trainer.progress = Progress(**state["progress"])


def _has_sha256(path: Path, sha256: str | None) -> bool:
    return sha256 is not None and path.is_file() and sha256_file(path) == sha256


def _restore_buffers(trainer: Trainer, saved: list[dict[str, torch.Tensor]]) -> None:
    """Each process's own running statistics, or where there are now more or fewer processes, their mean."""
    for name, buffer in buffers(trainer).items():
        values = [part[name] for part in saved]
        if len(values) == trainer.world.size:
            buffer.copy_(values[trainer.world.rank])
        elif buffer.is_floating_point():
            buffer.copy_(torch.stack([value.double() for value in values]).mean(dim=0))
        else:
            buffer.copy_(values[0])
