"""Thresholds that are set from the data, with a stated expected share of false alarms."""

import numpy as np
import torch
from numpy.typing import NDArray

FALSE_ALARMS = 0.1  # expected share of false alarms among the samples that are flagged
_LEAST_PROBABLE = 0.5
_FEWEST = 30  # values that say what the bulk of them is
_ONE_DEVIATION = 0.8413  # share of a normal distribution below its mean and one standard deviation


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


def low_confidence(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return with what confidence each of N values is too low to belong to the bulk of them, float32 [N].

    This is 1 - q for the expected share q of false alarms if this value and all lower ones are flagged, by the
    procedure of Benjamini and Hochberg (1995). The bulk is taken as normal, with the median of all values and the
    spread of those above it, so that low values do not widen it (an empirical null: Efron 2004). NaN has confidence 0,
    and so have fewer than 30 values.
    """
    confidence = np.zeros(len(values), dtype=np.float32)
    known = np.flatnonzero(np.isfinite(values))
    if len(known) < _FEWEST:
        return confidence
    finite = values[known].astype(np.float64)
    median = np.median(finite)
    spread = np.quantile(finite, _ONE_DEVIATION) - median
    if spread <= 0:
        return confidence
    order = np.argsort(finite, kind="stable")
    tail = torch.special.ndtr(torch.from_numpy((finite[order] - median) / spread)).numpy()  # that low, or lower
    expected = tail * len(order) / np.arange(1, len(order) + 1)
    false = np.minimum.accumulate(expected[::-1])[::-1]
    confidence[known[order]] = 1 - np.minimum(false, 1)
    return confidence
