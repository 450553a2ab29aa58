"""The classifier: a backbone and a head in float32; and the cosine head."""

import math
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from lmk_train.runtime.compiling import begin_call

_PART_BYTES = 8 << 20  # the cosine head passes five times over a part of the weights, which has to fit the CPU cache


class Classifier(nn.Module):
    """A backbone, dropout and a head of K classes: pictures float32 [B, 3, H, W] to logits float32 [B, K].

    Features, float32 [B, D], are accepted in place of pictures and skip the backbone. The backbone follows the autocast
    around it. The head always computes in float32: a scaled cosine near 1 loses too much precision in 16 bits.
    """

    def __init__(self, backbone: nn.Module, head: nn.Module, dropout: float) -> None:
        super().__init__()
        self.backbone, self.head, self.dropout = backbone, head, nn.Dropout(dropout)
        self._frozen = False

    @property
    def num_classes(self) -> int:
        """The number K of outputs."""
        return int(self.head.weight.shape[0])  # type: ignore[index]

    def freeze(self, frozen: bool) -> None:
        """Freeze the backbone, its running statistics included, or let it train."""
        self._frozen = frozen
        self.backbone.requires_grad_(not frozen)
        self.train(self.training)

    def train(self, mode: bool = True) -> "Classifier":
        """Set the training mode; a frozen backbone stays in evaluation mode."""
        super().train(mode)
        self.backbone.train(mode and not self._frozen)
        return self

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        if pictures.ndim == 2:  # features
            features = pictures
        else:
            begin_call(self.backbone)
            with torch.no_grad() if self._frozen else nullcontext():
                features = self.backbone(pictures)
        with torch.autocast(features.device.type, enabled=False):
            logits: torch.Tensor = self.head(self.dropout(features.float()))
        return logits


class CosineHead(nn.Module):
    """Cosines between features and class weights, times a scale: float32 [B, D] to logits [B, K]; no bias."""

    def __init__(self, num_features: int, num_classes: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.weight = nn.Parameter(torch.empty(num_classes, num_features))
        nn.init.normal_(self.weight, std=1 / math.sqrt(num_features))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        directions = functional.normalize(features, dim=1)
        logits: torch.Tensor
        if torch.is_grad_enabled():
            logits = _CosineLogits.apply(directions, self.weight, self.scale)
        else:  # plain operations, which torch.export and ONNX support
            logits = (directions @ self.weight.T).mul_(self.scale / self.weight.norm(dim=1).clamp_min(1e-12))
        return logits


class _CosineLogits(torch.autograd.Function):
    """s * x @ (w / |w|).T without storing the normalised weights: the columns of x @ w.T are scaled instead.

    Weights and their gradient are processed in parts, so that each part stays in the CPU cache for all passes over it.
    """

    @staticmethod
    def forward(ctx: Any, features: torch.Tensor, weight: torch.Tensor, scale: float) -> torch.Tensor:
        logits, norms = features.new_empty(len(features), len(weight)), weight.new_empty(len(weight))
        for rows in _parts(weight):
            torch.mm(features, weight[rows].T, out=logits[:, rows])
            torch.linalg.vector_norm(weight[rows], dim=1, out=norms[rows])
        factors = scale / norms.clamp_min_(1e-12)
        logits.mul_(factors)
        ctx.save_for_backward(features, weight, factors, logits)
        ctx.scale = scale
        return logits

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None]:
        features, weight, factors, logits = ctx.saved_tensors
        scaled = gradient * factors
        features_gradient = torch.zeros_like(features) if ctx.needs_input_grad[0] else None
        weight_gradient = torch.empty_like(weight) if ctx.needs_input_grad[1] else None
        # d(s x.w/|w|)/dw = s/|w| x - logit w/|w|^2, and s/|w| = factors.
        along = (gradient * logits).sum(dim=0) * (factors / ctx.scale).square()
        for rows in _parts(weight):
            if features_gradient is not None:
                features_gradient.addmm_(scaled[:, rows], weight[rows])
            if weight_gradient is not None:
                torch.mul(weight[rows], along[rows, None], out=weight_gradient[rows])
                weight_gradient[rows].addmm_(scaled[:, rows].T, features, beta=-1)
        return features_gradient, weight_gradient, None


def _parts(weight: torch.Tensor) -> list[slice]:
    """Return the parts of a weight's rows that are processed at once; all rows in one part except on the CPU."""
    rows = max(1, _PART_BYTES // weight[0].nbytes) if weight.device.type == "cpu" else len(weight)
    return [slice(start, start + rows) for start in range(0, len(weight), rows)]
