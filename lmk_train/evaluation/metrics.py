"""Counts of each class to every metric; numpy only, O(K + N) memory."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from lmk_data.dataset.format import FEW_BELOW, MANY_ABOVE

TOP_K = 5
_CALIBRATION_BINS = 15
LOWER_IS_BETTER = frozenset({"loss", "calibration_error"})
Ints = np.ndarray[Any, np.dtype[np.int64]]
Floats = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Predictions:
    """What a model said of N samples: targets int64 [N], its best labels int64 [N, k] and their probabilities
    float32 [N, k] in descending order, minus the logarithm of the target's probability float32 [N] (NaN where the
    target is unknown), the samples' keys [N] (which break ties), and the best labels under T adjustments of the
    logits, int64 [N, T]."""

    keys: "np.ndarray[tuple[int], np.dtype[np.object_]]"
    targets: Ints
    labels: Ints
    probabilities: "np.ndarray[Any, np.dtype[np.float32]]"
    losses: "np.ndarray[Any, np.dtype[np.float32]]"
    adjusted: Ints | None = None

    @property
    def is_finite(self) -> bool:
        """Whether all probabilities, and the losses of known targets, are numbers."""
        losses = self.losses[self.targets >= 0]
        return bool(np.isfinite(self.probabilities).all() and np.isfinite(losses).all())

    def rows(self, chosen: "np.ndarray[Any, np.dtype[np.bool_]]") -> "Predictions":
        """The chosen samples, bool [N]."""
        return Predictions(
            self.keys[chosen],
            self.targets[chosen],
            self.labels[chosen],
            self.probabilities[chosen],
            self.losses[chosen],
            None if self.adjusted is None else self.adjusted[chosen],
        )


@dataclass(frozen=True)
class ClassCounts:
    """Counts of each class, int64 [K]: samples, predictions, correct predictions."""

    support: Ints
    predicted: Ints
    correct: Ints

    @classmethod
    def of(cls, targets: Ints, predicted: Ints, num_classes: int) -> "ClassCounts":
        """Count targets and predictions, both int64 [N]."""
        return cls(
            *(
                np.bincount(labels, minlength=num_classes)
                for labels in (targets, predicted, targets[targets == predicted])
            )
        )

    def precision(self) -> Floats:
        """Of each class [K]; 0 where nothing was predicted."""
        return _ratio(self.correct, self.predicted)

    def recall(self) -> Floats:
        """Of each class [K]; 0 where there is no sample."""
        return _ratio(self.correct, self.support)

    def f1(self) -> Floats:
        """Of each class [K]; 0 where it is undefined."""
        return _ratio(2 * self.correct, self.support + self.predicted)


def is_defined(name: str, train_counts: Ints, support: Ints) -> bool:
    """Whether a metric is about any class that a split has: training images and samples of each class, int64 [K]."""
    counts = train_counts[support > 0]
    about = {
        "many_accuracy": counts > MANY_ABOVE,
        "medium_accuracy": (counts >= FEW_BELOW) & (counts <= MANY_ABOVE),
        "few_accuracy": counts < FEW_BELOW,
    }
    return bool(about[name].any()) if name in about else len(counts) > 0


def spelled(name: str) -> str:
    """The name of a metric or an option as a person reads it: macro_f1 is macro F1."""
    return name.replace("_f1", "_F1").replace("_", " ")


def summarize(predictions: Predictions, train_counts: Ints) -> dict[str, float | int | None]:
    """Every metric of an evaluation; `train_counts` int64 [K] are the training images of each class.

    Macro averages are over the classes with support, `macro_f1_all` over all K (an undefined F1 counts 0), weighted
    ones over the samples, each with the figure of its class (weighted recall is then the accuracy). Many,
    medium and few (over 100, 20 to 100, under 20 training images) are mean recalls of the classes with support,
    None where there are none. `loss` is the plain cross entropy, whichever loss was trained with.
    """
    best = predictions.labels[:, 0]
    counts = ClassCounts.of(predictions.targets, best, len(train_counts))
    correct = best == predictions.targets
    seen = counts.support > 0
    f1 = counts.f1()
    many, few = train_counts > MANY_ABOVE, train_counts < FEW_BELOW
    confidence = predictions.probabilities[:, 0].astype(np.float64)
    return {
        "num_samples": len(best),
        "loss": _mean(predictions.losses.astype(np.float64)),
        "accuracy": _mean(correct),
        "top5_accuracy": _mean((predictions.labels == predictions.targets[:, None]).any(axis=1)),
        "macro_precision": _mean(counts.precision()[seen]),
        "macro_recall": _mean(counts.recall()[seen]),
        "macro_f1": _mean(f1[seen]),
        "macro_f1_all": _mean(f1),
        "weighted_precision": _mean(counts.precision()[predictions.targets]),
        "weighted_recall": _mean(counts.recall()[predictions.targets]),
        "weighted_f1": _mean(f1[predictions.targets]),
        "many_accuracy": _mean(counts.recall()[seen & many]),
        "medium_accuracy": _mean(counts.recall()[seen & ~many & ~few]),
        "few_accuracy": _mean(counts.recall()[seen & few]),
        "gap": global_average_precision(correct, confidence, predictions.keys),
        "calibration_error": calibration_error(correct, confidence),
    }


def global_average_precision(
    correct: "np.ndarray[Any, np.dtype[np.bool_]]",
    confidence: Floats,
    keys: "np.ndarray[tuple[int], np.dtype[np.object_]]",
) -> float | None:
    """GAP = (1/N) sum of P(i) rel(i) over predictions by descending confidence, ties by key; None for no sample."""
    if not len(correct):
        return None
    order = np.lexsort((keys.astype(str), -confidence))
    hits = correct[order]
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    return float((precision * hits).sum() / len(hits))


def calibration_error(correct: "np.ndarray[Any, np.dtype[np.bool_]]", confidence: Floats) -> float | None:
    """Expected calibration error over 15 equal bins of top-1 probability; None for no sample."""
    if not len(correct):
        return None
    bins = np.minimum((confidence * _CALIBRATION_BINS).astype(np.int64), _CALIBRATION_BINS - 1)
    hits = np.bincount(bins, weights=correct, minlength=_CALIBRATION_BINS)
    confidences = np.bincount(bins, weights=confidence, minlength=_CALIBRATION_BINS)
    return float(np.abs(hits - confidences).sum() / len(correct))


def confusion(predictions: Predictions, num_classes: int) -> tuple[Ints, Ints, Ints]:
    """The confusion matrix without its zeros: targets, predictions, counts, each int64 [M], in order."""
    pairs, counts = np.unique(predictions.targets * num_classes + predictions.labels[:, 0], return_counts=True)
    return pairs // num_classes, pairs % num_classes, counts.astype(np.int64)


def _ratio(numerator: Ints, denominator: Ints) -> Floats:
    return np.divide(numerator, denominator, out=np.zeros(len(numerator)), where=denominator > 0)


def _mean(values: "np.ndarray[Any, Any]") -> float | None:
    return float(values.mean()) if len(values) else None
