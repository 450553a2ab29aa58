"""Wrong labels of drawn clusters are found."""

import numpy as np

from lmk_train.inspection.labels import judge_labels
from lmk_train.inspection.outliers import judge_outliers


def test_a_flipped_label_and_its_class_are_found() -> None:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(5, 32))
    labels = np.repeat(np.arange(5, dtype=np.int32), 20)
    features = centres[labels] + 0.3 * rng.normal(size=(100, 32))
    features = (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float16)
    labels[[3, 50]] = 4, 0
    judged = judge_labels(features, labels, 5)
    assert set(np.argsort(-judged.wrong_label_score)[:2]) == {3, 50}
    assert judged.other_label[[3, 50]].tolist() == [0, 2]
    assert np.flatnonzero(judged.wrong_label).tolist() == [3, 50]


def test_a_sample_far_from_every_class_is_an_outlier() -> None:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(5, 32))
    labels = np.repeat(np.arange(5, dtype=np.int32), 20)
    features = centres[labels] + 0.3 * rng.normal(size=(100, 32))
    features[7] = -centres.sum(0)
    features = (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float16)
    judged = judge_outliers(features, labels, judge_labels(features, labels, 5).other_label)
    assert np.argmax(judged.outlier_score) == 7
    assert judged.outlier[7]
