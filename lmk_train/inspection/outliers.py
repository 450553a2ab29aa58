"""Which samples belong to no class: far from their own and from every other."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lmk_train.inspection.class_means import fit_to_classes


@dataclass(frozen=True, slots=True)
class OutlierJudgement:
    """`outlier_score` [N], from 0 to 1, the most suspicious highest, and `outlier` [N], whether a sample is flagged."""

    outlier_score: NDArray[np.float32]
    outlier: NDArray[np.bool_]


def judge_outliers(features: NDArray[np.float16], labels: NDArray[np.int32], num_classes: int) -> OutlierJudgement:
    """Judge whether samples, features [N, D] and labels [N], fit any class at all.

    Raises:
        UserError: a feature is not finite.
    """
    fit = fit_to_classes(features, labels, num_classes)
    best = np.fmax(fit.own, fit.other)
    score = np.nan_to_num((1 - best) / 2, nan=0.0).astype(np.float32)
    median = np.median(score) if len(score) else 0.0
    spread = 1.4826 * np.median(np.abs(score - median)) if len(score) else 0.0
    return OutlierJudgement(score, score > median + 4 * spread)
