"""Crops, flips and erased rectangles of pictures: picture by picture for a CPU, the whole batch for other devices."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from lmk_train.runtime.transfer import to_device


class Boxes(NamedTuple):
    """A rectangle in each of B pictures, in pixels, int64 [B] each."""

    left: NDArray[np.int64]
    top: NDArray[np.int64]
    width: NDArray[np.int64]
    height: NDArray[np.int64]


@dataclass(frozen=True)
class Moves:
    """What happens to the pixels of B pictures, in this order; None for a step that none of them takes.

    Attributes:
        padding: black pixels on each side, out of which a picture of the same size is cropped.
        shifts: left and top of that crop in the padded picture, int64 [B] each.
        crops: rectangles that are resized to full size.
        flips: which pictures are flipped, bool [B].
        erased: rectangles that become the mean colour after everything else; of width 0 in a picture without one.
    """

    padding: int = 0
    shifts: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None
    crops: Boxes | None = None
    flips: NDArray[np.bool_] | None = None
    erased: Boxes | None = None


def random_boxes(
    draws: NDArray[np.float64],
    size: tuple[int, int],
    area: tuple[float, float],
    aspect: tuple[float, float],
) -> Boxes:
    """Return a rectangle inside each of B pictures of (width, height) pixels, from draws in [0, 1), [B, 4].

    The draws decide its area (uniform within `area`, shares of the picture's), its aspect ratio (log-uniform within
    `aspect`), left and top. A side longer than the picture's is cut to it; torchvision draws again, up to ten times.
    """
    width, height = size
    pixels = (area[0] + (area[1] - area[0]) * draws[:, 0]) * width * height
    ratio = np.exp(math.log(aspect[0]) + (math.log(aspect[1]) - math.log(aspect[0])) * draws[:, 1])
    inner_width = np.rint(np.sqrt(pixels * ratio)).clip(1, width).astype(np.int64)
    inner_height = np.rint(np.sqrt(pixels / ratio)).clip(1, height).astype(np.int64)
    left = (draws[:, 2] * (width - inner_width + 1)).astype(np.int64)
    top = (draws[:, 3] * (height - inner_height + 1)).astype(np.int64)
    return Boxes(left, top, inner_width, inner_height)


def moved_planes(picture: torch.Tensor, moves: Moves, i: int) -> torch.Tensor:
    """Return picture number `i` of a batch, uint8 [H, W, 3], cropped and flipped: float32 [3, H * W] in 0..255."""
    height, width, _ = picture.shape
    if moves.shifts is not None:
        picture = _padded_crop(picture, moves.padding, *(int(shift[i]) for shift in moves.shifts))
    flip = moves.flips is not None and bool(moves.flips[i])
    if moves.crops is None:
        return (picture.flip(1) if flip else picture).reshape(-1, 3).T.float()
    left, top, inner_width, inner_height = (int(side[i]) for side in moves.crops)
    inner = picture[top : top + inner_height, left : left + inner_width]
    planes = (inner.flip(1) if flip else inner).permute(2, 0, 1).float()
    resized = functional.interpolate(planes[None], (height, width), mode="bilinear", antialias=True)
    return resized.view(3, height * width)


def moved_batch(pixels: torch.Tensor, moves: Moves) -> torch.Tensor:
    """Return pictures uint8 [B, H, W, 3] cropped and flipped: uint8 or float32 of the same shape, in 0..255."""
    num, height, width, _ = pixels.shape
    rows, columns = (np.broadcast_to(np.arange(length), (num, length)) for length in (height, width))
    if moves.shifts is not None:
        pixels = functional.pad(pixels, (0, 0, *4 * (moves.padding,)))
        left, top = moves.shifts
        rows, columns = rows + top[:, None], columns + left[:, None]
    if moves.flips is not None and moves.crops is None:
        columns = np.where(moves.flips[:, None], columns[:, ::-1], columns)
    if moves.shifts is not None or (moves.flips is not None and moves.crops is None):
        pixels = _taken(pixels, rows, columns)
    return pixels if moves.crops is None else _resized(pixels, moves.crops, moves.flips)


def inside(boxes: Boxes, size: tuple[int, int], device: torch.device) -> torch.Tensor:
    """Return which pixels of pictures of (width, height) pixels lie in their boxes: bool [B, height, width, 1]."""
    width, height = size
    columns = np.arange(width) - boxes.left[:, None]
    rows = np.arange(height) - boxes.top[:, None]
    across = _on(device, (columns >= 0) & (columns < boxes.width[:, None]))
    down = _on(device, (rows >= 0) & (rows < boxes.height[:, None]))
    return down[:, :, None, None] & across[:, None, :, None]


class _Taps(NamedTuple):
    """The two input pixels along one axis between which each of n output pixels lies, in each of B pictures.

    `first` and `second` are their indexes, int64 [B, n]; `weight` is that of the second, float32 [B, n].
    """

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    weight: NDArray[np.float32]


def _taps(length: NDArray[np.int64], size: int) -> _Taps:
    """Return the taps that enlarge `length` input pixels, int64 [B], to `size` output pixels.

    They are those of torch's bilinear interpolation, rounded where it rounds. Its antialiasing changes nothing where
    nothing shrinks.
    """
    last = length[:, None] - 1
    scale = length.astype(np.float32)[:, None] / np.float32(size)
    centre = (scale * (np.arange(size) + 0.5)).astype(np.float32)
    first = np.floor(centre - 0.5).astype(np.int64)
    before, after = (1 - np.abs((first + tap).astype(np.float32) - centre + 0.5) for tap in (0, 1))
    return _Taps(first.clip(0, last), (first + 1).clip(0, last), (after / (before + after)).astype(np.float32))


def _resized(pixels: torch.Tensor, boxes: Boxes, flips: NDArray[np.bool_] | None) -> torch.Tensor:
    """Return these boxes of pictures uint8 [B, H, W, 3] at full size, some flipped: float32 [B, H, W, 3]."""
    num, height, width, _ = pixels.shape
    rows, columns = (np.broadcast_to(np.arange(length), (num, length)) for length in (height, width))
    across, down = _taps(boxes.width, width), _taps(boxes.height, height)
    places = [across.first, across.second]
    if flips is not None:  # before the resize, as picture by picture: after it, weights would round differently
        places = [np.where(flips[:, None], boxes.width[:, None] - 1 - one, one) for one in places]
    left, right = (_taken(pixels, rows, one + boxes.left[:, None]).float() for one in places)
    wide = left.lerp_(right, _on(pixels.device, across.weight)[:, None, :, None])
    upper, lower = (_taken(wide, one + boxes.top[:, None], columns) for one in (down.first, down.second))
    return upper.lerp_(lower, _on(pixels.device, down.weight)[:, :, None, None])


def _taken(pixels: torch.Tensor, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> torch.Tensor:
    """Return these rows, int64 [B, h], and columns, [B, w], of pictures [B, H, W, 3]: [B, h, w, 3], in one pass."""
    places = np.concatenate([np.arange(len(rows))[:, None], rows, columns], axis=1)  # one copy for all three
    picture, down, across = torch.split(_on(pixels.device, places), [1, rows.shape[1], columns.shape[1]], dim=1)
    return pixels[picture[:, :, None], down[:, :, None], across[:, None]]


def _on(device: torch.device, array: NDArray[Any]) -> torch.Tensor:
    return to_device(torch.from_numpy(array), device)


def _padded_crop(picture: torch.Tensor, padding: int, left: int, top: int) -> torch.Tensor:
    """Return a crop of a picture, uint8 [H, W, 3], at its own size: at (left, top) of the picture padded with black."""
    height, width, _ = picture.shape
    x, y = left - padding, top - padding
    out = torch.zeros_like(picture)
    inside = picture[max(0, y) : max(0, height + min(0, y)), max(0, x) : max(0, width + min(0, x))]
    top, left = max(0, -y), max(0, -x)
    out[top : top + inside.shape[0], left : left + inside.shape[1]] = inside
    return out
