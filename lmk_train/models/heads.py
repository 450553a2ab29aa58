"""The classifier: a backbone and a head in float32; and the cosine heads, with one centre a class or several."""

import math
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from lmk_train.runtime.compiling import begin_call

_PART_BYTES = 8 << 20  # the cosine head passes five times over a part of the weights, which has to fit the CPU cache


class Classifier(nn.Module):
    """A backbone, dropout, a neck and a head of K classes: pictures float32 [B, 3, H, W] to logits float32 [B, K].

    Features, float32 [B, D], are accepted in place of pictures and skip the backbone. The backbone follows the autocast
    around it. Neck and head always compute in float32: a scaled cosine near 1 loses too much precision in 16 bits.
    """

    def __init__(self, backbone: nn.Module, head: nn.Module, dropout: float, neck: nn.Module | None = None) -> None:
        """Put the parts together; `neck` maps features to what the head takes, and is left out by default."""
        super().__init__()
        self.backbone, self.head, self.dropout = backbone, head, nn.Dropout(dropout)
        self.neck = nn.Identity() if neck is None else neck
        self._frozen = False

    @property
    def num_classes(self) -> int:
        """The number K of outputs."""
        return int(self.head.weight.shape[0])  # type: ignore[index]

    @property
    def num_described(self) -> int:
        """The number D of features that the head takes."""
        return int(self.head.weight.shape[-1])  # type: ignore[index]

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
            logits: torch.Tensor = self.head(self.neck(self.dropout(features.float())))
        return logits

    def describe(self, pictures: torch.Tensor) -> torch.Tensor:
        """Return what the head takes, float32 [B, D]: the features, through the neck if there is one.

        In evaluation mode `classify` makes of it the same logits as `forward` of the pictures.
        """
        if pictures.ndim == 2:  # features
            features = pictures
        else:
            begin_call(self.backbone)
            features = self.backbone(pictures)
        with torch.autocast(features.device.type, enabled=False):
            described: torch.Tensor = self.neck(features.float())
        return described

    def classify(self, described: torch.Tensor) -> torch.Tensor:
        """Return the logits, float32 [B, K], of what `describe` returned."""
        with torch.autocast(described.device.type, enabled=False):
            logits: torch.Tensor = self.head(described)
        return logits


def make_neck(num_features: int, width: int) -> nn.Module:
    """Return a linear layer and a batch normalisation: float32 [B, D] to [B, width].

    Features of fewer dimensions make the head smaller by the same factor, and the normalisation spreads them. Usual
    among the winners of the landmark competitions.
    """
    linear = nn.Linear(num_features, width, bias=False)
    nn.init.normal_(linear.weight, std=1 / math.sqrt(num_features))
    return nn.Sequential(linear, nn.BatchNorm1d(width))


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


class SubcenterHead(nn.Module):
    """A cosine head with C centres a class: the logit is that of the nearest centre. [B, D] to logits [B, K]; no bias.

    Deng et al., "Sub-center ArcFace: boosting face recognition by large-scale noisy web faces", ECCV 2020: a noisy
    picture, or another view of the same landmark, finds a centre of its own.
    """

    def __init__(self, num_features: int, num_classes: int, scale: float, num_centers: int) -> None:
        super().__init__()
        self.scale = scale
        self.weight = nn.Parameter(torch.empty(num_classes, num_centers, num_features))
        nn.init.normal_(self.weight, std=1 / math.sqrt(num_features))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        directions = functional.normalize(features, dim=1)
        logits: torch.Tensor
        if torch.is_grad_enabled():
            logits = _NearestCenterLogits.apply(directions, self.weight, self.scale)
        else:  # plain operations, which torch.export and ONNX support
            factors = self.scale / self.weight.norm(dim=2).clamp_min(1e-12)
            centers = self.weight.unbind(dim=1)
            logits = torch.stack([directions @ own.T * factors[:, c] for c, own in enumerate(centers)]).amax(dim=0)
        return logits


class _NearestCenterLogits(torch.autograd.Function):
    """The largest of C cosines for each class, times a scale, one centre after the other.

    Nothing of size B x K x C is held: logits [B, K], and the number of the nearest centre as uint8 [B, K].
    """

    @staticmethod
    def forward(ctx: Any, features: torch.Tensor, weight: torch.Tensor, scale: float) -> torch.Tensor:
        logits = features.new_empty(len(features), len(weight))
        nearest = torch.zeros(logits.shape, dtype=torch.uint8, device=logits.device)
        factors = scale / weight.norm(dim=2).clamp_min_(1e-12)
        for rows in _parts(weight):
            torch.mul(features @ weight[rows, 0].T, factors[rows, 0], out=logits[:, rows])
            for center in range(1, weight.shape[1]):
                other = (features @ weight[rows, center].T).mul_(factors[rows, center])
                nearest[:, rows].masked_fill_(other > logits[:, rows], center)
                torch.maximum(logits[:, rows], other, out=logits[:, rows])
        ctx.save_for_backward(features, weight, factors, logits, nearest)
        ctx.scale = scale
        return logits

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None]:
        features, weight, factors, logits, nearest = ctx.saved_tensors
        features_gradient = torch.zeros_like(features) if ctx.needs_input_grad[0] else None
        weight_gradient = torch.empty_like(weight) if ctx.needs_input_grad[1] else None
        for rows in _parts(weight):
            for center in range(weight.shape[1]):
                own = gradient[:, rows].masked_fill(nearest[:, rows] != center, 0)
                along = (own * logits[:, rows]).sum(dim=0) * (factors[rows, center] / ctx.scale).square()
                scaled = own.mul_(factors[rows, center])
                if features_gradient is not None:
                    features_gradient.addmm_(scaled, weight[rows, center])
                if weight_gradient is not None:  # as of one centre, see _CosineLogits
                    torch.mul(weight[rows, center], along[:, None], out=weight_gradient[rows, center])
                    weight_gradient[rows, center].addmm_(scaled.T, features, beta=-1)
        return features_gradient, weight_gradient, None


def _parts(weight: torch.Tensor) -> list[slice]:
    """Return the parts of a weight's rows that are processed at once; all rows in one part except on the CPU."""
    rows = max(1, _PART_BYTES // weight[0].nbytes) if weight.device.type == "cpu" else len(weight)
    return [slice(start, start + rows) for start in range(0, len(weight), rows)]
