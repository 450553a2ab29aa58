"""Losses of long-tailed classification over float32 logits; margins, priors and weights from the class counts."""

import math

import numpy as np
import torch
from torch import nn
from torch.nn import functional


def ldam_margins(train_counts: "np.ndarray[tuple[int], np.dtype[np.int64]]", max_margin: float) -> torch.Tensor:
    """Margins D_j = C / n_j^(1/4), float32 [K], with C such that the rarest class has `max_margin`.

    A class without training samples has margin 0 and does not decide C. Cao et al., "Learning Imbalanced Datasets
    with Label-Distribution-Aware Margin Loss", NeurIPS 2019, equation 13.
    """
    counts = torch.from_numpy(np.asarray(train_counts, dtype=np.float64))
    roots = torch.where(counts > 0, counts.clamp_min(1) ** -0.25, 0.0)
    return (roots * (max_margin / roots.max())).float()


def drw_weights(train_counts: "np.ndarray[tuple[int], np.dtype[np.int64]]", beta: float = 0.9999) -> torch.Tensor:
    """Class weights of deferred re-weighting, float32 [K]: (1 - beta) / (1 - beta^n_j), scaled to sum to K.

    A class without training samples has weight 0. Cui et al., "Class-Balanced Loss Based on Effective Number of
    Samples", CVPR 2019; deferred by Cao et al.
    """
    counts = torch.from_numpy(np.asarray(train_counts, dtype=np.float64))
    # 1 - beta^n loses its digits where n is small; expm1 keeps them.
    inverse = torch.where(counts > 0, (1 - beta) / -torch.expm1(counts.clamp_min(1) * math.log(beta)), 0.0)
    return (inverse * (len(counts) / inverse.sum())).float()


def log_prior(train_counts: "np.ndarray[tuple[int], np.dtype[np.int64]]") -> torch.Tensor:
    """Logarithm of each class's share of the training samples, float32 [K]; an empty class counts as one sample."""
    counts = torch.from_numpy(np.asarray(train_counts, dtype=np.float64)).clamp_min(1)
    return (counts / counts.sum()).log().float()


class CrossEntropy(nn.Module):
    """Cross entropy with label smoothing: logits float32 [B, K], targets int64 [B] to the samples' losses [B]."""

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing

    def forward(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(logits, targets, reduction="none", label_smoothing=self.label_smoothing)


class LDAM(nn.Module):
    """Label-distribution-aware margin loss: logits float32 [B, K], targets int64 [B] to the samples' losses [B].

    The target's logit is lowered by scale * margin before a cross entropy; with a cosine head, whose logits are
    scale * cosine, the margin is in cosines, and with a linear head (scale 1) in logits.
    """

    margins: torch.Tensor

    def __init__(self, margins: torch.Tensor, scale: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("margins", margins * scale)

    def forward(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        lowered = logits.scatter_add(1, targets[:, None], -self.margins[targets][:, None])
        return functional.cross_entropy(lowered, targets, reduction="none")


class BalancedSoftmax(nn.Module):
    """Cross entropy of logits plus the logarithm of the class prior: [B, K] and [B] to the samples' losses [B].

    What is learned is then free of the prior, and predictions take the logits as they are. Ren et al., "Balanced
    Meta-Softmax for Long-Tailed Visual Recognition", NeurIPS 2020; logit adjustment of Menon et al., ICLR 2021.
    """

    prior: torch.Tensor

    def __init__(self, prior: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("prior", prior)

    def forward(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(logits + self.prior, targets, reduction="none")
