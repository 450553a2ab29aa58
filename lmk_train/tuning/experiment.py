"""The experiment of a search: it proposes points and is told outcomes; every change is saved to disk at once."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lmk_data.errors import UserError
from lmk_train.evaluation.metrics import LOWER_IS_BETTER
from lmk_train.tuning.ax_client import (
    Plan,
    UnknownNodeError,
    end_trial,
    import_ax,
    new_client,
    node_of,
    proposal_of,
    quiet_models,
    replay,
)
from lmk_train.tuning.history import (
    DONE,
    REPEATED,
    RUNNING,
    History,
    State,
    TrialRecord,
    read_history,
    write_history,
)
from lmk_train.tuning.space import Point

if TYPE_CHECKING:
    from ax.api.client import Client

_MOST_REPEATS = 20
_CURVES_TO_STOP, _ALWAYS_FINISH, _TRAINED_FIRST = 5, 3, 0.2


@dataclass(frozen=True)
class Trial:
    """One trial: `state` is running, done, stopped or failed; `values` holds the objective by epoch.

    `reason` says why a trial failed.
    """

    number: int
    point: Point
    state: State
    values: dict[int, float]
    reason: str

    @property
    def value(self) -> float | None:
        """Return the objective after the last reported epoch, None before the first."""
        return self.values[max(self.values)] if self.values else None


class Experiment:
    """A search's trials and what proposes the next one; every proposal and every outcome is saved to `path`."""

    def __init__(self, path: Path, plan: Plan, history: History) -> None:
        import_ax()
        self._path, self._plan, self._history = path, plan, history
        self._client = self._replayed()

    @classmethod
    def new(cls, path: Path, plan: Plan) -> "Experiment":
        """Start an experiment without trials and save it."""
        made = cls(path, plan, History())
        made._save()
        return made

    @classmethod
    def load(cls, path: Path, plan: Plan) -> "Experiment":
        """Return the experiment that was last saved to `path`, of the same plan.

        Raises UserError if the file is absent or not an experiment of the plan.
        """
        history = read_history(path, plan.space, plan.epochs)
        try:
            return cls(path, plan, history)
        except UnknownNodeError as error:
            raise UserError(f"{path}: not the trials of this search ({error}); start another with --out") from None

    @property
    def objective(self) -> str:
        """Return the metric that is optimised."""
        return self._plan.objective

    def trials(self) -> list[Trial]:
        """Return every trial so far, by number, without those that would have repeated another."""
        return [
            Trial(number, dict(record.point), record.state, dict(record.values), record.reason)
            for number, record in enumerate(self._history.trials)
            if record.state != REPEATED
        ]

    def ask(self) -> Trial | None:
        """Return the next trial, None if every point has been tried. The same history gives the same point."""
        from ax.exceptions.core import AxError

        # A model starts from the one before it, which a resumed search lacks: it would propose other points.
        self._client = self._replayed()
        tried = [self._plan.space.config(trial.point) for trial in self.trials()]
        if len(tried) == self._plan.space.num_points:
            return None
        for _ in range(_MOST_REPEATS):
            # Ax's own seed would start every proposal at the same point.
            fresh = np.random.SeedSequence([self._plan.seed, len(self.ax.trials)]).generate_state(2)
            torch.manual_seed(int(fresh[0]))
            np.random.seed(int(fresh[1]))
            try:
                with quiet_models():
                    ((number, point),) = self._client.get_next_trials(max_trials=1).items()
            except AxError as error:
                if "exhaust" in str(error).lower() or "duplicate" in str(error).lower():
                    break
                raise
            record = TrialRecord(dict(point), proposal_of(self._client))
            self._history.trials.append(record)
            self._history.node = node_of(self._client)
            if self._plan.space.config(dict(point)) not in tried:
                self._save()
                return Trial(number, dict(point), RUNNING, {}, "")
            record.state = REPEATED
            self.ax.trials[number].mark_abandoned(reason=REPEATED)
        self._save()
        return None

    def attach(self, point: Point) -> Trial:
        """Add a trial at a given point and return it."""
        number = self._client.attach_trial(parameters=point)
        self._history.trials.append(TrialRecord(dict(point), None))
        self._save()
        return Trial(number, point, RUNNING, {}, "")

    def tell(self, number: int, epoch: int, value: float) -> None:
        """Record the objective after an epoch of a trial."""
        self._client.attach_data(number, {self.objective: value}, progression=epoch)
        self._history.trials[number].values[epoch] = value
        self._save()

    def is_poor(self, number: int) -> bool:
        """Return whether Ax would stop a trial: below the median of the others at its epoch, once five are done."""
        return self._may_stop and self._client.should_stop_trial_early(number)

    def end(self, number: int, state: State, reason: str = "") -> None:
        """Record that a trial is done, stopped or failed. The point of a failed trial is not proposed again."""
        record = self._history.trials[number]
        record.state, record.reason = state, reason
        end_trial(self._client, number, record)
        self._save()

    @property
    def ax(self) -> Any:
        """Return Ax's own experiment."""
        return self._client._experiment

    def _replayed(self) -> "Client":
        """Return a fresh client of Ax that has seen the whole history."""
        client = new_client(self._plan)
        replay(client, self._history, self.objective)
        self._set_early_stopping(client)
        return client

    def _set_early_stopping(self, client: "Client") -> None:
        """Set when Ax may stop a trial; not at all if that would save no epoch."""
        from ax.early_stopping.strategies import PercentileEarlyStoppingStrategy

        first, last = max(1.0, _TRAINED_FIRST * self._plan.epochs), self._plan.epochs - 1
        self._may_stop = first < last
        if not self._may_stop:
            return
        client.set_early_stopping_strategy(
            PercentileEarlyStoppingStrategy(
                percentile_threshold=50.0,
                min_progression=first,
                max_progression=last,
                min_curves=_CURVES_TO_STOP,
                n_best_trials_to_complete=_ALWAYS_FINISH,
            )
        )

    def _save(self) -> None:
        write_history(self._path, self._history)


def better(value: float, than: float, objective: str) -> bool:
    """Return whether a value of the objective is better than another."""
    return value < than if objective in LOWER_IS_BETTER else value > than


def best_trial(trials: list[Trial], objective: str) -> Trial | None:
    """Return the finished trial with the best objective, the first of equals; None if no trial is finished."""
    best: Trial | None = None
    for trial in _finished(trials):
        if best is None or better(trial.value or 0.0, best.value or 0.0, objective):
            best = trial
    return best


def _finished(trials: list[Trial]) -> Iterator[Trial]:
    return (trial for trial in trials if trial.state == DONE and trial.value is not None)
