"""Losses for long-tailed classification over float32 logits, and what they take from the class counts.

`LDAM` lowers the target's logit by the margins of `ldam_margins`, `ArcFace` turns the target's cosine by the angles of
`arcface_margins`, `BalancedSoftmax` adds `log_prior` to the logits, `CrossEntropy` is the plain loss. `drw_weights` are
class weights that can be applied to any of them late in training. Losses take logits float32 [B, K] and targets int64
[B], and return one loss for each sample, float32 [B].
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

_SMALLEST_SQUARED_SINE = 1e-6  # a float32 cosine is no closer to 1; it bounds the gradient of the root


def ldam_margins(train_counts: NDArray[np.int64], max_margin: float) -> torch.Tensor:
    """Return the LDAM margin of each class, float32 [K]: margin_j = C / n_j^(1/4), where n_j is its training samples.

    The rarer a class, the larger its margin; C is chosen so that the rarest class gets `max_margin`. A class without
    training samples gets margin 0 and does not decide C. Cao et al., "Learning imbalanced datasets with
    label-distribution-aware margin loss", NeurIPS 2019, equation 13.

    Args:
        train_counts: training samples of each class, int64 [K].
        max_margin: margin of the rarest class, in units of a cosine (cosine head) or a logit (linear head).
    """
    counts = torch.from_numpy(np.asarray(train_counts, dtype=np.float64))
    roots = torch.where(counts > 0, counts.clamp_min(1) ** -0.25, 0.0)
    return (roots * (max_margin / roots.max())).float()


def arcface_margins(train_counts: NDArray[np.int64], factor: float, smallest: float) -> torch.Tensor:
    """Return the angular margin of each class in radians, float32 [K]: factor * n_j^(-1/4) + smallest.

    n_j, int64 [K], are its training samples; a class without any gets `smallest`. Ha et al., "Google Landmark
    Recognition 2020 competition third place solution", arXiv 2010.05350, with factor 0.5 and smallest 0.05.
    """
    counts = torch.from_numpy(np.asarray(train_counts, dtype=np.float64))
    roots = torch.where(counts > 0, counts.clamp_min(1) ** -0.25, 0.0)
    return (roots * factor + smallest).float()


def drw_weights(train_counts: NDArray[np.int64], beta: float = 0.9999) -> torch.Tensor:
    """Return class weights for deferred re-weighting, float32 [K]: (1 - beta) / (1 - beta^n_j), scaled to sum to K.

    A class without training samples gets weight 0. `train_counts`, n_j, are the training samples of each class, int64
    [K]. Cui et al., "Class-balanced loss based on effective number of samples", CVPR 2019; deferred by Cao et al.
    """
    counts = torch.from_numpy(np.asarray(train_counts, dtype=np.float64))
    # 1 - beta^n loses precision for small n; expm1 does not.
    inverse = torch.where(counts > 0, (1 - beta) / -torch.expm1(counts.clamp_min(1) * math.log(beta)), 0.0)
    return (inverse * (len(counts) / inverse.sum())).float()


def log_prior(train_counts: NDArray[np.int64]) -> torch.Tensor:
    """Return the logarithm of each class's share of the training samples, int64 [K] to float32 [K].

    A class without training samples counts as one sample.
    """
    counts = torch.from_numpy(np.asarray(train_counts, dtype=np.float64)).clamp_min(1)
    return (counts / counts.sum()).log().float()


class CrossEntropy(nn.Module):
    """Cross entropy with label smoothing (Szegedy et al., "Rethinking the inception architecture", CVPR 2016).

    `label_smoothing` is the share of the target that is spread evenly over all classes.
    """

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing

    def forward(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(logits, targets, reduction="none", label_smoothing=self.label_smoothing)


class LDAM(nn.Module):
    """Label-distribution-aware margin loss: the target's logit is lowered by scale * margin before a cross entropy.

    The logits of a cosine head are scale * cosine, so that its margins are in units of a cosine; with a linear head
    (scale 1) they are in units of a logit. `margins`, float32 [K], are those of `ldam_margins`. Cao et al., NeurIPS
    2019.
    """

    margins: torch.Tensor

    def __init__(self, margins: torch.Tensor, scale: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("margins", margins * scale)

    def forward(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        lowered = logits.scatter_add(1, targets[:, None], -self.margins[targets][:, None])
        return functional.cross_entropy(lowered, targets, reduction="none")


class ArcFace(nn.Module):
    """Additive angular margin loss: the target's angle is widened by its class's margin before a cross entropy.

    The logits are scale * cosine. The target's, scale * cos(t), becomes scale * cos(t + margin); where t + margin is
    beyond pi, which would raise it again, it becomes scale * (cos(t) - margin * sin(margin)) and goes on falling.
    `margins`, float32 [K] in radians, are those of `arcface_margins`. Deng et al., "ArcFace: additive angular margin
    loss for deep face recognition", CVPR 2019.
    """

    margins: torch.Tensor

    def __init__(self, margins: torch.Tensor, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.register_buffer("margins", margins)

    def forward(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        margins = self.margins[targets]
        cosines = (logits.gather(1, targets[:, None]).squeeze(1) / self.scale).clamp(-1, 1)
        sines = ((1 - cosines) * (1 + cosines)).clamp_min(_SMALLEST_SQUARED_SINE).sqrt()
        widened = cosines * margins.cos() - sines * margins.sin()
        moved = torch.where(cosines > -margins.cos(), widened, cosines - margins * margins.sin())
        lowered = logits.scatter(1, targets[:, None], (moved * self.scale)[:, None])
        return functional.cross_entropy(lowered, targets, reduction="none")


class BalancedSoftmax(nn.Module):
    """Cross entropy of the logits plus `log_prior`, float32 [K].

    The network then learns logits without the prior, and predictions use them unchanged. Ren et al., "Balanced
    meta-softmax for long-tailed visual recognition", NeurIPS 2020; the same as the logit-adjusted loss of Menon et al.,
    "Long-tail learning via logit adjustment", ICLR 2021.
    """

    prior: torch.Tensor

    def __init__(self, prior: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("prior", prior)

    def forward(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(logits + self.prior, targets, reduction="none")
