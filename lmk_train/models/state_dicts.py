"""State dicts from files and from the network; nothing in them is executed."""

import hashlib
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

import torch

from lmk_data.errors import UserError
from lmk_train.runs.checkpoint import weights_to_evaluate
from lmk_train.runs.safetensors_file import is_safetensors, load_safetensors
from lmk_train.runs.tensor_file import LOAD_ERRORS, load_error, load_tensors, require_tensors

StateDict = dict[str, torch.Tensor]  # names of parameters and buffers to their values
# Under which training scripts save a state dict; averaged weights first.
_WRAPPERS = ("model_ema", "state_dict_ema", "model", "state_dict", "model_state_dict", "net")
_AVERAGED = "n_averaged"  # beside the weights of torch's AveragedModel
_PREFIXES = ("module.", "_orig_mod.", "model.")  # of DataParallel, torch.compile and Lightning


@dataclass(frozen=True)
class WeightFile:
    """What a file of weights holds.

    Attributes:
        state: its tensors by name.
        architecture: the name of the network that timm's own training noted beside them; empty without one.
        config: the configuration of the run, in a checkpoint of lmk; empty in other files.
    """

    state: StateDict
    architecture: str
    config: dict[str, Any]


def read_state_dict(path: Path) -> StateDict:
    """Return the state dict in a file of weights. Raises as `read_weight_file` does."""
    return read_weight_file(path).state


def read_weight_file(path: Path) -> WeightFile:
    """Read a file of plain tensors (torch's format or safetensors) of a library or a script, or a checkpoint of lmk.

    Averaged weights are taken if the file has both. What scripts put around a state dict is taken off:
    `{"state_dict": ...}`, and a prefix of every name: `module.`, `_orig_mod.` or `model.`.

    Raises:
        UserError: there is no such file, or it is not a state dict.
    """
    try:
        value = load_safetensors(path) if is_safetensors(path) else load_tensors(path, only_zip=False)
    except FileNotFoundError:
        raise UserError(f"--weights {path}: no such file; give imagenet, none, or a file of weights") from None
    except ValueError as error:
        raise UserError(f"--weights {path}: not a file of plain tensors ({error}); give another file") from None
    around = value if isinstance(value, dict) else {}
    architecture, config = around.get("arch"), around.get("config")
    try:
        return WeightFile(
            state=_state_in(value),
            architecture=architecture if isinstance(architecture, str) else "",
            config=config if isinstance(config, dict) else {},
        )
    except ValueError:
        raise UserError(f"--weights {path}: not a state dict, which maps names to tensors; give another file") from None


def _state_in(value: Any) -> StateDict:
    """Return the state dict in the value of a file; ValueError if there is none."""
    if isinstance(value, dict) and value.get("averaged") is not None:
        require_tensors(value["averaged"], "averaged")
        return weights_to_evaluate(value)
    state = require_tensors(_unwrapped(value), "it")
    return _without_prefix({name: one for name, one in state.items() if name != _AVERAGED})


def state_sha256(state: StateDict) -> str:
    """Return the sha256 of a state dict, over names, dtypes, shapes and values, as 64 hex digits."""
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _unwrapped(value: Any) -> Any:
    """Return the state dict in what a script saved, such as `{"epoch": 3, "state_dict": ...}`."""
    found = [value[name] for name in _WRAPPERS if isinstance(value, dict) and isinstance(value.get(name), dict)]
    return found[0] if found else value


def _without_prefix(state: StateDict) -> StateDict:
    """Return a state dict without a prefix that a wrapper of the network gave to every name."""
    for prefix in _PREFIXES:
        if state and all(name.startswith(prefix) for name in state):
            return _without_prefix({name.removeprefix(prefix): value for name, value in state.items()})
    return state


def download_state_dict(url: str, *, check_hash: bool) -> StateDict:
    """Return a published state dict, from torch's cache or the network.

    Args:
        url: of a file of plain tensors.
        check_hash: whether the file's name ends with the start of its SHA-256, which is then checked.

    Raises:
        UserError: it cannot be downloaded, or the file in torch's cache is damaged.
    """
    name = url.rsplit("/", 1)[-1]
    if torch.hub.get_dir().startswith("~"):  # torch would make a folder of that name here
        raise UserError(
            f"there is no home folder for the ImageNet weights (HOME is unset): set TORCH_HOME to a folder, or "
            f"bring {url} here and give --weights {name}"
        )
    cached = Path(torch.hub.get_dir()) / "checkpoints" / name
    try:
        state: StateDict = torch.hub.load_state_dict_from_url(
            url, map_location="cpu", weights_only=True, progress=False, check_hash=check_hash
        )
    except (*LOAD_ERRORS, HTTPException) as error:
        if cached.exists():
            raise UserError(
                f"{cached}: not a whole file of weights ({load_error(error)}); delete it, and it is downloaded again"
            ) from None
        raise UserError(
            f"the ImageNet weights cannot be downloaded ({load_error(error)}); download {url} on a machine that can, "
            f"bring {name} here, and give --weights {name}; or start without them, with --weights none"
        ) from None
    return state
