"""ResNet-32 for pictures of 32 pixels, the backbone of the CIFAR experiments of the LDAM paper."""

import torch
from torch import nn
from torch.nn import functional

from lmk_train.models.pooling import AveragePool


class _Block(nn.Module):
    """Two 3x3 convolutions and a shortcut without parameters (option A): strided, with zeros for the new channels."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self._stride, self._padding = stride, (channels - channels_in) // 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        if self._padding:
            x = functional.pad(x[:, :, :: self._stride, :: self._stride], (0, 0, 0, 0, self._padding, self._padding))
        return functional.relu(y + x)


class ResNet32(nn.Module):
    """ResNet-32 without its classifier: float32 [B, 3, 32, 32] to features [B, 64].

    He et al., "Deep residual learning for image recognition", CVPR 2016, section 4.2, initialised and trained as by
    Cao et al. (LDAM, NeurIPS 2019).
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        widths = [16] * 5 + [32] * 5 + [64] * 5
        blocks = [
            _Block(before, after, 1 + (after != before)) for before, after in zip([16, *widths], widths, strict=False)
        ]
        self.blocks = nn.Sequential(*blocks)
        self.pool: nn.Module = AveragePool()
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.pool(self.blocks(functional.relu(self.bn1(self.conv1(pictures)))))
        return features


def make_resnet32(_: int) -> nn.Module:
    """Return the network; it works for any picture size."""
    return ResNet32()
