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
from numpy.typing import NDArray

_FITTED_ROWS = 20_000  # a handful of numbers needs no more
_PRIOR_SPREAD = 10.0  # of the weights of standardised evidence; it matters only where classes never overlap
_LARGEST_NOISE = 0.5
_ITERATIONS = 100
_SMALLEST_SCALE = 1e-6
_LONGEST_STEP = 1.0
_SHORTEST_STEP = 1e-6
_SMALLEST_GRADIENT = 1e-7
_TINY = 1e-300
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
        against = chosen[:, 1:].astype(np.float64) - chosen[:, :1]
        scale = np.maximum(against.std((0, 1)), _SMALLEST_SCALE)
        problem = _Problem(against / scale, num_classes)
        start = np.full(len(scale) + 1, _START[1])
        start[0], start[-1] = _START[0], _START[2]
        at = _minimum(problem, start)
        noise = _LARGEST_NOISE / (1 + np.exp(-at[-1]))
        return cls(at[:-1] ** 2 / scale, float(noise), -problem(at)[0], num_classes)

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


@dataclass(frozen=True, slots=True)
class _Problem:
    """The negative log likelihood of labels, given standardised evidence for candidates against them [N, C, F].

    Its parameters are the roots of the weights [F] and the logit of the share of wrong labels. A class that is no
    candidate counts as the least likely candidate. Otherwise labels that fit nothing would look likely for being among
    so few.
    """

    against: NDArray[np.float64]
    num_classes: int

    def __call__(self, at: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        """Return the value and its gradient [F + 1] at these parameters [F + 1]."""
        roots, share = at[:-1], 1 / (1 + np.exp(-at[-1]))
        noise = _LARGEST_NOISE * share
        logits = self.against @ roots**2
        copies = np.ones_like(logits)
        rows = np.arange(len(logits))
        copies[rows, logits.argmin(1)] += self.num_classes - 1 - logits.shape[1]
        top = np.maximum(logits.max(1), 0)  # the logit of the label itself is 0
        others = copies * np.exp(logits - top[:, None])
        right = np.exp(-top)
        total = others.sum(1) + right
        others, right = others / total[:, None], right / total
        wrong, chance = others.sum(1), 1 / (self.num_classes - 1)
        likelihood = (1 - noise) * right + noise * chance * wrong + _TINY
        by_right = ((1 - noise) - noise * chance) / likelihood
        by_weights = -((by_right * right)[:, None] * np.einsum("nc,ncf->nf", others, self.against))
        by_noise = (chance * wrong - right) / likelihood
        prior = 1 / (_PRIOR_SPREAD**2 * len(logits))
        value = -np.log(likelihood).mean() + prior * (roots**4).sum() / 2
        by_roots = -by_weights.mean(0) * 2 * roots + prior * 2 * roots**3
        return float(value), np.append(by_roots, -by_noise.mean() * noise * (1 - share))


def _minimum(problem: _Problem, at: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return where the problem is smallest, from a start: BFGS with a backtracking line search (Nocedal and Wright)."""
    value, gradient = problem(at)
    inverse = np.eye(len(at))
    for _ in range(_ITERATIONS):
        direction = -inverse @ gradient
        slope, length = float(direction @ gradient), min(1.0, _LONGEST_STEP / float(np.abs(direction).max() + _TINY))
        while (new := problem(at + length * direction))[0] > value + 1e-4 * length * slope and length > _SHORTEST_STEP:
            length /= 2
        step, change = length * direction, new[1] - gradient
        if new[0] >= value or np.abs(gradient).max() < _SMALLEST_GRADIENT:
            break
        at, (value, gradient) = at + step, new
        if (curvature := float(step @ change)) > _TINY:
            away = np.eye(len(at)) - np.outer(step, change) / curvature
            inverse = away @ inverse @ away.T + np.outer(step, step) / curvature
    return at
