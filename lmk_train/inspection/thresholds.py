"""Thresholds that are set from the data, with a stated expected share of false alarms."""

import numpy as np
import torch
from numpy.typing import NDArray

FALSE_ALARMS = 0.1  # expected share of false alarms among the samples that are flagged
_LEAST_PROBABLE = 0.5


def flag_probable(probabilities: NDArray[np.float32], false_alarms: float = FALSE_ALARMS) -> NDArray[np.bool_]:
    """Return which of N findings, each true with its probability, are flagged.

    These are the most probable ones, as many as leave the mean of 1 - probability at or below `false_alarms`; none
    that is more probably false than true.
    """
    order = np.argsort(-probabilities, kind="stable")
    expected = np.cumsum(1 - probabilities[order], dtype=np.float64) / np.arange(1, len(order) + 1)
    number = int(np.searchsorted(expected, false_alarms, side="right"))  # the mean never falls along this order
    least = probabilities[order[number - 1]] if number else np.inf  # equal probabilities are flagged together
    kept = (probabilities >= least) & (probabilities > _LEAST_PROBABLE)
    return np.asarray(kept, dtype=np.bool_)


def flag_low(values: NDArray[np.float32], false_alarms: float = FALSE_ALARMS) -> NDArray[np.bool_]:
    """Return which of N values are too low to belong to the bulk of them. NaN is never flagged.

    The bulk is taken as normal, with the median of all values and the spread of those above it, so that low values do
    not widen it (an empirical null: Efron 2004). As many values are flagged as the procedure of Benjamini and Hochberg
    (1995) allows for this expected share of false alarms.
    """
    known = np.flatnonzero(np.isfinite(values))
    flagged = np.zeros(len(values), dtype=np.bool_)
    if not len(known):
        return flagged
    finite = values[known].astype(np.float64)
    median = np.median(finite)
    spread = np.quantile(finite, 0.8413) - median  # one standard deviation of a normal distribution
    if spread <= 0:
        return flagged
    z = (finite - median) / spread
    order = np.argsort(z, kind="stable")
    tail = torch.special.ndtr(torch.from_numpy(z[order])).numpy()  # the probability of a value as low or lower
    allowed = np.flatnonzero(tail <= false_alarms * np.arange(1, len(tail) + 1) / len(finite))
    if len(allowed):
        flagged[known[order[: allowed[-1] + 1]]] = True
    return flagged
