"""The backbones by name, and the classifier that a configuration describes."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from lmk_train.config.training import ResolvedConfig
from lmk_train.models.efficientnet import (
    EfficientNetFeatures,
    efficientnet_b0_weights,
    efficientnet_lite0_weights,
    make_efficientnet_b0,
    make_efficientnet_lite0,
)
from lmk_train.models.heads import Classifier, CosineHead, SubcenterHead, make_neck
from lmk_train.models.pooling import GeneralizedMean
from lmk_train.models.resnet32 import make_resnet32
from lmk_train.models.resnet50 import make_resnet50, resnet50_weights
from lmk_train.models.state_dicts import StateDict


@dataclass(frozen=True)
class Normalization:
    """Mean and standard deviation of each channel (RGB, pixels in 0..1) that a backbone expects."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


@dataclass(frozen=True)
class Architecture:
    """A kind of backbone.

    Attributes:
        make: builds it with random weights for pictures of so many pixels a side: float32 [B, 3, H, W] to features
            [B, num_features].
        imagenet_weights: reads or downloads its published ImageNet weights; None if there are none.
        num_features: the length D of its feature vectors.
        stride: input pixels per position of its last feature map.
        normalization: of its input.
        num_parameters: of the backbone.
        pixel_bytes: of float32 that its forward pass keeps for each input pixel until its backward pass.
        pooling: the name of its module that pools the last feature map.
    """

    make: Callable[[int], nn.Module]
    imagenet_weights: Callable[[], StateDict] | None
    num_features: int
    stride: int
    normalization: Normalization
    num_parameters: int
    pixel_bytes: int
    pooling: str = "pool"


def make_backbone(config: ResolvedConfig, picture_size: int) -> nn.Module:
    """Return the backbone of a configuration, with random weights: pictures [B, 3, H, W] to features [B, D].

    Its model, conventions and pooling count; `picture_size` are the pixels on each side of its pictures.
    """
    architecture = ARCHITECTURES[config.model]
    backbone = architecture.make(picture_size)
    if config.conventions == "pytorch":
        assert isinstance(backbone, EfficientNetFeatures), "the configuration refuses it for other models"
        backbone.use_pytorch_conventions()
    if config.pool == "gem":
        setattr(backbone, architecture.pooling, GeneralizedMean())
    return backbone


def build_model(config: ResolvedConfig, num_classes: int, picture_size: int) -> Classifier:
    """Return the classifier that a resolved configuration describes, with random weights.

    Args:
        config: its model, conventions, pooling, neck, loss, head, cosine scale, centres and dropout rate count.
        num_classes: outputs of the head.
        picture_size: pixels on each side of its pictures.
    """
    num_features = ARCHITECTURES[config.model].num_features
    neck = None if config.neck is None else make_neck(num_features, config.neck)
    head = _make_head(config, config.neck or num_features, num_classes)
    return Classifier(make_backbone(config, picture_size), head, config.drop_rate, neck)


def _make_head(config: ResolvedConfig, num_features: int, num_classes: int) -> nn.Module:
    scale = config.cosine_scale
    if scale is None:  # which a resolved configuration has with a cosine head only
        linear = nn.Linear(num_features, num_classes)
        nn.init.normal_(linear.weight, std=0.01)
        nn.init.zeros_(linear.bias)
        return linear
    if config.loss == "arcface" and config.subcenters > 1:
        return SubcenterHead(num_features, num_classes, scale, config.subcenters)
    return CosineHead(num_features, num_classes, scale)


def set_bn_momentum(model: nn.Module, momentum: float) -> None:
    """Set the momentum of the running statistics of every batch normalisation."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = momentum


def num_parameters(module: nn.Module) -> int:
    """Return the number of parameters of a module."""
    return sum(parameter.numel() for parameter in module.parameters())


_IMAGENET = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_LITE = Normalization((127 / 255,) * 3, (128 / 255,) * 3)
_CIFAR = Normalization((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
ARCHITECTURES: dict[str, Architecture] = {
    "resnet50": Architecture(make_resnet50, resnet50_weights, 2048, 32, _IMAGENET, 23_508_032, 1714, "avgpool"),
    "efficientnet-b0": Architecture(
        make_efficientnet_b0, efficientnet_b0_weights, 1280, 32, _IMAGENET, 4_007_548, 1771
    ),
    "efficientnet-lite0": Architecture(
        make_efficientnet_lite0, efficientnet_lite0_weights, 1280, 32, _LITE, 3_371_008, 1586
    ),
    "resnet32": Architecture(make_resnet32, None, 64, 4, _CIFAR, 463_504, 2384),
}
