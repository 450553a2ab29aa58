"""The Ax experiment of a search: it proposes points and is told outcomes; every change is saved to disk at once."""

import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lmk_data.errors import UserError, missing_extra
from lmk_data.system.files import write_bytes
from lmk_train.evaluation.metrics import LOWER_IS_BETTER
from lmk_train.tuning.space import Choice, Point, Range, SearchSpace

if TYPE_CHECKING:
    from ax.api.client import Client

RUNNING, DONE, STOPPED, FAILED = "running", "done", "stopped", "failed"
_REPEATED = "the same training as an earlier trial"
_MOST_REPEATS = 20
_FIRST_POINTS = 5  # of a Bayesian search are quasi-random
_CURVES_TO_STOP, _ALWAYS_FINISH, _TRAINED_FIRST = 5, 3, 0.2


@dataclass(frozen=True)
class Trial:
    """One trial: `state` is running, done, stopped or failed; `values` holds the objective by epoch.

    `reason` says why a trial failed.
    """

    number: int
    point: Point
    state: str
    values: dict[int, float]
    reason: str

    @property
    def value(self) -> float | None:
        """Return the objective after the last reported epoch, None before the first."""
        return self.values[max(self.values)] if self.values else None


@dataclass(frozen=True)
class Plan:
    """What an experiment optimises, and how.

    `objective` is a metric of the validation split. `strategy` is bayesian, grid or random. `seed` decides what is
    proposed. `epochs` are those of each trial.
    """

    space: SearchSpace
    objective: str
    strategy: str
    seed: int
    epochs: int


class Experiment:
    """A search's trials and what proposes the next one; every proposal and every outcome is saved to `path`."""

    def __init__(self, client: "Client", path: Path, plan: Plan) -> None:
        self._client, self._path, self._plan = client, path, plan
        self._set_early_stopping()

    @classmethod
    def new(cls, path: Path, plan: Plan) -> "Experiment":
        """Start an experiment without trials and save it."""
        import_ax()
        from ax.api.client import Client

        client = Client()
        client.configure_experiment([_ax_parameter(n, p) for n, p in plan.space.parameters.items()], name="lmk-tune")
        client.configure_optimization(f"-{plan.objective}" if plan.objective in LOWER_IS_BETTER else plan.objective)
        client.configure_generation_strategy(
            "random_search" if plan.strategy == "random" else "fast",
            initialization_budget=_FIRST_POINTS,
            initialization_random_seed=plan.seed,
            initialize_with_center=plan.strategy != "random",
            allow_exceeding_initialization_budget=True,
        )
        made = cls(client, path, plan)
        made._save()
        return made

    @classmethod
    def load(cls, path: Path, plan: Plan) -> "Experiment":
        """Return the experiment that was last saved to `path`, of the same plan.

        Raises UserError if the file is absent or not an experiment.
        """
        import_ax()
        from ax.api.client import Client
        from ax.exceptions.storage import JSONDecodeError

        try:
            client = Client.load_from_json_file(str(path))
        except FileNotFoundError:
            raise UserError(f"{path}: no such file; leave --resume out to start the search") from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, JSONDecodeError) as error:
            raise UserError(f"{path}: not a readable experiment ({str(error)[:100]})") from None
        return cls(client, path, plan)

    @property
    def objective(self) -> str:
        """Return the metric that is optimised."""
        return self._plan.objective

    def trials(self) -> list[Trial]:
        """Return every trial so far, by number, without those that would have repeated another."""
        from ax.core.trial_status import TrialStatus

        states = {
            TrialStatus.RUNNING: RUNNING,
            TrialStatus.COMPLETED: DONE,
            TrialStatus.EARLY_STOPPED: STOPPED,
            TrialStatus.ABANDONED: FAILED,
        }
        values: dict[int, dict[int, float]] = {}
        data = self.ax.lookup_data().full_df
        for number, step, mean in zip(data["trial_index"], data.get("step", []), data["mean"], strict=False):
            values.setdefault(int(number), {})[int(step)] = float(mean)
        return [
            Trial(
                number,
                dict(trial.arm.parameters),
                states[trial.status],
                values.get(number, {}),
                trial.status_reason or "",
            )
            for number, trial in sorted(self.ax.trials.items())
            if trial.status_reason != _REPEATED
        ]

    def ask(self) -> Trial | None:
        """Return the next trial, None if every point has been tried. The same history gives the same point."""
        from ax.api.client import Client
        from ax.exceptions.core import AxError

        # A model starts from the one before it, which the snapshot lacks: a resumed search would propose other points.
        self._client = Client.load_from_json_file(str(self._path))
        self._set_early_stopping()
        tried = [self._plan.space.config(trial.point) for trial in self.trials()]
        if len(tried) == self._plan.space.num_points:
            return None
        for _ in range(_MOST_REPEATS):
            # Ax's own seed would start every proposal at the same point, and is not in its snapshot.
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
            if self._plan.space.config(dict(point)) not in tried:
                self._save()
                return Trial(number, dict(point), RUNNING, {}, "")
            self.ax.trials[number].mark_abandoned(reason=_REPEATED)
        self._save()
        return None

    def attach(self, point: Point) -> Trial:
        """Add a trial at a given point and return it."""
        number = self._client.attach_trial(parameters=point)
        self._save()
        return Trial(number, point, RUNNING, {}, "")

    def tell(self, number: int, epoch: int, value: float) -> None:
        """Record the objective after an epoch of a trial."""
        self._client.attach_data(number, {self.objective: value}, progression=epoch)
        self._save()

    def is_poor(self, number: int) -> bool:
        """Return whether Ax would stop a trial: below the median of the others at its epoch, once five are done."""
        return self._may_stop and self._client.should_stop_trial_early(number)

    def end(self, number: int, state: str, reason: str = "") -> None:
        """Record that a trial is done, stopped or failed. The point of a failed trial is not proposed again."""
        if state == DONE:
            self._client.complete_trial(number)
        elif state == STOPPED:
            self._client.mark_trial_early_stopped(number)
        else:
            self.ax.trials[number].mark_abandoned(reason=reason)
        self._save()

    @property
    def ax(self) -> Any:
        """Return Ax's own experiment."""
        return self._client._experiment

    def _set_early_stopping(self) -> None:
        """Set when Ax may stop a trial, which the snapshot lacks; not at all if that would save no epoch."""
        from ax.early_stopping.strategies import PercentileEarlyStoppingStrategy

        first, last = max(1.0, _TRAINED_FIRST * self._plan.epochs), self._plan.epochs - 1
        self._may_stop = first < last
        if not self._may_stop:
            return
        self._client.set_early_stopping_strategy(
            PercentileEarlyStoppingStrategy(
                percentile_threshold=50.0,
                min_progression=first,
                max_progression=last,
                min_curves=_CURVES_TO_STOP,
                n_best_trials_to_complete=_ALWAYS_FINISH,
            )
        )

    def _save(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            self._client.save_to_json_file(f"{folder}/experiment.json")
            write_bytes(self._path, Path(folder, "experiment.json").read_bytes())


@contextmanager
def quiet_models() -> Iterator[None]:
    """Silence the warnings of Ax's models about points that lie close together (jitter, restarts)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def import_ax() -> None:
    """Import Ax, quietly. Raises UserError without the extra `tune`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import ax.api.client  # noqa: F401
            from ax.utils.common.logger import set_ax_logger_levels
    except ModuleNotFoundError as error:
        raise missing_extra("lmk-tune", "tune", str(error)) from None
    set_ax_logger_levels(logging.WARNING)


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


def _ax_parameter(name: str, parameter: Range | Choice) -> Any:
    from ax.api.configs import ChoiceParameterConfig, RangeParameterConfig

    if isinstance(parameter, Range):
        kind = "int" if parameter.whole else "float"
        scaling = "log" if parameter.log else "linear"
        return RangeParameterConfig(name, (parameter.low, parameter.high), kind, scaling=scaling)  # type: ignore[arg-type]
    values = list(parameter.values)
    kind = type(values[0]).__name__
    return ChoiceParameterConfig(name, values, kind, is_ordered=kind != "str")  # type: ignore[arg-type]
