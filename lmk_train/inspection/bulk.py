"""Thresholds from the bulk of the classes, which are in order: with a stated expected share of false alarms."""

import math
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

FALSE_ALARMS = 0.01  # expected share of the classes in order that are above a threshold


def bulk_threshold(values: NDArray[np.floating], *, upper: bool) -> float:
    """Return the value that a share `FALSE_ALARMS` of ordinary classes exceeds (`upper`) or falls below.

    Values are positive and, of ordinary classes, about log-normal. Most classes are ordinary; the others are all on one
    side, so that centre and width come from the median and from the half on the other side of it. Efron, "Large-scale
    simultaneous hypothesis testing: the choice of a null hypothesis", JASA 2004. The threshold is farther out where few
    classes are there to tell the width from.

    Args:
        values: of the classes, [K]; NaN where unknown; zeros do not count.
        upper: whether suspicious values are the large ones.
    """
    logs = np.log(values[values > 0].astype(np.float64))
    if not len(logs):
        return math.inf if upper else 0.0
    median = float(np.median(logs))
    half = logs[logs <= median] if upper else logs[logs >= median]
    width = 1.4826 * float(np.median(np.abs(half - median)))  # the standard deviation, if it is a normal one
    quantile = NormalDist().inv_cdf(1 - FALSE_ALARMS)
    quantile *= 1 + (quantile**2 + 1) / (4 * max(1, len(half) - 1))  # of Student's t, by its first correction
    return math.exp(median + quantile * width * (1 if upper else -1))
