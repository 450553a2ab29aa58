"""State dicts from files and from the network; nothing in them is executed."""

import pickle
from http.client import HTTPException
from pathlib import Path

import torch

from lmk_data.errors import UserError
from lmk_train.runs.checkpoint import weights_to_evaluate

StateDict = dict[str, torch.Tensor]  # names of parameters and buffers to their values
_LOAD_ERRORS = (OSError, RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError)  # of torch.load


def read_state_dict(path: Path) -> StateDict:
    """Read a state dict from a file of plain tensors: one that a library wrote, or a checkpoint of lmk.

    A checkpoint gives its averaged weights if the training averaged weights.

    Raises:
        UserError: there is no such file, or it is not a state dict.
    """
    try:
        value = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"--weights {path}: no such file; give imagenet, none, or a file of weights") from None
    except _LOAD_ERRORS as error:
        reason = error.strerror if isinstance(error, OSError) else None
        what = f"cannot be read: {reason}" if reason else "damaged, or not a state dict of plain tensors"
        raise UserError(f"--weights {path}: {what}; give another file, imagenet or none") from None
    if isinstance(value, dict) and isinstance(value.get("model"), dict):
        value = weights_to_evaluate(value)
    if not isinstance(value, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in value.values()):
        raise UserError(
            f"--weights {path}: not a state dict, which maps names to tensors; give another file, imagenet or none"
        )
    return value


def download_state_dict(url: str, *, check_hash: bool) -> StateDict:
    """Return a published state dict, from torch's cache or the network.

    Args:
        url: of a file of plain tensors.
        check_hash: whether the file's name ends with the start of its SHA-256, which is then checked.

    Raises:
        UserError: it cannot be downloaded, or the file in torch's cache is damaged.
    """
    name = url.rsplit("/", 1)[-1]
    cached = Path(torch.hub.get_dir()) / "checkpoints" / name
    try:
        state: StateDict = torch.hub.load_state_dict_from_url(
            url, map_location="cpu", weights_only=True, progress=False, check_hash=check_hash
        )
    except (*_LOAD_ERRORS, HTTPException) as error:
        if cached.exists():
            raise UserError(
                f"{cached}: not a whole file of weights ({_first_line(error)}); delete it, and it is downloaded again"
            ) from None
        raise UserError(
            f"the ImageNet weights cannot be downloaded ({_first_line(error)}); download {url} on a machine that can, "
            f"bring {name} here, and give --weights {name}; or start without them, with --weights none"
        ) from None
    return state


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]
