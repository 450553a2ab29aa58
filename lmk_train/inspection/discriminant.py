"""Gaussian classes that share a covariance: how far a sample is from the classes if it is taken out of its own.

This is linear discriminant analysis (Fisher 1936) with a covariance that is shrunk towards a multiple of the identity
(Friedman 1989). Taking a sample out of its class changes the mean of the class and, by the formula of Sherman and
Morrison, the inverse of the covariance; both are exact and cost no second fit.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from lmk_train.inspection.blocks import Moments

PRIOR_SAMPLES = 1.0  # the mean of a class is drawn to that of all samples as by so many samples
_SMALLEST_REST = 1e-3  # of 1: a sample alone in its direction makes the rest of the covariance singular
_PROJECTED = 128  # dimensions in which candidates are searched
_NO_DIFFERENCE = 1e-10  # of the largest eigenvalue: noise of rounding
_GROUP = 32  # classes whose best is found first
_CELLS = 1 << 24  # fits of samples to classes that are in memory at a time


@dataclass(frozen=True, slots=True)
class WeightedBlock:
    """A block of samples: whitened features [B, D], labels [B] and weights [B]."""

    whitened: torch.Tensor
    labels: torch.Tensor
    weights: torch.Tensor


@dataclass(frozen=True, slots=True)
class Spectrum:
    """Moments and the eigenvectors of the covariance within classes, from which it is shrunk by any share."""

    moments: Moments
    values: torch.Tensor
    vectors: torch.Tensor

    @classmethod
    def of(cls, moments: Moments) -> "Spectrum":
        """Return the spectrum of the covariance within classes; O(D^3)."""
        means = moments.sums / moments.counts.clamp(min=1e-6)[:, None]
        within = moments.products - (means.T @ moments.sums).double()
        values, vectors = torch.linalg.eigh((within + within.T) / (2 * moments.counts.sum().double()))
        return cls(moments, values.clamp(min=0).float(), vectors.float())


class Discriminant:
    """Classes as whitened means [K, D]; the covariance is shrunk by `shrinkage`, from 0 to 1."""

    def __init__(self, spectrum: Spectrum, shrinkage: float) -> None:
        moments = spectrum.moments
        values = (1 - shrinkage) * spectrum.values + shrinkage * spectrum.values.mean()
        self.shrinkage = shrinkage
        self.counts = moments.counts
        self._centre = moments.centre
        self._share = (1 - shrinkage) / float(moments.counts.sum())  # of one sample in the covariance
        self._whitening = spectrum.vectors / values.clamp(min=1e-8).sqrt()
        prior = moments.sums.sum(0) / moments.counts.sum()
        means = (moments.sums + PRIOR_SAMPLES * prior) / (moments.counts + PRIOR_SAMPLES)[:, None]
        self._prior = prior @ self._whitening
        self._means = means @ self._whitening
        self._norms = (self._means**2).sum(1)
        self._axes = self._search_axes()
        self._projected = torch.cat([self._means @ self._axes, -self._norms[:, None] / 2], 1)

    def whiten(self, block: torch.Tensor) -> torch.Tensor:
        """Return features [B, D] in the coordinates in which the covariance within classes is the identity."""
        return (block - self._centre) @ self._whitening

    def candidates(self, samples: WeightedBlock, num: int, allowed: torch.Tensor) -> torch.Tensor:
        """Return the `num` classes that are closest to each sample, int64 [B, num], its own left out.

        They are searched along the axes in which the means of classes differ most. `allowed`, bool [K], says which
        classes have samples.
        """
        num_classes = len(self._means)
        ones = torch.ones((len(samples.labels), 1), device=samples.labels.device)
        coordinates = torch.cat([samples.whitened @ self._axes, ones], 1)
        found = []
        step = max(1, _CELLS // num_classes)
        for start in range(0, len(coordinates), step):
            fit = coordinates[start : start + step] @ self._projected.T
            fit.masked_fill_(~allowed, -torch.inf)
            fit.scatter_(1, samples.labels[start : start + step, None], -torch.inf)
            found.append(_largest(fit, num))
        return torch.cat(found)

    def distances(self, samples: WeightedBlock, candidates: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return squared Mahalanobis distances without the sample itself: to its class [B] and to candidates [B, C]."""
        own_means, counts = self._means[samples.labels], self.counts[samples.labels]
        with_prior = counts + PRIOR_SAMPLES
        own_plain = own_means + (PRIOR_SAMPLES / counts.clamp(min=1e-6))[:, None] * (own_means - self._prior)
        residual = samples.whitened - own_plain
        squared = (residual**2).sum(1)
        share = self._share * samples.weights * counts / (counts - samples.weights).clamp(min=1e-6)
        gain = share / (1 - share * squared).clamp(min=_SMALLEST_REST)
        rest = (with_prior - samples.weights).clamp(min=1e-6)
        to_own = (samples.whitened - own_means) * (with_prior / rest)[:, None]  # the mean moves away without the sample
        own = (to_own**2).sum(1) + gain * (residual * to_own).sum(1) ** 2
        means = self._means[candidates]
        norms = (samples.whitened**2).sum(1)[:, None] + self._norms[candidates]
        to_others = norms - 2 * torch.einsum("bd,bcd->bc", samples.whitened, means)
        along = (residual * samples.whitened).sum(1)[:, None] - torch.einsum("bd,bcd->bc", residual, means)
        return own, to_others + gain[:, None] * along**2

    def _search_axes(self) -> torch.Tensor:
        """Return the axes [D, 128] in which the means of classes differ most; fewer if there are fewer classes."""
        if self._means.shape[1] <= _PROJECTED:
            return torch.eye(self._means.shape[1], device=self._means.device)
        axes: torch.Tensor
        centred = ((self._means - self._prior) * self.counts.sqrt().clamp(max=8)[:, None]).double()
        if len(centred) >= centred.shape[1]:
            axes = torch.linalg.eigh(centred.T @ centred).eigenvectors[:, -_PROJECTED:]
            return axes.float()
        # The matrix of D x D would have D - K eigenvalues of zero, with which LAPACK may not converge.
        values, vectors = torch.linalg.eigh(centred @ centred.T)
        kept = torch.nonzero(values > values[-1] * _NO_DIFFERENCE).flatten()[-_PROJECTED:]
        axes = centred.T @ (vectors[:, kept] / values[kept].sqrt())
        return axes.float()


def _largest(fit: torch.Tensor, num: int) -> torch.Tensor:
    """Return the columns of the `num` largest values of each row of `fit` [B, K].

    The largest values lie in the groups of columns with the largest maxima. Groups are faster to search.
    """
    rows, columns = fit.shape
    if columns <= 2 * num * _GROUP:
        return fit.topk(num, dim=1).indices
    padded = torch.nn.functional.pad(fit, (0, -columns % _GROUP), value=-torch.inf).view(rows, -1, _GROUP)
    groups = padded.amax(2).topk(num, dim=1).indices
    inside = padded.gather(1, groups[:, :, None].expand(-1, -1, _GROUP)).flatten(1).topk(num, dim=1).indices
    return groups.gather(1, inside // _GROUP) * _GROUP + inside % _GROUP


def weighted_block(
    discriminant: Discriminant, block: torch.Tensor, labels: NDArray[np.int32], weights: NDArray[np.float32]
) -> WeightedBlock:
    """Return a block of features [B, D] with labels [B] and weights [B] as samples of a discriminant."""
    label = torch.from_numpy(labels.astype(np.int64)).to(block.device)
    return WeightedBlock(discriminant.whiten(block), label, torch.from_numpy(weights).to(block.device))
