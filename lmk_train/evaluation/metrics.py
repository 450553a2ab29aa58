"""All metrics, from the predictions for N samples and the counts of K classes; NumPy only, O(K + N) memory."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmk_data.dataset.format import FEW_BELOW, MANY_ABOVE
from lmk_train.evaluation.predictions import Predictions

_CALIBRATION_BINS = 15
LOWER_IS_BETTER = frozenset({"loss", "calibration_error"})


@dataclass(frozen=True)
class ClassCounts:
    """Counts of each class, int64 [K]: `support` of its samples, `predicted` as it, and `correct`."""

    support: NDArray[np.int64]
    predicted: NDArray[np.int64]
    correct: NDArray[np.int64]

    @classmethod
    def of(cls, targets: NDArray[np.int64], predicted: NDArray[np.int64], num_classes: int) -> "ClassCounts":
        """Count targets and predictions, both int64 [N]."""
        return cls(
            *(
                np.bincount(labels, minlength=num_classes)
                for labels in (targets, predicted, targets[targets == predicted])
            )
        )

    def precision(self) -> NDArray[np.float64]:
        """Return the precision of each class, float64 [K]; 0 for a class that was never predicted."""
        return _ratio(self.correct, self.predicted)

    def recall(self) -> NDArray[np.float64]:
        """Return the recall of each class, float64 [K]; 0 for a class without samples."""
        return _ratio(self.correct, self.support)

    def f1(self) -> NDArray[np.float64]:
        """Return the F1 of each class, float64 [K]; 0 where it is undefined."""
        return _ratio(2 * self.correct, self.support + self.predicted)


def is_defined(name: str, train_counts: NDArray[np.int64], support: NDArray[np.int64]) -> bool:
    """Return whether a split has a class that a metric is about.

    Args:
        name: of the metric.
        train_counts: training images of each class, int64 [K].
        support: samples of each class in the split, int64 [K].
    """
    about = _bands(train_counts).get(name, np.ones(len(train_counts), dtype=bool))
    return bool((about & (support > 0)).any())


def spelled(name: str) -> str:
    """Return the name of a metric or an option in words: `macro_f1` is macro F1."""
    return name.replace("_f1", "_F1").replace("_", " ")


def summarize(predictions: Predictions, train_counts: NDArray[np.int64]) -> dict[str, float | int | None]:
    """Return every metric of an evaluation by name; a metric without any sample or class is None.

    - `loss`: the plain cross entropy, whatever loss the training used.
    - `macro_*`: means over the classes with support. `macro_f1_all`: over all K classes; an undefined F1 counts as 0.
    - `weighted_*`: means over the samples of the figure of their class (weighted recall equals the accuracy).
    - `many_`, `medium_`, `few_accuracy`: mean recall of the classes with support and more than 100, 20 to 100, fewer
      than 20 training images.
    - `gap`: see `global_average_precision`. `calibration_error`: see there.

    Args:
        predictions: whose targets are all known.
        train_counts: training images of each class, int64 [K].
    """
    best = predictions.labels[:, 0]
    counts = ClassCounts.of(predictions.targets, best, len(train_counts))
    correct = best == predictions.targets
    seen = counts.support > 0
    precision, recall, f1 = counts.precision(), counts.recall(), counts.f1()
    confidence = predictions.probabilities[:, 0].astype(np.float64)
    return {
        "num_samples": len(best),
        "loss": _mean(predictions.losses.astype(np.float64)),
        "accuracy": _mean(correct),
        "top5_accuracy": _mean((predictions.labels == predictions.targets[:, None]).any(axis=1)),
        "macro_precision": _mean(precision[seen]),
        "macro_recall": _mean(recall[seen]),
        "macro_f1": _mean(f1[seen]),
        "macro_f1_all": _mean(f1),
        "weighted_precision": _mean(precision[predictions.targets]),
        "weighted_recall": _mean(recall[predictions.targets]),
        "weighted_f1": _mean(f1[predictions.targets]),
        **band_accuracies(recall, seen, train_counts),
        "gap": global_average_precision(correct, confidence, predictions.keys),
        "calibration_error": calibration_error(correct, confidence),
    }


def summarize_calibrated(predictions: Predictions) -> dict[str, float | None]:
    """Return the metrics of the probabilities at the run's temperature, for predictions that have these.

    `calibrated_error` is the calibration error, `calibrated_gap` the global average precision.
    """
    assert predictions.calibrated is not None, "predicted with a temperature"
    correct = predictions.labels[:, 0] == predictions.targets
    confidence = predictions.calibrated.astype(np.float64)
    return {
        "calibrated_error": calibration_error(correct, confidence),
        "calibrated_gap": global_average_precision(correct, confidence, predictions.keys),
    }


def band_accuracies(
    recall: NDArray[np.float64], seen: NDArray[np.bool_], train_counts: NDArray[np.int64]
) -> dict[str, float | None]:
    """Return the mean recall of large, medium and small classes with support; None where there are none.

    Args:
        recall: of each class, float64 [K].
        seen: classes with support, bool [K].
        train_counts: training images of each class, int64 [K].
    """
    return {name: _mean(recall[seen & band]) for name, band in _bands(train_counts).items()}


def global_average_precision(
    correct: NDArray[np.bool_],
    confidence: NDArray[np.float64],
    keys: NDArray[np.object_],
    num_landmarks: int | None = None,
) -> float | None:
    """Return GAP, the micro-averaged precision of the landmark recognition challenge; None without samples.

    GAP = (1/M) sum over i of P(i) rel(i), where predictions are ranked by descending confidence (ties by key), P(i) is
    the precision of the first i and rel(i) is 1 if the i-th is correct. M is the number of pictures that show a
    landmark. Weyand et al., "Google Landmarks Dataset v2", CVPR 2020.

    Args:
        correct: whether the best label is the target, bool [N].
        confidence: probability of the best label, float64 [N].
        keys: of the samples, str [N].
        num_landmarks: M; all N by default. Without an answer for each picture M is larger, and with pictures of
            nothing among the samples smaller.
    """
    if not len(correct):
        return None
    order = np.lexsort((keys.astype(str), -confidence))
    hits = correct[order]
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    return float((precision * hits).sum() / (len(hits) if num_landmarks is None else num_landmarks))


def calibration_error(correct: NDArray[np.bool_], confidence: NDArray[np.float64]) -> float | None:
    """Return the expected calibration error over 15 equal bins of top-1 probability; None without samples.

    `correct` bool [N], `confidence` float64 [N]. Guo et al., "On calibration of modern neural networks", ICML 2017.
    """
    if not len(correct):
        return None
    bins = np.minimum((confidence * _CALIBRATION_BINS).astype(np.int64), _CALIBRATION_BINS - 1)
    hits = np.bincount(bins, weights=correct, minlength=_CALIBRATION_BINS)
    confidences = np.bincount(bins, weights=confidence, minlength=_CALIBRATION_BINS)
    return float(np.abs(hits - confidences).sum() / len(correct))


def confusion(
    predictions: Predictions, num_classes: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return the confusion matrix without its zeros: targets, predicted labels and counts, each int64 [M], sorted."""
    pairs, counts = np.unique(predictions.targets * num_classes + predictions.labels[:, 0], return_counts=True)
    return pairs // num_classes, pairs % num_classes, counts.astype(np.int64)


def _bands(train_counts: NDArray[np.int64]) -> dict[str, NDArray[np.bool_]]:
    """Return the classes that the accuracy of each band is about, bool [K] by the name of the metric."""
    many, few = train_counts > MANY_ABOVE, train_counts < FEW_BELOW
    return {"many_accuracy": many, "medium_accuracy": ~many & ~few, "few_accuracy": few}


def _ratio(numerator: NDArray[np.int64], denominator: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.divide(numerator, denominator, out=np.zeros(len(numerator)), where=denominator > 0)


def _mean(values: NDArray[Any]) -> float | None:
    return float(values.mean()) if len(values) else None
