"""The surrogate model of a search: Ax's Gaussian process of the objective over the parameters."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmk_train.tuning.ax_client import quiet_models
from lmk_train.tuning.experiment import Experiment, Trial
from lmk_train.tuning.history import DONE
from lmk_train.tuning.space import Point

MIN_TRIALS = 6  # finished trials below which a model has no information


@dataclass(frozen=True)
class CrossValidation:
    """Each trial's objective, and mean and standard deviation predicted by a model of all other trials, float64 [N]."""

    observed: NDArray[np.float64]
    mean: NDArray[np.float64]
    deviation: NDArray[np.float64]

    @property
    def correlation(self) -> float:
        """The correlation of observed and predicted values; NaN if either are all equal."""
        if not np.ptp(self.observed) or not np.ptp(self.mean):
            return float("nan")
        return float(np.corrcoef(self.observed, self.mean)[0, 1])


@dataclass(frozen=True)
class Surrogate:
    """A model of the objective, fitted to the trials of an experiment."""

    adapter: Any
    objective: str

    @quiet_models()
    def predict(self, points: list[Point]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return mean and standard deviation of the objective without noise at each point, float64 [N] both."""
        from ax.core.observation import ObservationFeatures

        means, covariances = self.adapter.predict([ObservationFeatures(parameters={**point}) for point in points])
        variances = np.asarray(covariances[self.objective][self.objective], dtype=np.float64)
        return np.asarray(means[self.objective], dtype=np.float64), np.sqrt(variances)

    def sensitivities(self) -> dict[str, float]:
        """Return the total Sobol index of each parameter.

        It is the share of the variance of the objective that is due to the parameter, alone and with others.
        """
        from ax.utils.sensitivity.sobol_measures import ax_parameter_sens

        indices = ax_parameter_sens(self.adapter, order="total", signed=False)[self.objective]
        return {str(name): float(value) for name, value in indices.items()}

    @quiet_models()
    def cross_validate(self) -> CrossValidation:
        """Predict each trial with a model that was fitted to all others."""
        from ax.adapter.cross_validation import cross_validate

        results = cross_validate(self.adapter)
        return CrossValidation(
            observed=np.array([float(result.observed.data.means[0]) for result in results]),
            mean=np.array([float(result.predicted.means[0]) for result in results]),
            deviation=np.array([float(result.predicted.covariance[0, 0]) ** 0.5 for result in results]),
        )


@quiet_models()
def fit_surrogate(experiment: Experiment, trials: list[Trial]) -> Surrogate | None:
    """Return a model of the objective; None if fewer than 6 trials have finished or their objectives are all equal."""
    values = [trial.value for trial in trials if trial.state == DONE]
    if len(values) < MIN_TRIALS or len(set(values)) == 1:
        return None
    from ax.adapter.registry import Generators

    return Surrogate(Generators.BOTORCH_MODULAR(experiment=experiment.ax), experiment.objective)
