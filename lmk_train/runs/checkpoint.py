"""Checkpoints: `last` holds all that resuming needs, `best` the best weights; plain tensors and values only."""

import pickle
from pathlib import Path
from typing import Any

import torch

from lmk_data.errors import StorageError, UserError
from lmk_data.system.files import atomic_file
from lmk_train.runs.folder import RunFolder

FORMAT, VERSION = "lmk-checkpoint", 2
LAST, BEST = "last", "best"


def save_checkpoint(run: Path, name: str, state: dict[str, Any]) -> None:
    """Write the checkpoint `best` or `last` of a run; the earlier one stays whole until this one is.

    Raises StorageError if it cannot be written.
    """
    path = RunFolder(run).checkpoint(name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as file:
            torch.save({"format": FORMAT, "version": VERSION, **state}, file)
    except (OSError, RuntimeError) as error:  # torch's zip writer turns a full disk into a RuntimeError
        reason = str(error).splitlines()[0]
        raise StorageError(f"{path}: cannot be saved ({reason}); the earlier checkpoint is whole") from error


def load_checkpoint(run: Path, name: str) -> dict[str, Any]:
    """Return the checkpoint `best` or `last` of a run: plain tensors and values; nothing in the file is executed.

    Raises UserError if it is absent, damaged, or not a checkpoint of lmk-train.
    """
    path = RunFolder(run).checkpoint(name)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path}: no such checkpoint; is {run} the folder of a run?") from None
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, ValueError, KeyError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        what = f"cannot be read: {reason}" if reason else "damaged, or not a checkpoint"
        raise UserError(f"{path}: {what}; give another --checkpoint or run") from None
    if not isinstance(state, dict) or state.get("format") != FORMAT or state.get("version") != VERSION:
        raise UserError(f"{path}: not a checkpoint of this version of lmk; use the version that trained it")
    return state


def weights_to_evaluate(state: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Return the state dict of a checkpoint's model: the averaged weights if the training averages them."""
    averaged: dict[str, torch.Tensor] | None = state.get("averaged")
    if averaged is None:
        return dict(state["model"])
    prefix = "module."
    return {name.removeprefix(prefix): value for name, value in averaged.items() if name.startswith(prefix)}
