"""Pictures that belong to no class are found among drawn clusters, and what must not matter does not."""

import numpy as np
import pytest
from numpy.typing import NDArray

from lmk_data.errors import UserError
from lmk_train.inspection.labels import judge_labels
from lmk_train.inspection.outliers import OutlierJudgement, judge_outliers

from .test_labels import clusters, unit

sklearn_metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
Features = NDArray[np.float32]
Labels = NDArray[np.int32]
SIZES = [120, 80, 60, 40, 30, 20, 12, 8, 6, 4]
STRANGERS = 20


def judge(features: Features, labels: Labels) -> OutlierJudgement:
    return judge_outliers(features, labels, judge_labels(features, labels, int(labels.max()) + 1).other_label)


@pytest.fixture(scope="module")
def collection() -> tuple[Features, Labels]:
    """Features of ten classes, and last those of 20 pictures that are all alike, under labels of the others."""
    features, labels = clusters(SIZES, dim=32, seed=1)
    generator = np.random.default_rng(2)
    common = generator.normal(size=32) + 0.1 * generator.normal(size=(STRANGERS, 32))
    return np.concatenate([features, unit(common)]), np.append(labels, generator.choice(labels, STRANGERS))


@pytest.fixture(scope="module")
def judged(collection: tuple[Features, Labels]) -> OutlierJudgement:
    return judge(*collection)


def test_strangers_are_found_although_they_resemble_each_other(judged: OutlierJudgement) -> None:
    strange = np.arange(len(judged.outlier)) >= sum(SIZES)
    assert sklearn_metrics.average_precision_score(strange, judged.outlier_score) > 0.9
    assert judged.outlier[strange].mean() > 0.5
    assert judged.outlier[~strange].mean() <= 0.01
    assert ((judged.outlier_score >= 0) & (judged.outlier_score <= 1)).all()


def test_the_order_of_samples_and_a_rotation_of_features_do_not_matter(
    collection: tuple[Features, Labels], judged: OutlierJudgement
) -> None:
    features, labels = collection
    generator = np.random.default_rng(3)
    order = generator.permutation(len(labels))
    rotation = np.linalg.qr(generator.normal(size=(32, 32)))[0]
    again = judge((features @ rotation).astype(np.float32)[order], labels[order])
    np.testing.assert_allclose(again.outlier_score, judged.outlier_score[order], atol=0.02)


def test_neither_fitting_samples_nor_wrong_labels_are_outliers() -> None:
    features, labels = clusters(SIZES, dim=32, seed=1)
    assert judge(features, labels).outlier.mean() <= 0.01
    wrong = np.arange(0, len(labels), 20)
    labels[wrong] = (labels[wrong] + 1) % len(SIZES)
    assert not judge(features, labels).outlier[wrong].any()


def test_a_class_of_one_is_not_judged() -> None:
    features, labels = clusters([30, 30, 1])
    assert judge(features, labels).outlier_score[-1] == 0


def test_classes_that_do_not_differ_have_no_outliers() -> None:
    features, labels = clusters([200])
    labels = np.random.default_rng(0).integers(0, 4, 200).astype(np.int32)
    assert not judge(features, labels).outlier_score.any()


@pytest.mark.parametrize("sizes", [[1, 1], [2, 1], [3]])
def test_few_samples_are_not_judged(sizes: list[int]) -> None:
    features, labels = clusters(sizes)
    assert not judge(features, labels).outlier_score.any()


def test_features_that_are_not_finite_are_refused() -> None:
    features, labels = clusters([6, 6])
    features[7, 3] = np.nan
    with pytest.raises(UserError, match="row 7 is not finite"):
        judge_outliers(features, labels, 1 - labels)
