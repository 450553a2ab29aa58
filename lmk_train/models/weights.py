"""The initial weights of a backbone: its published ImageNet weights, or a file of one of the libraries or of a run."""

from pathlib import Path

from torch import nn

from lmk_data.errors import UserError
from lmk_train.config.training import Conventions
from lmk_train.models.efficientnet import EfficientNetFeatures
from lmk_train.models.library_weights import conventions_named, library_of, renamed
from lmk_train.models.registry import ARCHITECTURES
from lmk_train.models.state_dicts import StateDict, WeightFile, read_weight_file

_HEAD_PREFIXES = ("fc.", "_fc.", "classifier.", "head.", "neck.")
_NAMES_SHOWN = 3


def load_weights(backbone: nn.Module, name: str, weights: str, conventions: Conventions = "tensorflow") -> str:
    """Load initial weights into a backbone and return one line that says which.

    Weights of a head and of a neck are left out: those of a training are always new.

    Args:
        backbone: of the architecture `name`, under these conventions.
        name: a key of `ARCHITECTURES`.
        weights: `imagenet`, `none` (random weights stay) or the path of a state dict or checkpoint.
        conventions: of an EfficientNet, for which its weights have to be.

    Raises:
        UserError: the weights cannot be had, belong to another network, or are for other conventions.
    """
    if weights == "none":
        return "random weights"
    if weights == "imagenet":
        state, source = _imagenet_weights(name, conventions), "ImageNet weights"
    else:
        state, source = _weights_in(weights, isinstance(backbone, EfficientNetFeatures), conventions)
    kept = {_backbone_key(key, backbone): value for key, value in state.items() if not key.startswith(_HEAD_PREFIXES)}
    own = backbone.state_dict()
    missing = [key for key in own if key not in kept and not key.endswith(("num_batches_tracked", "pool.p"))]
    unexpected = [key for key in kept if key not in own]
    resized = [
        f"{key} {[*kept[key].shape]} instead of {[*value.shape]}"
        for key, value in own.items()
        if key in kept and kept[key].shape != value.shape
    ]
    differences = {"lacks": missing, "has also": unexpected, "has": resized}
    if said := ", ".join(f"it {verb} {_first_of(keys)}" for verb, keys in differences.items() if keys):
        raise UserError(f"--weights {weights}: made for another network than {name}: {said}")
    backbone.load_state_dict(kept, strict=False)
    return f"{source}; the head is new"


def conventions_in(weights: str, name: str) -> Conventions:
    """Return the conventions that weights for the architecture `name` are for: TensorFlow's unless their file tells.

    Raises UserError if the file is none of weights.
    """
    if weights in ("imagenet", "none") or not name.startswith("efficientnet"):
        return "tensorflow"
    file = read_weight_file(Path(weights))
    return _conventions_of(file, weights, library_of(file.state)) or "tensorflow"


def _weights_in(path: str, is_efficientnet: bool, conventions: Conventions) -> tuple[StateDict, str]:
    """Return the weights of a file under our names, and what they are.

    Raises UserError if an EfficientNet's are for other conventions.
    """
    file = read_weight_file(Path(path))
    library = library_of(file.state) if is_efficientnet else None
    trained = _conventions_of(file, path, library) if is_efficientnet else None
    if trained not in (None, conventions):
        raise UserError(f"--weights {path}: its network has the conventions of {trained}; add --conventions {trained}")
    if library is None:
        return file.state, path
    prefix = "tf_" if conventions == "tensorflow" else ""
    said = "torchvision's" if library == "torchvision" else f"timm's, taken as {prefix}efficientnet's"
    return renamed(file.state, library), f"{path}, {said}"


def _conventions_of(file: WeightFile, path: str, library: str | None) -> Conventions | None:
    """Return the conventions that the weights of an EfficientNet were trained under; None if nothing tells them."""
    if library == "torchvision":
        return "pytorch"
    if library == "timm":
        return conventions_named(file.architecture) or conventions_named(path)
    return "pytorch" if file.config.get("conventions") == "pytorch" else "tensorflow"


def _imagenet_weights(name: str, conventions: Conventions) -> StateDict:
    load = ARCHITECTURES[name].imagenet_weights
    if load is None:
        raise UserError(f"--weights imagenet: there are none for {name}; leave it out or give a file")
    if conventions != "tensorflow":
        raise UserError(f"--conventions {conventions}: the ImageNet weights are TensorFlow's; leave it out")
    return load()


def _backbone_key(key: str, backbone: nn.Module) -> str:
    """Return the backbone's name of a parameter that a library, or a checkpoint of lmk, calls `key`."""
    key = key.removeprefix("backbone.")
    wrapped = isinstance(backbone, EfficientNetFeatures) and not key.startswith("network.")
    return f"network.{key}" if wrapped else key


def _first_of(names: list[str]) -> str:
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(names[:_NAMES_SHOWN]) + more
