"""Which samples belong to no class: far from their own and from every other, such as floor plans, portraits and maps.

A sample is compared with its nearest neighbours in its class and in the class that explains it best among the others.
A picture of something else has no close neighbour in either. How close is close is learnt from all samples.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from lmk_train.inspection.blocks import Features
from lmk_train.inspection.neighbours import neighbour_similarity
from lmk_train.inspection.thresholds import FALSE_ALARMS, flag_low

_NEIGHBOURS = 3


@dataclass(frozen=True, slots=True)
class OutlierJudgement:
    """`outlier_score` [N], from 0 to 1, the most suspicious highest, and `outlier` [N], whether a sample is flagged."""

    outlier_score: NDArray[np.float32]
    outlier: NDArray[np.bool_]


def judge_outliers(
    features: Features,
    labels: NDArray[np.int32],
    other_label: NDArray[np.int32],
    *,
    false_alarms: float = FALSE_ALARMS,
    device: torch.device | None = None,
) -> OutlierJudgement:
    """Judge whether samples fit any class at all.

    The score is (1 - s) / 2 for the mean cosine s to the nearest neighbours in the closer of both classes, and 0 where
    neither has another sample.

    Args:
        features: float16 or float32 [N, D].
        labels: int32 [N].
        other_label: the class that explains each sample best among the others, or -1, int32 [N]: of `judge_labels`.
        false_alarms: expected share of fitting samples among those that are flagged.
        device: on which similarities are computed; the CPU by default.
    """
    asked = np.stack([labels, other_label], axis=1)
    similarity = neighbour_similarity(features, labels, asked, _NEIGHBOURS, device or torch.device("cpu"))
    closest = np.fmax(similarity[:, 0], similarity[:, 1])
    score = np.nan_to_num((1 - closest) / 2, nan=0.0).clip(0, 1).astype(np.float32)
    # a cosine has its limit at 1; its Fisher transform has none
    return OutlierJudgement(score, flag_low(np.arctanh(closest.clip(-0.9999, 0.9999)), false_alarms))
