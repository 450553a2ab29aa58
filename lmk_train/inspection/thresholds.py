"""Thresholds that are set from the data, with a stated expected share of false alarms."""

import numpy as np
import torch
from numpy.typing import NDArray

FALSE_ALARMS = 0.1  # expected share of false alarms among the samples that are flagged
_LEAST_PROBABLE = 0.5
_FEWEST = 30  # values that say what the bulk of them is
_ONE_DEVIATION = 0.8413  # share of a normal distribution below its mean and one standard deviation
_TO_QUARTILE = 0.6745  # standard deviations from the mean of a normal distribution to its quartiles
_BULK_OF_FLAGGED = 10  # an expected share of false alarms of 0.1 goes with one of 0.01 of the bulk
_TIES = 0.01  # lower values come first where the share among the flagged is the same


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

    Flagging this value and all lower ones, with confidence 1 - q, is expected to flag at most a share q of false alarms
    among those that are flagged (Benjamini and Hochberg 1995), and at most a share q / 10 of the bulk. Below 0.5 only
    the order means something.

    The bulk is taken as normal, with the median of all values (an empirical null: Efron 2004). Its spread is that of
    the values above the median, which low ones do not widen, or that of the lower quartile, which shows how skewed the
    bulk is: the wider of both for the share of the bulk, their geometric mean for the share of false alarms. NaN has
    confidence 0, and so have fewer than 30 values.
    """
    confidence = np.zeros(len(values), dtype=np.float32)
    known = np.flatnonzero(np.isfinite(values))
    if len(known) < _FEWEST:
        return confidence
    finite = values[known].astype(np.float64)
    median = np.median(finite)
    above = np.quantile(finite, _ONE_DEVIATION) - median
    if above <= 0:
        return confidence
    widest = max(above, (median - np.quantile(finite, 0.25)) / _TO_QUARTILE)
    order = np.argsort(finite, kind="stable")
    low = finite[order] - median
    expected = _tail(low / np.sqrt(above * widest)) * len(order) / np.arange(1, len(order) + 1)
    among_flagged = np.minimum.accumulate(expected[::-1])[::-1]
    of_bulk = _tail(low / widest)
    false = np.maximum(among_flagged, _BULK_OF_FLAGGED * of_bulk) + _TIES * of_bulk
    confidence[known[order]] = np.where(false < 0.5, 1 - false, 0.25 / np.maximum(false, 0.5))
    return confidence


def _tail(deviations: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the share of a normal distribution that is that low, or lower."""
    share: NDArray[np.float64] = torch.special.ndtr(torch.from_numpy(deviations)).numpy()
    return share
