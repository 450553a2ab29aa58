"""Start a run in its folder, or resume it from its last checkpoint."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lmk_data.errors import UserError, one_line
from lmk_data.system.files import make_folder, sha256_file, write_bytes
from lmk_train.config.option import options_of
from lmk_train.config.training import ResolvedConfig
from lmk_train.runs.checkpoint import LAST, load_checkpoint
from lmk_train.runs.classes import check_classes
from lmk_train.runs.folder import RunFolder, check_run, remove_interrupted_start, remove_unfinished_files
from lmk_train.runs.tensor_file import restore_weights
from lmk_train.runtime.oom import is_out_of_memory
from lmk_train.training.record import buffers
from lmk_train.training.trainer import Progress, Trainer

_KEPT: dict[str, set[str]] = {"sgd": {"momentum_buffer"}, "adamw": {"step", "exp_avg", "exp_avg_sq"}}


def start_run(trainer: Trainer, hold: Callable[[], None], announce: Callable[[str], None]) -> None:
    """Make the run's folder, lock it with `hold` and write its configuration; all other checks have passed by now.

    Raises UserError if another training is at work in the folder, or if it cannot be written.
    """
    run, folder = trainer.run, RunFolder(trainer.run)
    try:
        make_folder(run)
        hold()
        check_run(run, trainer.config)  # another training may have run there since the first check
        remove_unfinished_files(run)
        if folder.config.exists():
            announce(f"{run}: the training there ended before its first checkpoint; it starts again")
            remove_interrupted_start(run)
        write_bytes(folder.config, json.dumps(trainer.config.public_json(), indent=2).encode() + b"\n")
    except OSError as error:
        raise UserError(f"--out {run}: cannot be written: {error.strerror}") from error


def restore_run(trainer: Trainer) -> None:
    """Bring a trainer to the state of the run's last checkpoint.

    Raises UserError if configuration or dataset differ in what would make it another training.
    """
    if trainer.world.is_first:
        remove_unfinished_files(trainer.run)
    state = load_checkpoint(trainer.run, LAST)
    trainer.weights_sha256 = state.get("weights_sha256")
    _check_configuration(trainer, state["config"])
    check_classes(trainer.dataset, state["classes"])
    if state["content_sha256"] != trainer.dataset.manifest["content_sha256"]:
        where = trainer.dataset.location
        raise UserError(
            f"--resume: {where} is not the dataset that the run was trained on; give that one with --shards"
        )
    path = RunFolder(trainer.run).checkpoint(LAST)
    restore_weights(trainer.model, state["model"], path)
    try:
        _restore_rest(trainer, state)
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        if is_out_of_memory(error):
            raise
        raise UserError(
            f"{path}: its state does not fit its configuration ({one_line(error)}); copy it again from a good copy"
        ) from None


def _restore_rest(trainer: Trainer, state: dict[str, Any]) -> None:
    """Restore everything but the weights: averages, running statistics, optimiser, sums and progress."""
    if trainer.averaged is not None:
        trainer.averaged.load_state_dict(state["averaged"])
    _restore_buffers(trainer, state["buffers"])
    _restore_optimizer(trainer, state["optimizer"]["state"])
    if state["scaler"]:  # empty if the run did not scale its gradients
        trainer.scaler.load_state_dict(state["scaler"])
    trainer.epoch_sums.load_skipped(state["epoch_sums"])
    if trainer.world.is_first:
        trainer.epoch_sums.load(state["epoch_sums"])
    trainer.progress = Progress(**state["progress"])


def _restore_optimizer(trainer: Trainer, saved: dict[int, dict[str, Any]]) -> None:
    """Restore what an optimiser keeps of each parameter; fused kernels would write beyond a tensor of another shape."""
    own = trainer.optimizer.state_dict()["param_groups"]
    parameters = [parameter for group in trainer.optimizer.param_groups for parameter in group["params"]]
    names = _KEPT[trainer.config.optimizer]
    for number, values in saved.items():
        if values.keys() != names:
            raise ValueError(f"the optimiser's state has {', '.join(sorted(map(str, values)))[:100]}")
        for name, value in values.items():
            shape = torch.Size() if name == "step" else parameters[number].shape
            if value is not None and (value.shape != shape or not value.is_floating_point()):
                raise ValueError(f"the optimiser's {name} of parameter {number} has the shape {tuple(value.shape)}")
    trainer.optimizer.load_state_dict({"state": saved, "param_groups": own})


def _check_configuration(trainer: Trainer, earlier: dict[str, Any]) -> None:
    """Raise UserError if an option that may not change on resume differs from the checkpoint's."""
    now = trainer.config.public_json()
    changed = {
        name: option
        for name, option in options_of(ResolvedConfig).items()
        if not option.info.may_change_on_resume and earlier.get(name) != now[name]
    }
    if "weights" in changed and _has_sha256(Path(now["weights"]), trainer.weights_sha256):
        del changed["weights"]  # the same file at another path
    if changed:
        shown = "; ".join(f"{option.flag} was {earlier.get(name)}, is {now[name]}" for name, option in changed.items())
        raise UserError(f"--resume: {shown}; give the run's own settings, or start another run with --out")


def _has_sha256(path: Path, sha256: str | None) -> bool:
    return sha256 is not None and path.is_file() and sha256_file(path) == sha256


def _restore_buffers(trainer: Trainer, saved: list[dict[str, torch.Tensor]]) -> None:
    """Restore each rank's running statistics; if the number of ranks has changed, their mean in every rank."""
    for name, buffer in buffers(trainer).items():
        values = [part[name] for part in saved]
        if len(values) == trainer.world.size:
            buffer.copy_(values[trainer.world.rank])
        elif buffer.is_floating_point():
            buffer.copy_(torch.stack([value.double() for value in values]).mean(dim=0))
        else:
            buffer.copy_(values[0])
