"""The probability that a label is wrong, from how well a sample fits its class and others.

The label of a sample is modelled as that of its class with probability 1 - r and of any other class with probability
r, as in "Learning from noisy examples" (Angluin and Laird 1988). Its class is one of its own and the candidates, with
the probabilities of a conditional logit model (McFadden 1974) of the evidence. The weights of the evidence and r are
those under which the labels, as they are, are most likely. The evidence leaves each sample out of its class, so that
labels are predicted from other samples only.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

_FITTED_ROWS = 20_000  # a handful of numbers needs no more
_PRIOR_SPREAD = 10.0  # of the weights of standardised evidence; it matters only where classes never overlap
_LARGEST_NOISE = 0.5
_ITERATIONS = 60
_START = (2.0, 0.5, -0.4)  # roots of the first weight and of the others, logit of the share of wrong labels


@dataclass(frozen=True, slots=True)
class LabelModel:
    """Weights [F] of evidence, the share of wrong labels, and the mean log likelihood of the labels under them."""

    weights: NDArray[np.float64]
    noise: float
    likelihood: float
    num_classes: int

    @classmethod
    def fit(cls, evidence: NDArray[np.floating[Any]], num_classes: int) -> "LabelModel":
        """Fit the model to evidence [N, 1 + C, F] of the labelled class, first, and of C candidates."""
        chosen = evidence
        if len(evidence) > _FITTED_ROWS:
            chosen = evidence[np.random.default_rng(0).choice(len(evidence), _FITTED_ROWS, replace=False)]
        values = torch.from_numpy(chosen).double()
        against = values - values[:, :1]
        scale = against[:, 1:].reshape(-1, against.shape[2]).std(0).clamp(min=1e-6)
        against = against / scale
        likelihood, parameters = _maximised(against, num_classes)
        noise = float(_LARGEST_NOISE * torch.sigmoid(parameters[-1]))
        return cls((parameters[:-1] ** 2 / scale).numpy(), noise, likelihood, num_classes)

    def logits(self, evidence: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return how much more likely each candidate is than the labelled class, as logits float32 [N, C]."""
        logits: NDArray[np.float32] = (evidence[:, 1:] - evidence[:, :1]) @ self.weights.astype(np.float32)
        return logits

    def wrong(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the probability that the label is wrong, float32 [N], given the logits of candidates."""
        odds = np.logaddexp.reduce(logits.astype(np.float64), axis=1)  # of any candidate against the label
        odds += np.log(self.noise / (1 - self.noise) / (self.num_classes - 1))
        probability: NDArray[np.float32] = (1 / (1 + np.exp(-odds))).astype(np.float32)
        return probability


def _maximised(against: torch.Tensor, num_classes: int) -> tuple[float, torch.Tensor]:
    """Return the largest mean log likelihood, and where: roots of the weights [F] and the logit of the noise."""
    parameters = torch.full((against.shape[2] + 1,), _START[1], dtype=torch.float64)
    parameters[0], parameters[-1] = _START[0], _START[2]
    parameters.requires_grad_(True)
    optimizer = torch.optim.LBFGS([parameters], max_iter=_ITERATIONS, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = -_likelihood(against, parameters[:-1], parameters[-1], num_classes).mean()
        value = value + (parameters[:-1] ** 4).sum() / (2 * _PRIOR_SPREAD**2 * len(against))
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        likelihood = float(_likelihood(against, parameters[:-1], parameters[-1], num_classes).mean())
    return likelihood, parameters.detach()


def _likelihood(against: torch.Tensor, roots: torch.Tensor, noise: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Return log likelihoods [N] of the labels, given standardised evidence against them [N, 1 + C, F].

    A class that is no candidate counts as the least likely candidate. Otherwise labels that fit nothing would look
    likely for being among so few.
    """
    logits = against @ roots**2
    unseen = num_classes - logits.shape[1]
    if unseen:
        rest = logits[:, 1:].amin(1, keepdim=True) + np.log(unseen)
        logits = torch.cat([logits, rest], 1)
    logs = torch.log_softmax(logits, dim=1)[:, 0]
    others = torch.log1p(-logs.exp().clamp(max=1 - 1e-9))
    rate = _LARGEST_NOISE * torch.sigmoid(noise)
    return torch.logaddexp(logs + torch.log1p(-rate), others + torch.log(rate / (num_classes - 1)))
