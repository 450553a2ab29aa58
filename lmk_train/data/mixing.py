"""Mixup and cutmix: the two samples of each pair of a batch are mixed with each other, on the training device.

Pairs are neighbours in the global batch: samples 0 and 1, 2 and 3, and so on. Shares and micro-batches of even length
never divide a pair, so that what a sample is mixed with, and how, is the same for any number of ranks, workers and
micro-batches. Neighbours of a shuffled order are random partners.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray

from lmk_train.data.geometry import Boxes, inside
from lmk_train.data.order import mixing_hashes
from lmk_train.runtime.transfer import to_device

PAIR = 2
# The places of a sample's draws.
_KIND, _SHARE, _ACROSS, _DOWN = 0, 1, 2, 3
_DRAWS = 4
_NODES = 8193


@dataclass(frozen=True)
class Mix:
    """How the samples of a batch are mixed.

    Attributes:
        own: the share of its own label, float64 [B] on the host; the rest is its partner's.
        faded: the share of the partner's pixels outside its box, float64 [B].
        boxes: rectangles that are the partner's, of width 0 where there is none; None if no sample has one.
    """

    own: NDArray[np.float64]
    faded: NDArray[np.float64]
    boxes: Boxes | None


@dataclass(frozen=True)
class Mixing:
    """What is mixed: `mixup` and `cutmix` are the alpha of their Beta(alpha, alpha) distributions, None for off.

    If both are given, each sample draws one of the two. Mixup: Zhang et al., "mixup: beyond empirical risk
    minimization", ICLR 2018. Cutmix: Yun et al., "CutMix: regularization strategy to train strong classifiers with
    localizable features", ICCV 2019.
    """

    mixup: float | None
    cutmix: float | None

    def of(self, picks: NDArray[np.int64], seed: int, epoch: int, size: tuple[int, int]) -> Mix:
        """Return how the samples of these picks, int64 [B], are mixed: pictures of (width, height) pixels.

        It depends on (seed, epoch, pick) alone.
        """
        draws = (mixing_hashes(picks, seed, epoch, _DRAWS) >> np.uint64(11)).astype(np.float64) * 2.0**-53
        faded, boxes = np.zeros(len(picks)), None
        cuts = np.full(len(picks), self.mixup is None)
        if self.mixup is not None:
            cuts = draws[:, _KIND] < 0.5 if self.cutmix is not None else cuts
            faded = np.where(cuts, 0.0, 1 - beta_quantiles(draws[:, _SHARE], self.mixup))
        own = 1 - faded
        if self.cutmix is not None:
            boxes = _cut_boxes(draws, beta_quantiles(draws[:, _SHARE], self.cutmix), size)
            boxes = boxes._replace(width=boxes.width * cuts)
            own = np.where(cuts, 1 - boxes.width * boxes.height / (size[0] * size[1]), own)
        return Mix(own, faded, boxes)


@torch.no_grad()
def mix_pictures(pictures: torch.Tensor, mix: Mix) -> None:
    """Mix pictures [B, C, H, W] in place, each with the other one of its pair; B is even."""
    num, _, height, width = pictures.shape
    weights = to_device(torch.from_numpy(mix.faded).to(pictures.dtype), pictures.device).view(num, 1, 1, 1)
    if mix.boxes is not None:
        cut = inside(mix.boxes, (width, height), pictures.device).permute(0, 3, 1, 2)
        weights = torch.where(cut, torch.ones((), dtype=pictures.dtype, device=pictures.device), weights)
    pictures.lerp_(partners(pictures), weights)  # exact at 0 and 1


def partners(values: torch.Tensor) -> torch.Tensor:
    """Return what the partners of the samples have, [B, ...] in the order of the samples."""
    return values.view(-1, PAIR, *values.shape[1:]).flip(1).flatten(0, 1)


def mixed_losses(
    losses_of: Callable[[torch.Tensor], torch.Tensor], labels: torch.Tensor, mix: Mix | None
) -> torch.Tensor:
    """Return the losses of mixed samples, float32 [B]: those of both labels, by their shares.

    For cross entropy this is the loss of the mixed target; losses with margins are defined for single labels only.

    Args:
        losses_of: labels int64 [B] to losses float32 [B].
        labels: of the samples themselves, int64 [B].
        mix: None for samples that are not mixed.
    """
    losses = losses_of(labels)
    if mix is None:
        return losses
    own = to_device(torch.from_numpy(mix.own).float(), losses.device)
    return own * losses + (1 - own) * losses_of(partners(labels))


def main_labels(labels: torch.Tensor, mix: Mix | None) -> torch.Tensor:
    """Return the label with the larger share of each sample, int64 [B]."""
    if mix is None:
        return labels
    return torch.where(to_device(torch.from_numpy(mix.own < 0.5), labels.device), partners(labels), labels)


def beta_quantiles(draws: NDArray[np.float64], alpha: float) -> NDArray[np.float64]:
    """Return values of the distribution Beta(alpha, alpha) from uniform draws in [0, 1), float64 [B] each.

    The inverse of its distribution function, interpolated in a table: a sample takes one draw, whatever alpha is.
    """
    places, values = _quantile_table(alpha)
    low = np.interp(np.minimum(draws, 1 - draws), places, values)
    root = low ** (1 / min(alpha, 1.0)) / 2
    quantiles: NDArray[np.float64] = np.where(draws < 0.5, root, 1 - root)
    return quantiles


@cache
def _quantile_table(alpha: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the distribution function of Beta(alpha, alpha) up to 1/2, and y = (2 x)^p where it has these values.

    With p = min(alpha, 1) the density over y is bounded: it is x^(alpha - p) (1 - x)^(alpha - 1) up to a factor.
    """
    power = min(alpha, 1.0)
    nodes = np.linspace(0, 1, _NODES)
    x = nodes ** (1 / power) / 2
    density = x ** (alpha - power) * (1 - x) ** (alpha - 1)
    steps = (density[1:] + density[:-1]) / 2
    reached = np.concatenate([[0.0], steps.cumsum()])
    return reached * (0.5 / reached[-1]), nodes


def _cut_boxes(draws: NDArray[np.float64], kept: NDArray[np.float64], size: tuple[int, int]) -> Boxes:
    """Return a rectangle of each picture: sides of sqrt(1 - kept) of the picture's, its centre anywhere, cut to it."""
    sides = []
    for place, length in ((_ACROSS, size[0]), (_DOWN, size[1])):
        half = (length * np.sqrt(1 - kept)).astype(np.int64) // 2
        centre = (draws[:, place] * length).astype(np.int64)
        first, last = (centre - half).clip(0, length), (centre + half).clip(0, length)
        sides.append((first, last - first))
    (left, width), (top, height) = sides
    return Boxes(left, top, width, height)
