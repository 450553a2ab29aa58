"""Flips, colour jitter and normalisation of a whole batch on the training device, in one pass over the pixels."""

import math
from dataclasses import dataclass

import numpy as np
import torch

from lmk_train.order import Rows, counter_hash

_DRAWS = 5  # flip, brightness, contrast, saturation, hue
_LUMA = (0.299, 0.587, 0.114)
_RGB_TO_YIQ = torch.tensor(
    [_LUMA, (0.595716, -0.274453, -0.321263), (0.211456, -0.522591, 0.311135)], dtype=torch.float64
)


@dataclass(frozen=True)
class Normalization:
    """Per-channel mean and standard deviation (RGB, pixels in 0..1) that a backbone expects."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


@dataclass(frozen=True)
class Augmentation:
    """How training pictures vary: probability of a horizontal flip, strength of the colour jitter (0 is off)."""

    hflip: float = 0.0
    color_jitter: float = 0.0


def augmentation_draws(rows: Rows, seed: int, epoch: int) -> torch.Tensor:
    """Uniform draws in [0, 1) of each sample, float64 [B, 5]: a hash of (seed, epoch, index row, draw).

    They depend on nothing else, so resuming and another number of ranks or workers change nothing.
    """
    hashes = counter_hash(seed, epoch, 3, rows[:, None], np.arange(_DRAWS)[None, :])
    return torch.from_numpy((hashes >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def color_matrices(draws: torch.Tensor, strength: float) -> torch.Tensor:
    """Colour jitter as one affine map per sample: float64 [B, 5] of draws to [B, 3, 4] on RGB in 0..1.

    In this order: brightness; contrast about 0.5 (torchvision pivots on each picture's mean, which needs a pass of
    its own); saturation about the luma; hue as a rotation in YIQ (torchvision's is in HSV). Factors are uniform in
    [1 - strength, 1 + strength], the hue turns by up to strength / 4 of a circle.
    """
    factors = 1 + strength * (2 * draws[:, 1:4] - 1)
    brightness, contrast, saturation = factors.unbind(1)
    angle = (2 * draws[:, 4] - 1) * strength * math.pi / 2
    luma = torch.tensor(_LUMA, dtype=torch.float64)
    identity = torch.eye(3, dtype=torch.float64)
    saturate = saturation[:, None, None] * identity + (1 - saturation)[:, None, None] * luma.expand(3, 3)
    cos, sin, zero, one = angle.cos(), angle.sin(), torch.zeros_like(angle), torch.ones_like(angle)
    turn = torch.stack([one, zero, zero, zero, cos, -sin, zero, sin, cos], dim=1).view(-1, 3, 3)
    rotate = torch.linalg.inv(_RGB_TO_YIQ) @ turn @ _RGB_TO_YIQ
    linear = rotate @ saturate
    offset = linear @ (0.5 * (1 - contrast))[:, None, None].expand(-1, 3, 1)
    return torch.cat([linear * (brightness * contrast)[:, None, None], offset], dim=2)


class Preprocess:
    """uint8 [B, H, W, 3] to normalised float32 [B, 3, H, W] (channels_last), augmented if draws are given."""

    def __init__(self, normalization: Normalization, augmentation: Augmentation, device: torch.device) -> None:
        self._augmentation = augmentation
        mean = torch.tensor(normalization.mean, dtype=torch.float64)
        std = torch.tensor(normalization.std, dtype=torch.float64)
        self._mean, self._std = mean, std
        self._lowest = (-mean / std).float().to(device)[:, None]
        self._highest = ((1 - mean) / std).float().to(device)[:, None]

    @torch.no_grad()
    def __call__(self, pixels: torch.Tensor, draws: torch.Tensor | None) -> torch.Tensor:
        """Flip, jitter and normalise a batch; `draws` float64 [B, 5] on the host, None for evaluation."""
        num, height, width, _ = pixels.shape
        matrices = self._matrices(num, draws).to(pixels.device, non_blocking=True)
        flipped = [] if draws is None else (draws[:, 0] < self._augmentation.hflip).tolist()
        out = torch.empty(num, 3, height * width, device=pixels.device)
        # Sample by sample: a picture's planes stay in the cache, which is 3 to 5 times as fast as one batched product.
        for i in range(num):
            picture = pixels[i].flip(1) if flipped and flipped[i] else pixels[i]
            planes = picture.reshape(-1, 3).T.float()
            torch.addmm(matrices[i, :, 3:], matrices[i, :, :3], planes, out=out[i])
            torch.clamp(out[i], self._lowest, self._highest, out=out[i])
        return out.view(num, 3, height, width).contiguous(memory_format=torch.channels_last)

    def _matrices(self, num: int, draws: torch.Tensor | None) -> torch.Tensor:
        """Jitter and normalisation of 0..255 pixels folded together: float32 [B, 3, 4] on the host."""
        if draws is None or not self._augmentation.color_jitter:
            color = torch.eye(3, 4, dtype=torch.float64).expand(num, 3, 4)
        else:
            color = color_matrices(draws, self._augmentation.color_jitter)
        linear = color[:, :, :3] / (255 * self._std[:, None])
        offset = (color[:, :, 3:] - self._mean[:, None]) / self._std[:, None]
        return torch.cat([linear, offset], dim=2).float()
