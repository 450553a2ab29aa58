"""ResNet-32 for pictures of 32 pixels, the backbone of the LDAM paper's CIFAR experiments."""

import torch
from torch import nn
from torch.nn import functional


class _Block(nn.Module):
    """Two 3x3 convolutions and a shortcut without parameters: strided, its new channels zeros (option A)."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self._stride, self._new = stride, (channels - channels_in) // 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        if self._new:
            x = functional.pad(x[:, :, :: self._stride, :: self._stride], (0, 0, 0, 0, self._new, self._new))
        return functional.relu(y + x)


class ResNet32(nn.Module):
    """He et al.'s ResNet-32 for 32-pixel pictures, as Cao et al. (LDAM, 2019) train it: to 64 features."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        widths = [16] * 5 + [32] * 5 + [64] * 5
        blocks = [
            _Block(before, after, 1 + (after != before)) for before, after in zip([16, *widths], widths, strict=False)
        ]
        self.blocks = nn.Sequential(*blocks)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.blocks(functional.relu(self.bn1(self.conv1(pictures)))).mean(dim=(2, 3))
        return features


def make_resnet32(_: int) -> nn.Module:
    return ResNet32()
