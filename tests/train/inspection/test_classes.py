"""Classes that are several things, and things that are two classes, in drawn features."""

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from lmk_train.inspection.bulk import FALSE_ALARMS, bulk_threshold
from lmk_train.inspection.classes import ClassJudgement, judge_classes
from lmk_train.inspection.labels import judge_labels
from lmk_train.inspection.rows import Samples, SplitFeatures
from lmk_train.inspection.spread import class_spread
from lmk_train.inspection.twins import judge_twins, shared_duplicates

DIMENSIONS = 64
NOTHING = pd.DataFrame({"group": [], "label": []}).astype(np.int64)


def drawn(sizes: list[int], *, merged: int = 0, halved: int = 0, seed: int = 0) -> Samples:
    """Return samples of classes of these sizes: the last `merged` are added to the first, the next `halved` are two."""
    generator = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(sizes)), sizes).astype(np.int32)
    means = generator.normal(size=(len(sizes), DIMENSIONS))
    views = generator.normal(size=(len(sizes), DIMENSIONS)) * 0.35  # a landmark is seen from sides
    sides = generator.uniform(-1, 1, size=(len(labels), 1))
    features = means[labels] + views[labels] * sides + generator.normal(size=(len(labels), DIMENSIONS)) * 0.5
    for label in range(merged):
        labels[labels == len(sizes) - merged + label] = label
    for number in range(halved):
        rows = np.flatnonzero(labels == merged + number)
        labels[rows[::2]] = len(sizes) - merged + number
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    return Samples(features.astype(np.float16), labels, len(sizes) - merged + halved)


def judge(samples: Samples, duplicates: pd.DataFrame = NOTHING) -> ClassJudgement:
    features: NDArray[np.float16] = np.asarray(samples.features)
    by_label = judge_labels(features, samples.labels, samples.num_classes)
    return judge_classes(samples, by_label, shared_duplicates(duplicates))


def test_merged_classes_and_halved_classes_are_found() -> None:
    sizes = [40, 20, 12, 30, 16, *range(6, 36), 25, 20, 12]
    samples = drawn(sizes, merged=3, halved=2)
    judged = judge(samples)
    assert judged.several.nonzero()[0].tolist() == [0, 1, 2]
    assert judged.clusters[:4].tolist() == [2, 2, 2, 1]
    for label, parts in judged.parts.items():
        assert {len(part) for part in parts} == {sizes[label], sizes[len(sizes) - 3 + label]}
    assert judged.twin.nonzero()[0].tolist() == [3, 4, len(sizes) - 3, len(sizes) - 2]
    assert judged.twin_label[[3, 4]].tolist() == [len(sizes) - 3, len(sizes) - 2]
    scores = np.nan_to_num(judged.several_score)
    assert np.array_equal(judged.several, scores > 0.5)
    again = judge(samples)
    assert np.array_equal(judged.several_score, again.several_score, equal_nan=True)
    assert np.array_equal(judged.twin_score, again.twin_score)


def test_few_classes_in_order_are_flagged() -> None:
    judged = judge(drawn([int(size) for size in np.random.default_rng(1).integers(2, 40, size=300)]))
    assert judged.several.mean() <= 3 * FALSE_ALARMS
    assert judged.twin.mean() <= 3 * FALSE_ALARMS
    assert judged.purity.min() > 0.9
    assert judged.cohesion.min() > 0.3


@pytest.mark.parametrize("sizes", [[3], [4, 0, 1], [1, 1, 1], [2, 6]])
def test_what_is_too_small_is_in_order(sizes: list[int]) -> None:
    judged = judge(drawn(sizes))
    assert not judged.several.any()
    assert not judged.twin.any()
    assert judged.clusters.tolist() == [1] * len(sizes)


def test_shared_near_duplicates_make_twins_of_classes_that_are_near() -> None:
    spread = class_spread(drawn([20] * 12))
    alone = judge_twins(spread, shared_duplicates(NOTHING))
    assert not alone.twin.any()
    near = int(np.argmin(alone.distance))
    other = int(alone.label[near])
    groups = pd.DataFrame({"group": [0, 0, 1, 1, 2, 2], "label": [near, other, near, other, near, near]})
    judged = judge_twins(spread, shared_duplicates(groups))
    assert judged.twin[near]
    assert judged.duplicates[near] == 2
    assert judged.label[other] == near
    shared = shared_duplicates(groups)
    assert shared[["label", "other", "groups", "samples"]].to_numpy().tolist() in (
        [[near, other, 2, 2], [other, near, 2, 2]],
        [[other, near, 2, 2], [near, other, 2, 2]],
    )


def test_the_threshold_has_the_share_of_false_alarms_that_it_states() -> None:
    generator = np.random.default_rng(0)
    ordinary = generator.lognormal(-1, 0.3, 20_000)
    threshold = bulk_threshold(np.concatenate([ordinary, generator.lognormal(2, 0.3, 2_000)]))
    assert FALSE_ALARMS / 4 < (ordinary > threshold).mean() < 1.5 * FALSE_ALARMS
    assert bulk_threshold(np.full(3, np.nan)) == np.inf


def test_features_of_splits_are_read_as_one_array() -> None:
    whole = np.arange(60, dtype=np.float16).reshape(12, 5)
    parts = SplitFeatures([whole[:7], whole[7:8], whole[8:]])
    assert parts.shape == (12, 5)
    for rows in (slice(None), slice(3, 9), slice(7, 8), slice(11, 40), slice(0, 12, 3), np.array([11, 0, 7, 7, 8])):
        assert np.array_equal(parts[rows], whole[rows])
