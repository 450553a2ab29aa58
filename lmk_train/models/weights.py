"""The initial weights of a backbone: its published ImageNet weights, or a file."""

from pathlib import Path

from torch import nn

from lmk_data.errors import UserError
from lmk_train.models.efficientnet import EfficientNetFeatures
from lmk_train.models.registry import ARCHITECTURES
from lmk_train.models.state_dicts import StateDict, read_state_dict

_HEAD_PREFIXES = ("fc.", "_fc.", "classifier.", "head.")


def load_weights(backbone: nn.Module, name: str, weights: str) -> str:
    """Load initial weights into a backbone and return one line that says which.

    Weights of a head are left out: the head of a training is always new.

    Args:
        backbone: of the architecture `name`.
        name: a key of `ARCHITECTURES`.
        weights: `imagenet`, `none` (random weights stay) or the path of a state dict or checkpoint.

    Raises:
        UserError: the weights cannot be had, or belong to another network.
    """
    if weights == "none":
        return "random weights"
    if weights == "imagenet":
        state, source = _imagenet_weights(name), "ImageNet weights"
    else:
        state, source = read_state_dict(Path(weights)), weights
    kept = {_backbone_key(key, backbone): value for key, value in state.items() if not key.startswith(_HEAD_PREFIXES)}
    try:
        missing, unexpected = backbone.load_state_dict(kept, strict=False)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise UserError(f"--weights {weights}: made for another network than {name}: {reason}") from None
    missing = [key for key in missing if not key.endswith(("num_batches_tracked", "pool.p"))]
    if missing or unexpected:
        difference = f"lacks {missing[0]}" if missing else f"has {unexpected[0]}"
        raise UserError(f"--weights {weights}: made for another network than {name}: it {difference}")
    return f"{source}; the head is new"


def _imagenet_weights(name: str) -> StateDict:
    load = ARCHITECTURES[name].imagenet_weights
    if load is None:
        raise UserError(f"--weights imagenet: there are none for {name}; leave it out or give a file")
    return load()


def _backbone_key(key: str, backbone: nn.Module) -> str:
    """Return the backbone's name of a parameter that a library, or a checkpoint of lmk, calls `key`."""
    key = key.removeprefix("backbone.")
    wrapped = isinstance(backbone, EfficientNetFeatures) and not key.startswith("network.")
    return f"network.{key}" if wrapped else key
