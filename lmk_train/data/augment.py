"""Flips, crops, colour jitter and normalisation of a batch on the training device, one pass over each picture."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional

from lmk_train.data.order import augmentation_hashes
from lmk_train.models.registry import Normalization
from lmk_train.runtime.world import Rows

_FLIP, _BRIGHTNESS, _HUE = 0, 1, 4  # contrast and saturation in between
_CROP, _ERASING = 5, 9  # four draws each: area, aspect, left, top; a padded crop uses the last two of its four
_ERASED = 13
_DRAWS = 14
_ASPECT = (3 / 4, 4 / 3)  # of a random resized crop (Szegedy et al. 2015)
_ERASED_AREA, _ERASED_ASPECT = (0.02, 1 / 3), (0.3, 1 / 0.3)  # Zhong et al. 2020
_LUMA = (0.299, 0.587, 0.114)
_RGB_TO_YIQ = torch.tensor(
    [_LUMA, (0.595716, -0.274453, -0.321263), (0.211456, -0.522591, 0.311135)], dtype=torch.float64
)


@dataclass(frozen=True)
class Augmentation:
    """How training pictures vary; 0 and None are off.

    `hflip`: probability of a horizontal flip. `color_jitter`: strength. `crop_padding`: pixels of black around a
    picture, out of which one of its size is cut. `random_resized_crop`: least share of the picture that is cut out
    and brought back to its size. `random_erasing`: probability that a rectangle is replaced by the mean colour.
    """

    hflip: float = 0.0
    color_jitter: float = 0.0
    crop_padding: int = 0
    random_resized_crop: float | None = None
    random_erasing: float = 0.0


class Box(NamedTuple):
    """A rectangle of pixels."""

    left: int
    top: int
    width: int
    height: int


def augmentation_draws(picks: Rows, seed: int, epoch: int) -> torch.Tensor:
    """Uniform draws in [0, 1) of each picked sample, float64 [B, 14]: hashes of (seed, epoch, pick, draw).

    They depend on nothing else, so resuming and another number of ranks or workers change nothing.
    """
    hashes = augmentation_hashes(picks, seed, epoch, _DRAWS)
    return torch.from_numpy((hashes >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def color_matrices(draws: torch.Tensor, strength: float) -> torch.Tensor:
    """Colour jitter as one affine map per sample: float64 [B, 14] of draws to [B, 3, 4] on RGB in 0..1.

    In this order: brightness; contrast about 0.5 (torchvision pivots on each picture's mean, which needs a pass of
    its own); saturation about the luma; hue as a rotation in YIQ (torchvision's is in HSV). Factors are uniform in
    [1 - strength, 1 + strength], the hue turns by up to strength / 4 of a circle.
    """
    factors = 1 + strength * (2 * draws[:, _BRIGHTNESS:_HUE] - 1)
    brightness, contrast, saturation = factors.unbind(1)
    angle = (2 * draws[:, _HUE] - 1) * strength * math.pi / 2
    luma = torch.tensor(_LUMA, dtype=torch.float64)
    identity = torch.eye(3, dtype=torch.float64)
    saturate = saturation[:, None, None] * identity + (1 - saturation)[:, None, None] * luma.expand(3, 3)
    cos, sin, zero, one = angle.cos(), angle.sin(), torch.zeros_like(angle), torch.ones_like(angle)
    turn = torch.stack([one, zero, zero, zero, cos, -sin, zero, sin, cos], dim=1).view(-1, 3, 3)
    rotate = torch.linalg.inv(_RGB_TO_YIQ) @ turn @ _RGB_TO_YIQ
    linear = rotate @ saturate
    offset = linear @ (0.5 * (1 - contrast))[:, None, None].expand(-1, 3, 1)
    return torch.cat([linear * (brightness * contrast)[:, None, None], offset], dim=2)


def drawn_box(
    draws: "np.ndarray[tuple[int], np.dtype[np.float64]]",
    size: tuple[int, int],
    area: tuple[float, float],
    aspect: tuple[float, float],
) -> Box:
    """A rectangle inside a picture of (width, height), of four draws: area (share), aspect (log-uniform), left, top.

    A side that would not fit is cut to the picture's; torchvision draws anew, up to ten times.
    """
    width, height = size
    share = area[0] + (area[1] - area[0]) * draws[0]
    ratio = math.exp(math.log(aspect[0]) + (math.log(aspect[1]) - math.log(aspect[0])) * draws[1])
    pixels = share * width * height
    inner_width = min(width, max(1, round(math.sqrt(pixels * ratio))))
    inner_height = min(height, max(1, round(math.sqrt(pixels / ratio))))
    left, top = int(draws[2] * (width - inner_width + 1)), int(draws[3] * (height - inner_height + 1))
    return Box(left, top, inner_width, inner_height)


class Preprocess:
    """uint8 [B, H, W, 3] to normalised [B, 3, H, W] (channels_last) of `dtype`, augmented if draws are given.

    In this order: crop, flip, colour, normalisation, erasing; computed in float32. What it returns is valid until
    the next call with as many pictures, which fills the same memory: fresh memory for each batch would cost as much
    as half of the work.
    """

    def __init__(
        self,
        normalization: Normalization,
        augmentation: Augmentation,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self._augmentation, self._dtype = augmentation, dtype
        mean = torch.tensor(normalization.mean, dtype=torch.float64)
        std = torch.tensor(normalization.std, dtype=torch.float64)
        self._mean, self._std = mean, std
        self._lowest = (-mean / std).float().to(device)[:, None]
        self._highest = ((1 - mean) / std).float().to(device)[:, None]
        self._out = torch.empty(0, device=device)

    @torch.no_grad()
    def __call__(self, pixels: torch.Tensor, draws: torch.Tensor | None) -> torch.Tensor:
        """Preprocess a batch; `draws` float64 [B, 14] on the host, None for evaluation."""
        num, height, width, _ = pixels.shape
        matrices = self._matrices(num, draws).to(pixels.device, non_blocking=True)
        shape = (num, 3, height, width)
        # What was made for an evaluation, in inference mode, cannot be trained on, and is not reused for that.
        if self._out.shape != shape or self._out.is_inference() != torch.is_inference_mode_enabled():
            self._out = torch.empty(shape, dtype=self._dtype, device=pixels.device, memory_format=torch.channels_last)
        out = self._out
        normalized = torch.empty(3, height * width, device=pixels.device)
        drawn = None if draws is None else draws.numpy()
        # Sample by sample: a picture's planes stay in the cache, which is 3 to 5 times as fast as one batched product.
        for i in range(num):
            planes = self._planes(pixels[i], None if drawn is None else drawn[i])
            torch.addmm(matrices[i, :, 3:], matrices[i, :, :3], planes, out=normalized)
            torch.clamp(normalized, self._lowest, self._highest, out=normalized)
            picture = normalized.view(3, height, width)
            if drawn is not None and drawn[i, _ERASED] < self._augmentation.random_erasing:
                box = drawn_box(drawn[i, _ERASING:_ERASED], (width, height), _ERASED_AREA, _ERASED_ASPECT)
                picture[:, box.top : box.top + box.height, box.left : box.left + box.width] = 0
            out[i].copy_(picture)
        return out

    def _planes(
        self, picture: torch.Tensor, drawn: "np.ndarray[tuple[int], np.dtype[np.float64]] | None"
    ) -> torch.Tensor:
        """One picture, uint8 [H, W, 3], cropped and flipped: float32 [3, H * W] of 0..255."""
        chosen = self._augmentation
        if drawn is None:
            return picture.reshape(-1, 3).T.float()
        height, width, _ = picture.shape
        if chosen.crop_padding:
            picture = _shifted(picture, chosen.crop_padding, *drawn[_CROP + 2 : _CROP + 4])
        flip = bool(drawn[_FLIP] < chosen.hflip)
        if chosen.random_resized_crop is None:
            return (picture.flip(1) if flip else picture).reshape(-1, 3).T.float()
        area = (chosen.random_resized_crop, 1.0)
        box = drawn_box(drawn[_CROP : _CROP + 4], (width, height), area, _ASPECT)
        inner = picture[box.top : box.top + box.height, box.left : box.left + box.width]
        planes = (inner.flip(1) if flip else inner).permute(2, 0, 1).float()
        resized = functional.interpolate(planes[None], (height, width), mode="bilinear", antialias=True)
        return resized.view(3, height * width)

    def _matrices(self, num: int, draws: torch.Tensor | None) -> torch.Tensor:
        """Jitter and normalisation of 0..255 pixels folded together: float32 [B, 3, 4] on the host."""
        if draws is None or not self._augmentation.color_jitter:
            color = torch.eye(3, 4, dtype=torch.float64).expand(num, 3, 4)
        else:
            color = color_matrices(draws, self._augmentation.color_jitter)
        linear = color[:, :, :3] / (255 * self._std[:, None])
        offset = (color[:, :, 3:] - self._mean[:, None]) / self._std[:, None]
        return torch.cat([linear, offset], dim=2).float()


def _shifted(picture: torch.Tensor, padding: int, across: float, down: float) -> torch.Tensor:
    """What a window of the picture's own size sees, moved by up to `padding` pixels over black."""
    height, width, _ = picture.shape
    x, y = (int(draw * (2 * padding + 1)) - padding for draw in (across, down))
    out = torch.zeros_like(picture)
    seen = picture[max(0, y) : max(0, height + min(0, y)), max(0, x) : max(0, width + min(0, x))]
    top, left = max(0, -y), max(0, -x)
    out[top : top + seen.shape[0], left : left + seen.shape[1]] = seen
    return out
