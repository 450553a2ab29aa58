"""The threshold from the bulk of the classes, which are in order: with a stated expected share of false alarms."""

import math
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

FALSE_ALARMS = 0.01  # expected share of the classes in order that are flagged


def bulk_threshold(values: NDArray[np.floating]) -> float:
    """Return the value that a share `FALSE_ALARMS` of ordinary classes exceeds; infinity if there are no values.

    Values of ordinary classes are about log-normal. Most classes are ordinary and the others are above them, so that
    centre and width come from the median and from the half below it. Efron, "Large-scale simultaneous hypothesis
    testing: the choice of a null hypothesis", JASA 2004. The threshold is farther out where few classes are there to
    tell the width from.

    Args:
        values: of the classes, [K]; NaN where unknown. What is not positive does not count.
    """
    logs = np.log(values[values > 0].astype(np.float64))
    if not len(logs):
        return math.inf
    median = float(np.median(logs))
    half = logs[logs <= median]
    width = 1.4826 * float(np.median(median - half))  # the standard deviation, if it is a normal one
    quantile = NormalDist().inv_cdf(1 - FALSE_ALARMS)
    quantile *= 1 + (quantile**2 + 1) / (4 * max(1, len(half) - 1))  # of Student's t, by its first correction
    return math.exp(median + quantile * width)
