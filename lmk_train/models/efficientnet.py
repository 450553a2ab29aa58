"""EfficientNet-B0 and -Lite0 of efficientnet_pytorch and its Lite relative, with fewer passes for the same result."""

import torch
from torch import nn
from torch.nn import functional

from lmk_data.errors import missing_extra


class EfficientNetFeatures(nn.Module):
    """`extract_features` and average pooling of efficientnet_pytorch's models (and their Lite relatives)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.network.extract_features(pictures)  # type: ignore[operator]
        return features.mean(dim=(2, 3))


def make_efficientnet_b0(picture_size: int) -> nn.Module:
    from efficientnet_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-b0", image_size=picture_size)
    return EfficientNetFeatures(_streamlined(network))


def make_efficientnet_lite0(picture_size: int) -> nn.Module:
    try:
        from efficientnet_lite_pytorch import EfficientNet
    except ModuleNotFoundError:
        raise missing_extra("--model efficientnet-lite0", "lite", "efficientnet_lite_pytorch is missing") from None
    network = EfficientNet.from_name("efficientnet-lite0", image_size=picture_size)
    return EfficientNetFeatures(_streamlined(network))


def _streamlined(network: nn.Module) -> nn.Module:
    """The same mathematics with fewer passes: padding inside the convolutions, SiLU for the library's swish.

    The classifier goes; the names of all other parameters stay, so that the library's state dicts still load.
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
    """A convolution of efficientnet_pytorch with the same weights and the same result, done in fewer passes.

    Symmetric padding moves into the convolution; only the asymmetric one of strided layers stays a pass of its
    own. On the CPU, the backward of 16-bit depthwise convolutions other than 3x3 with stride 1 has no fast kernel
    (measured: 4 to 25 times as slow as float32), so these compute in float32 there.
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

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if self._outside is not None:
            input = functional.pad(input, self._outside)
        if self._slow_in_16_bits and input.device.type == "cpu" and input.dtype != torch.float32:
            with torch.autocast("cpu", enabled=False):
                return super().forward(input.float()).to(input.dtype)
        return super().forward(input)
