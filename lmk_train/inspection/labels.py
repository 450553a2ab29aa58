"""Which labels may be wrong: samples that fit another class better than the rest of their own."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lmk_train.inspection.class_means import fit_to_classes


@dataclass(frozen=True, slots=True)
class LabelJudgement:
    """What is known about the labels of N samples; all [N].

    Similarities are cosines: `own_similarity` to the mean of the sample's class without the sample itself (NaN in a
    class of one), `other_similarity` to the class `other_label`, which fits best among the others (NaN and -1 where
    there is none). `wrong_label_score` estimates the probability that the label is wrong; `wrong_label` says which
    samples are flagged.
    """

    own_similarity: NDArray[np.float32]
    other_label: NDArray[np.int32]
    other_similarity: NDArray[np.float32]
    wrong_label_score: NDArray[np.float32]
    wrong_label: NDArray[np.bool_]


def judge_labels(features: NDArray[np.float16], labels: NDArray[np.int32], num_classes: int) -> LabelJudgement:
    """Judge the labels [N], in 0..num_classes-1, of samples by their features [N, D], L2-normalised.

    Raises:
        UserError: a feature is not finite.
    """
    fit = fit_to_classes(features, labels, num_classes)
    margin = np.nan_to_num(fit.other - fit.own, nan=-1.0)
    score = (1 / (1 + np.exp(-20 * margin))).astype(np.float32)
    return LabelJudgement(fit.own, fit.other_label, fit.other, score, score > 0.5)
