"""Wrong labels of drawn clusters are found, and what must not matter does not."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lmk_data.errors import UserError
from lmk_train.inspection.blocks import moments
from lmk_train.inspection.discriminant import Discriminant, Spectrum
from lmk_train.inspection.labels import LabelJudgement, judge_labels
from lmk_train.inspection.outliers import judge_outliers

Features = NDArray[np.float32]
Labels = NDArray[np.int32]
FLIPPED = {3: 4, 35: 0, 52: 1}


def unit(features: NDArray[np.floating]) -> Features:
    """Return features with length 1."""
    return (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)


def clusters(sizes: list[int], dim: int = 16, seed: int = 0) -> tuple[Features, Labels]:
    """Return L2-normalised features around one centre per class, and labels."""
    generator = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
    noise = 0.3 * generator.normal(size=(len(labels), dim))
    return unit(generator.normal(size=(len(sizes), dim))[labels] + noise), labels


@pytest.fixture(scope="module")
def collection() -> tuple[Features, Labels, Labels]:
    """Features of 80 samples of five classes, their labels of which three are wrong, and the right ones."""
    features, right = clusters([30, 20, 15, 10, 5])
    labels = right.copy()
    labels[list(FLIPPED)] = list(FLIPPED.values())
    return features, labels, right


@pytest.fixture(scope="module")
def judged(collection: tuple[Features, Labels, Labels]) -> LabelJudgement:
    features, labels, _ = collection
    return judge_labels(features.astype(np.float16), labels, 5)


def test_wrong_labels_and_their_classes_are_found(
    collection: tuple[Features, Labels, Labels], judged: LabelJudgement
) -> None:
    _, _, right = collection
    wrong = list(FLIPPED)
    assert np.flatnonzero(judged.wrong_label).tolist() == wrong
    assert (judged.other_label[wrong] == right[wrong]).all()
    assert (judged.own_similarity[wrong] < judged.other_similarity[wrong]).all()
    assert ((judged.wrong_label_score >= 0) & (judged.wrong_label_score <= 1)).all()


@pytest.mark.parametrize("same", [False, True])
def test_fewer_classes_than_features_have_no_axes_of_rounding(same: bool) -> None:
    features, labels = clusters([6, 5, 4], dim=160)
    features = features[:1].repeat(15, 0) if same else features
    sums = moments(features, labels, np.ones(15, np.float32), 3, torch.device("cpu"))
    axes = Discriminant(Spectrum.of(sums), 0.3)._axes
    assert axes.shape[1] <= 3, "of 160 eigenvalues 157 would be zero, which LAPACK may not separate"
    torch.testing.assert_close(axes.T @ axes, torch.eye(axes.shape[1]), atol=1e-5, rtol=0)


def test_right_labels_are_not_flagged() -> None:
    features, labels = clusters([30, 20, 15, 10, 5])
    assert not judge_labels(features, labels, 5).wrong_label.any()


@settings(max_examples=3, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_the_order_of_classes_and_a_rotation_of_features_do_not_matter(
    collection: tuple[Features, Labels, Labels], judged: LabelJudgement, seed: int
) -> None:
    features, labels, _ = collection
    generator = np.random.default_rng(seed)
    order = generator.permutation(5).astype(np.int32)
    rotation = np.linalg.qr(generator.normal(size=(16, 16)))[0]
    again = judge_labels((features @ rotation).astype(np.float32), order[labels], 5)
    np.testing.assert_allclose(again.wrong_label_score, judged.wrong_label_score, atol=0.02)
    np.testing.assert_array_equal(again.wrong_label, judged.wrong_label)
    np.testing.assert_allclose(again.own_similarity, judged.own_similarity, atol=2e-3)
    np.testing.assert_array_equal(again.other_label[judged.wrong_label], order[judged.other_label[judged.wrong_label]])


def test_a_class_of_one_is_not_judged() -> None:
    features, labels = clusters([12, 12, 1])
    judged = judge_labels(features, labels, 4)  # the fourth class is empty
    assert np.isnan(judged.own_similarity[-1])
    assert judged.wrong_label_score[-1] == 0
    assert judged.other_label[-1] in (0, 1)
    assert not (judged.other_label == 3).any()


def test_two_classes_and_duplicates_are_judged() -> None:
    features, labels = clusters([12, 12])
    features, labels = np.repeat(features, 2, axis=0), np.repeat(labels, 2)
    labels[5] = 1
    judged = judge_labels(features, labels, 2)
    assert np.argmax(judged.wrong_label_score) == 5
    assert np.isfinite(judged.wrong_label_score).all()


@pytest.mark.parametrize("number", [0, 1, 6])
def test_one_class_alone_has_nothing_to_be_confused_with(number: int) -> None:
    features, labels = clusters([6])
    judged = judge_labels(features[:number], labels[:number], 1)
    assert (judged.other_label == -1).all()
    assert np.isnan(judged.other_similarity).all()
    assert not judged.wrong_label.any()
    assert not judge_outliers(features[:number], labels[:number], judged.other_label).outlier.any()


def test_features_that_are_not_finite_are_refused() -> None:
    features, labels = clusters([6, 6])
    features[7, 3] = np.nan
    with pytest.raises(UserError, match="row 7 is not finite"):
        judge_labels(features, labels, 2)
