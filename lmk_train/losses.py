"""Losses of long-tailed classification over float32 logits, with margins from the training split's class counts."""

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


class CrossEntropy(nn.Module):
    """Cross entropy with label smoothing: logits float32 [B, K], targets int64 [B] to the mean loss."""

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing

    def forward(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(logits, targets, label_smoothing=self.label_smoothing)


class LDAM(nn.Module):
    """Label-distribution-aware margin loss: logits float32 [B, K], targets int64 [B] to the mean loss.

    The target's logit is lowered by scale * margin before a cross entropy; with a cosine head, whose logits are
    scale * cosine, the margin is in cosines, and with a linear head (scale 1) in logits.
    """

    margins: torch.Tensor

    def __init__(self, margins: torch.Tensor, scale: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("margins", margins * scale)

    def forward(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        lowered = logits.scatter_add(1, targets[:, None], -self.margins[targets][:, None])
        return functional.cross_entropy(lowered, targets)
