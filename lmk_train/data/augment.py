"""Augmentation and normalisation of a batch on the training device, in one pass over each picture."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from lmk_train.data.order import augmentation_hashes
from lmk_train.models.registry import Normalization

# The places of a sample's draws.
_FLIP, _BRIGHTNESS, _HUE = 0, 1, 4  # contrast and saturation in between
_CROP, _ERASING = 5, 9  # four draws each: area, aspect, left, top; a padded crop uses the last two of its four
_ERASED = 13  # whether the rectangle of _ERASING is erased
_DRAWS = 14
_CROP_ASPECT = (3 / 4, 4 / 3)  # of a random resized crop (Szegedy et al., "Going deeper with convolutions", CVPR 2015)
_ERASED_AREA, _ERASED_ASPECT = (0.02, 1 / 3), (0.3, 1 / 0.3)  # Zhong et al., "Random erasing", AAAI 2020
_LUMA = (0.299, 0.587, 0.114)
_RGB_TO_YIQ = torch.tensor(
    [_LUMA, (0.595716, -0.274453, -0.321263), (0.211456, -0.522591, 0.311135)], dtype=torch.float64
)


@dataclass(frozen=True)
class Augmentation:
    """How training pictures are varied; 0 and None are off.

    Attributes:
        hflip: probability of a horizontal flip.
        color_jitter: strength of the jitter (see `color_matrices`), 0 to 1.
        crop_padding: black pixels on each side of a picture, out of which one of its own size is cropped.
        random_resized_crop: smallest share of a picture's area that is cropped and resized to its full size.
        random_erasing: probability that a rectangle is replaced by the mean colour.
    """

    hflip: float = 0.0
    color_jitter: float = 0.0
    crop_padding: int = 0
    random_resized_crop: float | None = None
    random_erasing: float = 0.0


class Box(NamedTuple):
    """A rectangle, in pixels."""

    left: int
    top: int
    width: int
    height: int


def augmentation_draws(picks: NDArray[np.int64], seed: int, epoch: int) -> torch.Tensor:
    """Return uniform draws in [0, 1) of each pick, int64 [B] to float64 [B, 14]: hashes of (seed, epoch, pick, draw).

    They depend on nothing else: neither resuming nor the number of ranks or workers changes them.
    """
    hashes = augmentation_hashes(picks, seed, epoch, _DRAWS)
    return torch.from_numpy((hashes >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def color_matrices(draws: torch.Tensor, strength: float) -> torch.Tensor:
    """Return the colour jitter of each sample as one affine map of RGB in 0..1: draws float64 [B, 14] to [B, 3, 4].

    The steps, in order: brightness; contrast about 0.5 (torchvision's is about the mean of the picture, which takes
    another pass); saturation about the luma; hue as a rotation in YIQ (torchvision's is in HSV). Factors are uniform in
    [1 - strength, 1 + strength]; the hue turns by up to strength / 4 of a circle.
    """
    factors = 1 + strength * (2 * draws[:, _BRIGHTNESS:_HUE] - 1)
    brightness, contrast, saturation = factors.unbind(1)
    angle = (2 * draws[:, _HUE] - 1) * strength * math.pi / 2
    luma = torch.tensor(_LUMA, dtype=torch.float64)
    identity = torch.eye(3, dtype=torch.float64)
    saturate = saturation[:, None, None] * identity + (1 - saturation)[:, None, None] * luma.expand(3, 3)
    cos, sin, zero, one = angle.cos(), angle.sin(), torch.zeros_like(angle), torch.ones_like(angle)
    rotation = torch.stack([one, zero, zero, zero, cos, -sin, zero, sin, cos], dim=1).view(-1, 3, 3)
    rotate = torch.linalg.inv(_RGB_TO_YIQ) @ rotation @ _RGB_TO_YIQ
    linear = rotate @ saturate
    offset = linear @ (0.5 * (1 - contrast))[:, None, None].expand(-1, 3, 1)
    return torch.cat([linear * (brightness * contrast)[:, None, None], offset], dim=2)


def random_box(
    draws: NDArray[np.float64],
    size: tuple[int, int],
    area: tuple[float, float],
    aspect: tuple[float, float],
) -> Box:
    """Return a rectangle inside a picture of (width, height) pixels, from four draws in [0, 1).

    The draws decide its area (uniform within `area`, shares of the picture's), its aspect ratio (log-uniform within
    `aspect`), left and top. A side longer than the picture's is cut to it; torchvision draws again, up to ten times.
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
    """Turns pictures uint8 [B, H, W, 3] into network input [B, 3, H, W] of `dtype` (channels_last).

    The steps, in order: crop, flip, colour, normalisation, erasing; all in float32. The output is valid until the next
    call with the same number of pictures, which fills the same memory: allocating memory for each batch would add half
    of the time.
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
        """Return a batch as network input.

        Args:
            pixels: uint8 [B, H, W, 3], RGB, on the device.
            draws: float64 [B, 14] of `augmentation_draws`, on the host; None for no augmentation.
        """
        num, height, width, _ = pixels.shape
        matrices = self._matrices(num, draws).to(pixels.device, non_blocking=True)
        shape = (num, 3, height, width)
        # Memory that was allocated in inference mode, for an evaluation, cannot be trained on.
        if self._out.shape != shape or self._out.is_inference() != torch.is_inference_mode_enabled():
            self._out = torch.empty(shape, dtype=self._dtype, device=pixels.device, memory_format=torch.channels_last)
        out = self._out
        normalized = torch.empty(3, height * width, device=pixels.device)
        host_draws = None if draws is None else draws.numpy()
        # Sample by sample: the planes of a picture stay in the CPU cache, 3 to 5 times as fast as one batched product.
        for i in range(num):
            sample_draws = None if host_draws is None else host_draws[i]
            torch.addmm(matrices[i, :, 3:], matrices[i, :, :3], self._planes(pixels[i], sample_draws), out=normalized)
            torch.clamp(normalized, self._lowest, self._highest, out=normalized)
            picture = normalized.view(3, height, width)
            if sample_draws is not None and sample_draws[_ERASED] < self._augmentation.random_erasing:
                box = random_box(sample_draws[_ERASING:_ERASED], (width, height), _ERASED_AREA, _ERASED_ASPECT)
                picture[:, box.top : box.top + box.height, box.left : box.left + box.width] = 0
            out[i].copy_(picture)
        return out

    def _planes(self, picture: torch.Tensor, draws: NDArray[np.float64] | None) -> torch.Tensor:
        """Return one picture, uint8 [H, W, 3], cropped and flipped: float32 [3, H * W] in 0..255."""
        augmentation = self._augmentation
        if draws is None:
            return picture.reshape(-1, 3).T.float()
        height, width, _ = picture.shape
        if augmentation.crop_padding:
            picture = _padded_crop(picture, augmentation.crop_padding, *draws[_CROP + 2 : _CROP + 4])
        flip = bool(draws[_FLIP] < augmentation.hflip)
        if augmentation.random_resized_crop is None:
            return (picture.flip(1) if flip else picture).reshape(-1, 3).T.float()
        area = (augmentation.random_resized_crop, 1.0)
        box = random_box(draws[_CROP : _CROP + 4], (width, height), area, _CROP_ASPECT)
        inner = picture[box.top : box.top + box.height, box.left : box.left + box.width]
        planes = (inner.flip(1) if flip else inner).permute(2, 0, 1).float()
        resized = functional.interpolate(planes[None], (height, width), mode="bilinear", antialias=True)
        return resized.view(3, height * width)

    def _matrices(self, num: int, draws: torch.Tensor | None) -> torch.Tensor:
        """Return jitter and normalisation of 0..255 pixels as one map per sample: float32 [B, 3, 4] on the host."""
        if draws is None or not self._augmentation.color_jitter:
            color = torch.eye(3, 4, dtype=torch.float64).expand(num, 3, 4)
        else:
            color = color_matrices(draws, self._augmentation.color_jitter)
        linear = color[:, :, :3] / (255 * self._std[:, None])
        offset = (color[:, :, 3:] - self._mean[:, None]) / self._std[:, None]
        return torch.cat([linear, offset], dim=2).float()


def _padded_crop(picture: torch.Tensor, padding: int, across: float, down: float) -> torch.Tensor:
    """Return a crop of a padded picture, uint8 [H, W, 3], at its own size; the draws in [0, 1) decide where.

    The padding is black, `padding` pixels on each side.
    """
    height, width, _ = picture.shape
    x, y = (int(draw * (2 * padding + 1)) - padding for draw in (across, down))
    out = torch.zeros_like(picture)
    inside = picture[max(0, y) : max(0, height + min(0, y)), max(0, x) : max(0, width + min(0, x))]
    top, left = max(0, -y), max(0, -x)
    out[top : top + inside.shape[0], left : left + inside.shape[1]] = inside
    return out
