"""Augmentation and normalisation of a batch on the training device, in one pass over the pixels."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from lmk_train.data.geometry import Moves, inside, moved_batch, moved_planes, random_boxes
from lmk_train.data.order import augmentation_hashes
from lmk_train.models.registry import Normalization
from lmk_train.runtime.transfer import to_device

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
_YIQ_TO_RGB = torch.linalg.inv(_RGB_TO_YIQ)


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
    rotate = _YIQ_TO_RGB @ rotation @ _RGB_TO_YIQ
    linear = rotate @ saturate
    offset = linear @ (0.5 * (1 - contrast))[:, None, None].expand(-1, 3, 1)
    return torch.cat([linear * (brightness * contrast)[:, None, None], offset], dim=2)


class Preprocess:
    """Turns pictures uint8 [B, H, W, 3] into network input [B, 3, H, W] of `dtype` (channels_last).

    The steps, in order: crop, flip, colour, normalisation, erasing; all in float32. The output is valid until the next
    call, which fills the same memory: allocating memory for each batch would add half of the time. Inference mode has
    memory of its own.

    A CPU works picture by picture: the planes of one stay in its cache, 3 to 5 times as fast as one batched product.
    Other devices take the whole batch at once, in as many kernels for any number of pictures. Both ways agree within
    1e-5.
    """

    def __init__(
        self,
        normalization: Normalization,
        augmentation: Augmentation,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        *,
        whole_batch: bool | None = None,
    ) -> None:
        """Prepare what all batches share; `whole_batch` is whether to take the way of other devices than a CPU."""
        self._augmentation, self._dtype = augmentation, dtype
        self._fill = self._fill_at_once if whole_batch or device.type != "cpu" else self._fill_one_by_one
        mean = torch.tensor(normalization.mean, dtype=torch.float64)
        std = torch.tensor(normalization.std, dtype=torch.float64)
        self._mean, self._std = mean, std
        self._lowest = (-mean / std).float().to(device)
        self._highest = ((1 - mean) / std).float().to(device)
        self._plain = self._normalized(torch.eye(3, 4, dtype=torch.float64)[None]).to(device)
        self._outputs: dict[bool, torch.Tensor] = {}

    @torch.no_grad()
    def __call__(self, pixels: torch.Tensor, draws: torch.Tensor | None) -> torch.Tensor:
        """Return a batch as network input.

        Args:
            pixels: uint8 [B, H, W, 3], RGB, on the device.
            draws: float64 [B, 14] of `augmentation_draws`, on the host; None for no augmentation.
        """
        num, height, width, _ = pixels.shape
        out = self._output(num, (3, height, width), pixels.device)
        moves = Moves() if draws is None else _moves(self._augmentation, draws.numpy(), (width, height))
        self._fill(out, pixels, self._matrices(num, draws, pixels.device), moves)
        return out

    def _output(self, num: int, shape: tuple[int, int, int], device: torch.device) -> torch.Tensor:
        """Return memory for pictures [B, 3, H, W]: that of an earlier call which had as many or more."""
        inference = torch.is_inference_mode_enabled()  # memory that was allocated in it cannot be trained on
        kept = self._outputs.get(inference)
        if kept is None or kept.shape[1:] != shape or len(kept) < num:
            layout = torch.channels_last
            kept = torch.empty((num, *shape), dtype=self._dtype, device=device, memory_format=layout)
            self._outputs[inference] = kept
        return kept[:num]

    def _fill_one_by_one(self, out: torch.Tensor, pixels: torch.Tensor, matrices: torch.Tensor, moves: Moves) -> None:
        num, height, width, _ = pixels.shape
        normalized = torch.empty(3, height * width, device=pixels.device)
        lowest, highest = self._lowest[:, None], self._highest[:, None]
        for i in range(num):
            torch.addmm(matrices[i, :, 3:], matrices[i, :, :3], moved_planes(pixels[i], moves, i), out=normalized)
            torch.clamp(normalized, lowest, highest, out=normalized)
            picture = normalized.view(3, height, width)
            if moves.erased is not None:
                left, top, inner_width, inner_height = (int(side[i]) for side in moves.erased)
                picture[:, top : top + inner_height, left : left + inner_width] = 0
            out[i].copy_(picture)

    def _fill_at_once(self, out: torch.Tensor, pixels: torch.Tensor, matrices: torch.Tensor, moves: Moves) -> None:
        num, height, width, _ = pixels.shape
        # channels_last has the order of the pixels: nothing has to be transposed.
        flat, last = moved_batch(pixels, moves).float().view(num, height * width, 3), out.permute(0, 2, 3, 1)
        normalized = torch.baddbmm(matrices[:, None, :, 3], flat, matrices[:, :, :3].transpose(1, 2))
        torch.clamp(normalized.view(num, height, width, 3), self._lowest, self._highest, out=last)
        if moves.erased is not None:
            last.masked_fill_(inside(moves.erased, (width, height), pixels.device), 0)

    def _matrices(self, num: int, draws: torch.Tensor | None, device: torch.device) -> torch.Tensor:
        """Return jitter and normalisation of 0..255 pixels as one map per sample: float32 [B, 3, 4] on the device."""
        if draws is None or not self._augmentation.color_jitter:
            return self._plain.expand(num, 3, 4)
        return to_device(self._normalized(color_matrices(draws, self._augmentation.color_jitter)), device)

    def _normalized(self, color: torch.Tensor) -> torch.Tensor:
        """Return maps of RGB in 0..1, float64 [B, 3, 4], as maps of 0..255 pixels to network input, float32."""
        linear = color[:, :, :3] / (255 * self._std[:, None])
        offset = (color[:, :, 3:] - self._mean[:, None]) / self._std[:, None]
        return torch.cat([linear, offset], dim=2).float()


def _moves(augmentation: Augmentation, draws: NDArray[np.float64], size: tuple[int, int]) -> Moves:
    """Return what the draws, [B, 14], do to the pixels of pictures of (width, height) pixels."""
    shifts = crops = flips = erased = None
    padding, smallest = augmentation.crop_padding, augmentation.random_resized_crop
    if padding:
        across, down = (draws[:, _CROP + 2 : _CROP + 4] * (2 * padding + 1)).astype(np.int64).T
        shifts = (across, down)
    if smallest is not None:
        crops = random_boxes(draws[:, _CROP : _CROP + 4], size, (smallest, 1.0), _CROP_ASPECT)
    if augmentation.hflip:
        flips = draws[:, _FLIP] < augmentation.hflip
    if augmentation.random_erasing:
        boxes = random_boxes(draws[:, _ERASING:_ERASED], size, _ERASED_AREA, _ERASED_ASPECT)
        erased = boxes._replace(width=boxes.width * (draws[:, _ERASED] < augmentation.random_erasing))
    return Moves(padding, shifts, crops, flips, erased)
