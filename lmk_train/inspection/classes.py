"""Judge the classes of a dataset: cohesion, purity, classes that are several things, things that are two classes."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lmk_train.inspection.labels import LabelJudgement
from lmk_train.inspection.parts import judge_parts
from lmk_train.inspection.rows import Samples
from lmk_train.inspection.spread import Floats, class_spread
from lmk_train.inspection.twins import judge_twins


@dataclass(frozen=True)
class ClassJudgement:
    """What is known about the K classes; all [K].

    `cohesion` is the mean of the samples' similarity to their class, `purity` the share of samples that no other class
    fits better; NaN where no sample has others of its class. Scores are from 0 to 1 with the threshold at 0.5:
    `several_score` (NaN in a class that is too small) says how far the parts of a class are apart, `twin_score` how
    near the class `twin_label` is (-1 and NaN where there is no other class). The thresholds are of the distances that
    the scores are made from: of parts in units of the usual distance between classes, of twins as a share of the
    distance to the third nearest class. `parts` has the rows of each part of a class that is several things, the
    largest first.
    """

    cohesion: Floats
    purity: Floats
    clusters: NDArray[np.int32]
    several_score: Floats
    several: NDArray[np.bool_]
    twin_label: NDArray[np.int32]
    twin_similarity: Floats
    twin_duplicates: NDArray[np.int32]
    twin_score: Floats
    twin: NDArray[np.bool_]
    several_threshold: float
    twin_threshold: float
    parts: dict[int, list[NDArray[np.int64]]]


def judge_classes(
    samples: Samples,
    by_label: LabelJudgement,
    shared: pd.DataFrame,
    *,
    quiet: bool = True,
) -> ClassJudgement:
    """Judge the classes 0..K-1 of samples.

    Args:
        samples: of the classes.
        by_label: the judgement of their labels.
        shared: near duplicates that classes share, of `shared_duplicates`.
        quiet: no progress bars.
    """
    labels, num_classes = samples.labels, samples.num_classes
    spread = class_spread(samples)
    parts = judge_parts(samples, spread, by_label.other_similarity, quiet=quiet)
    twins = judge_twins(spread, shared, quiet=quiet)
    known = np.isfinite(by_label.own_similarity)
    fits = known & ~(by_label.other_similarity > by_label.own_similarity)
    similarity = np.where(known, by_label.own_similarity, 0)
    sizes = np.bincount(labels[known], minlength=num_classes)
    with np.errstate(invalid="ignore", divide="ignore"):
        cohesion = np.bincount(labels, weights=similarity, minlength=num_classes) / sizes
        purity = np.bincount(labels[fits], minlength=num_classes) / sizes
        several_score = parts.separation / (parts.separation + parts.threshold)
        twin_score = twins.threshold / (twins.threshold + twins.distance)
    return ClassJudgement(
        cohesion=cohesion.astype(np.float32),
        purity=purity.astype(np.float32),
        clusters=parts.clusters,
        several_score=several_score,
        several=parts.several,
        twin_label=twins.label,
        twin_similarity=twins.similarity,
        twin_duplicates=twins.duplicates,
        twin_score=twin_score.astype(np.float32),
        twin=twins.twin,
        several_threshold=parts.bulk,
        twin_threshold=twins.threshold,
        parts=parts.parts,
    )
