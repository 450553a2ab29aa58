"""A run's folder: starting in it, and going on with what it holds."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch

from lmk_data.errors import UserError
from lmk_data.system.files import sha256_file, write_bytes
from lmk_train.runs.checkpoint import FOLDER, LAST, load_checkpoint
from lmk_train.runs.classes import check_classes
from lmk_train.runs.folder import CONFIG, EVENTS, METRICS, NONFINITE, check_run, remove_unfinished_files
from lmk_train.training.record import buffers
from lmk_train.training.trainer import Progress, Trainer

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


def start_run(trainer: Trainer, hold: Callable[[], None], announce: Callable[[str], None]) -> None:
    """Make the run's folder and hold it; everything else that could be refused has been checked by now."""
    run = trainer.run
    try:
        run.mkdir(parents=True, exist_ok=True)
        hold()
        check_run(run, trainer.config)  # another training may have been there meanwhile
        remove_unfinished_files(run)
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
        remove_unfinished_files(trainer.run)
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
