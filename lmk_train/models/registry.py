"""The backbones by name, and the classifier that a configuration describes."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from lmk_train.config.training import ResolvedConfig
from lmk_train.models.efficientnet import make_efficientnet_b0, make_efficientnet_lite0
from lmk_train.models.heads import Classifier, CosineHead
from lmk_train.models.resnet32 import make_resnet32


@dataclass(frozen=True)
class Normalization:
    """Per-channel mean and standard deviation (RGB, pixels in 0..1) that a backbone expects."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


@dataclass(frozen=True)
class Architecture:
    """A backbone: how to make it, its number of features, how many pixels wide one place of its last map is, and
    what its pixels look like."""

    make: Callable[[int], nn.Module]
    num_features: int
    stride: int
    normalization: Normalization


def build_model(
    name: str, num_classes: int, *, head: str, scale: float | None, picture_size: int, drop_rate: float = 0.0
) -> Classifier:
    """A classifier with random weights; `scale` belongs to the cosine head."""
    architecture = ARCHITECTURES[name]
    features = architecture.num_features
    if head == "cosine":
        assert scale is not None
        layer: nn.Module = CosineHead(features, num_classes, scale)
    else:
        layer = nn.Linear(features, num_classes)
        nn.init.normal_(layer.weight, std=0.01)
        nn.init.zeros_(layer.bias)
    return Classifier(architecture.make(picture_size), layer, drop_rate)


def model_of(config: ResolvedConfig, num_classes: int, picture_size: int) -> Classifier:
    """The classifier that a resolved configuration describes, with random weights."""
    return build_model(
        config.model,
        num_classes,
        head=config.head,
        scale=config.cosine_scale,
        picture_size=picture_size,
        drop_rate=config.drop_rate,
    )


def set_bn_momentum(model: nn.Module, momentum: float) -> None:
    """Set the momentum of every batch normalisation's running statistics."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = momentum


def num_parameters(module: nn.Module) -> int:
    """Parameters of a module."""
    return sum(parameter.numel() for parameter in module.parameters())


def _make_resnet50(_: int) -> nn.Module:
    from torchvision.models import resnet50

    network: nn.Module = resnet50(weights=None)
    network.fc = nn.Identity()
    return network


_IMAGENET = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_LITE = Normalization((127 / 255,) * 3, (128 / 255,) * 3)
_CIFAR = Normalization((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
ARCHITECTURES: dict[str, Architecture] = {
    "resnet50": Architecture(_make_resnet50, 2048, 32, _IMAGENET),
    "efficientnet-b0": Architecture(make_efficientnet_b0, 1280, 32, _IMAGENET),
    "efficientnet-lite0": Architecture(make_efficientnet_lite0, 1280, 32, _LITE),
    "resnet32": Architecture(make_resnet32, 64, 4, _CIFAR),
}
