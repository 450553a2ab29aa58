import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmk_train.evaluation.metrics import (
    calibration_error,
    confusion,
    global_average_precision,
    is_defined,
    summarize,
)
from lmk_train.evaluation.predictions import Predictions

sklearn_metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")


def random_predictions(num_samples: int, num_classes: int, seed: int) -> Predictions:
    random = np.random.default_rng(seed)
    logits = random.normal(0, 2, (num_samples, num_classes))
    targets = random.integers(0, max(1, num_classes - 2), num_samples)
    logits[np.arange(num_samples), targets] += 1.5
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = np.argsort(-shares, axis=1)[:, :5]
    keys = np.array([f"k{i}" for i in range(num_samples)], dtype=object)
    best = np.take_along_axis(shares, labels, axis=1).astype(np.float32)
    losses = -np.log(np.take_along_axis(shares, targets[:, None], axis=1))[:, 0].astype(np.float32)
    return Predictions(keys, targets, labels, best, losses)


@settings(max_examples=60, deadline=None)
@given(num_samples=st.integers(1, 200), num_classes=st.integers(1, 30), seed=st.integers(0, 1000))
def test_metrics_are_scikit_learns(num_samples: int, num_classes: int, seed: int) -> None:
    predictions = random_predictions(num_samples, num_classes, seed)
    targets, best = predictions.targets, predictions.labels[:, 0]
    found = summarize(predictions, np.full(num_classes, 50))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        seen = np.unique(targets)
        options = {"average": "macro", "zero_division": 0.0}
        expected = {
            "accuracy": sklearn_metrics.accuracy_score(targets, best),
            "macro_precision": sklearn_metrics.precision_score(targets, best, labels=seen, **options),
            "macro_recall": sklearn_metrics.recall_score(targets, best, labels=seen, **options),
            "macro_f1": sklearn_metrics.f1_score(targets, best, labels=seen, **options),
            "macro_f1_all": sklearn_metrics.f1_score(targets, best, labels=range(num_classes), **options),
            "weighted_precision": sklearn_metrics.precision_score(targets, best, average="weighted", zero_division=0.0),
            "weighted_recall": sklearn_metrics.recall_score(targets, best, average="weighted", zero_division=0.0),
            "weighted_f1": sklearn_metrics.f1_score(targets, best, average="weighted", zero_division=0.0),
            "medium_accuracy": sklearn_metrics.recall_score(targets, best, labels=seen, **options),
            "top5_accuracy": np.mean([t in row for t, row in zip(targets, predictions.labels, strict=True)]),
        }
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert found["many_accuracy"] is None
    assert found["few_accuracy"] is None
    matrix = np.zeros((num_classes, num_classes), dtype=np.int64)
    rows, columns, counts = confusion(predictions, num_classes)
    matrix[rows, columns] = counts
    if num_classes > 1:  # scikit-learn warns of a single class
        assert (matrix == sklearn_metrics.confusion_matrix(targets, best, labels=range(num_classes))).all()


def test_bands_are_by_training_images() -> None:
    keys = np.array(list("abcdef"), dtype=object)
    labels = np.array([[0], [0], [1], [2], [3], [0]])
    predictions = Predictions(
        keys, np.array([0, 0, 1, 1, 2, 3]), labels, np.full((6, 1), 0.5, np.float32), np.ones(6, np.float32)
    )
    found = summarize(predictions, np.array([101, 100, 20, 19]))
    assert (found["many_accuracy"], found["medium_accuracy"], found["few_accuracy"]) == (1.0, 0.25, 0.0)


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.sampled_from([5, 19, 20, 50, 100, 101, 400]), min_size=6, max_size=6), seed=st.integers(0, 99)
)
def test_a_metric_is_said_to_be_defined_where_an_evaluation_has_it(counts: list[int], seed: int) -> None:
    predictions, train_counts = random_predictions(4, len(counts), seed), np.array(counts)
    support = np.bincount(predictions.targets, minlength=len(counts))
    for name, value in summarize(predictions, train_counts).items():
        assert is_defined(name, train_counts, support) == (value is not None)


def test_gap_and_calibration_by_hand() -> None:
    correct, confidence = np.array([True, False, True, True]), np.array([0.9, 0.8, 0.7, 0.8])
    keys = np.array(["a", "b", "c", "d"], dtype=object)
    assert global_average_precision(correct, confidence, keys) == pytest.approx((1 + 2 / 3 + 3 / 4) / 4)
    swapped = np.array(["a", "d", "c", "b"], dtype=object)
    assert global_average_precision(correct, confidence, swapped) == pytest.approx((1 + 1 + 3 / 4) / 4)
    expected = (abs(1 - 0.9) + abs(1 - 1.6) + abs(1 - 0.7)) / 4
    assert calibration_error(correct, confidence) == pytest.approx(expected)
    assert calibration_error(np.array([True]), np.array([1.0])) == 0.0
