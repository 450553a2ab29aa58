"""The predictions of a model for the samples of a split."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

TOP_K = 5  # best labels that are kept of each sample; all labels if the model has fewer


@dataclass(frozen=True)
class Predictions:
    """The predictions for N samples.

    Attributes:
        keys: the samples' keys, str [N]; they break ties.
        targets: true labels, int64 [N]; -1 for a sample whose class the model does not have.
        labels: the best k labels, int64 [N, k], the most probable first.
        probabilities: of `labels`, float32 [N, k].
        losses: minus the logarithm of the target's probability, float32 [N]; NaN where the target is -1.
        adjusted: the best label under each of T adjustments of the logits, int64 [N, T]; None without any.
        calibrated: the probability of the best label at the run's temperature, float32 [N]; None without one.
    """

    keys: NDArray[np.object_]
    targets: NDArray[np.int64]
    labels: NDArray[np.int64]
    probabilities: NDArray[np.float32]
    losses: NDArray[np.float32]
    adjusted: NDArray[np.int64] | None = None
    calibrated: NDArray[np.float32] | None = None

    @classmethod
    def concatenate(cls, parts: Sequence["Predictions"]) -> "Predictions":
        """Return the samples of all parts, of which there is at least one, in the order given."""
        columns: dict[str, Any] = {}
        for field in fields(cls):
            values = [getattr(part, field.name) for part in parts]
            columns[field.name] = None if values[0] is None else np.concatenate(values)
        return cls(**columns)

    def select(self, chosen: NDArray[np.bool_] | NDArray[np.int64]) -> "Predictions":
        """Return the chosen samples: a mask, bool [N], or places in the order wanted, int64 [M]."""
        columns: dict[str, Any] = {}
        for field in fields(self):
            values = getattr(self, field.name)
            columns[field.name] = None if values is None else values[chosen]
        return Predictions(**columns)

    @property
    def is_finite(self) -> bool:
        """Whether all probabilities, and the losses of known targets, are finite."""
        losses = self.losses[self.targets >= 0]
        return bool(np.isfinite(self.probabilities).all() and np.isfinite(losses).all())
