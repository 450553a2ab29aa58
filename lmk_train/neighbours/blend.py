"""Blend the votes of the nearest training pictures with the probabilities of the classifier."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

MAX_NEIGHBOURS = 50
WEIGHTS = tuple(place / 20 for place in range(20))
TEMPERATURES = (0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.2)
_LEAST = 1e-12  # a probability of 0 has no logarithm


@dataclass(frozen=True)
class Blend:
    """How much the votes count, 0 to below 1, and the temperature of a vote's cosine."""

    weight: float
    temperature: float


UNPICKED = Blend(0.25, 0.05)  # where no validation picture picks one


def blended(probabilities: torch.Tensor, cosines: torch.Tensor, labels: torch.Tensor, blend: Blend) -> torch.Tensor:
    """Return (1 - w) p + w v, float32 [B, K], where p are the classifier's probabilities and v the votes.

    The votes for a class are the share of exp(cosine / t) that its pictures have among the k nearest: Wu et al.,
    "Unsupervised feature learning via non-parametric instance discrimination", CVPR 2018. The mixture: Khandelwal et
    al., "Generalization through memorization: nearest neighbor language models", ICLR 2020.

    Args:
        probabilities: p, float32 [B, K].
        cosines: of the nearest training pictures, float32 [B, k], falling.
        labels: of these pictures, int64 [B, k].
        blend: w and t.
    """
    votes = ((cosines - cosines[:, :1]) / blend.temperature).softmax(dim=1)
    return ((1 - blend.weight) * probabilities).scatter_add_(1, labels, blend.weight * votes)


def pick_blends(
    of_target: NDArray[np.float64],
    cosines: NDArray[np.floating[Any]],
    is_target: NDArray[np.bool_],
) -> list[Blend]:
    """Return for each k from 1 to M the weight and the temperature of the least validation loss.

    The loss is the mean of -log of the target's blended probability, over `WEIGHTS` and `TEMPERATURES`; of equal ones
    the smallest weight is picked.

    Args:
        of_target: the classifier's probability of the target, float64 [n].
        cosines: of the M nearest training pictures, [n, M], falling.
        is_target: whether these are of the target's class, bool [n, M].
    """
    best_loss = np.full(cosines.shape[1], np.inf)
    best = [UNPICKED] * cosines.shape[1]
    for weight in WEIGHTS:
        for temperature in TEMPERATURES:
            powers = np.exp((cosines - cosines[:, :1]).astype(np.float64) / temperature)
            votes = np.cumsum(powers * is_target, axis=1) / np.cumsum(powers, axis=1)
            mixed = (1 - weight) * of_target[:, None] + weight * votes
            loss = -np.log(np.maximum(mixed, _LEAST)).mean(axis=0)
            better = loss < best_loss
            best_loss[better] = loss[better]
            for place in np.flatnonzero(better).tolist():
                best[place] = Blend(weight, temperature)
    return best
