"""Ax's client: made for a plan, and brought to where a search is by replaying its history."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lmk_data.errors import missing_extra
from lmk_train.evaluation.metrics import LOWER_IS_BETTER
from lmk_train.tuning.history import DONE, RUNNING, STOPPED, History, Proposal, TrialRecord
from lmk_train.tuning.space import Choice, Range, SearchSpace

if TYPE_CHECKING:
    from ax.api.client import Client

_FIRST_POINTS = 5  # of a Bayesian search are quasi-random


class UnknownNodeError(Exception):
    """A history names a node that Ax's strategy lacks."""


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


def new_client(plan: Plan) -> "Client":
    """Return a client of Ax for a plan, without trials."""
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
    return client


def replay(client: "Client", history: History, objective: str) -> None:
    """Bring a new client to the state after a history: its trials, their values, and where its generators are.

    Raises UnknownNodeError for a node that Ax's strategy lacks.
    """
    from ax.core.arm import Arm
    from ax.core.generator_run import GeneratorRun

    experiment, strategy = client._experiment, client._generation_strategy_or_choose()
    nodes = strategy.nodes_by_name
    strategy.experiment = experiment
    for number, record in enumerate(history.trials):
        proposal = record.proposal
        if proposal is None:
            client.attach_trial(parameters=record.point)
        elif proposal.node not in nodes:
            raise UnknownNodeError(f"trial {number} is of an unknown strategy")
        else:
            run = GeneratorRun(
                [Arm(parameters={**record.point})],
                generator_key=proposal.generator,
                generation_node_name=proposal.node,
                generator_state_after_gen=_state(proposal),
            )
            strategy._generator_runs.append(run)
            experiment.new_trial(generator_run=run).mark_running(no_runner_required=True)
        if record.values:
            raw = [(epoch, {objective: value}) for epoch, value in record.values.items()]
            experiment.trials[number].update_trial_data(raw_data=raw)  # type: ignore[attr-defined]
        if record.state != RUNNING:
            end_trial(client, number, record)
    if history.node is not None:
        if history.node not in nodes:
            raise UnknownNodeError("the next proposal is of an unknown strategy")
        strategy._curr = nodes[history.node]


def end_trial(client: "Client", number: int, record: TrialRecord) -> None:
    """Tell a client how a trial ended. The point of one that failed is not proposed again."""
    if record.state == DONE:
        client.complete_trial(number)
    elif record.state == STOPPED:
        client.mark_trial_early_stopped(number)
    else:
        client._experiment.trials[number].mark_abandoned(reason=record.reason)


def proposal_of(client: "Client") -> Proposal:
    """Return what proposed the last point of a client."""
    run: Any = client._generation_strategy_or_choose().last_generator_run
    state = run._generator_state_after_gen or {}
    return Proposal(run._generation_node_name, run._generator_key, state.get("seed"), state.get("init_position"))


def node_of(client: "Client") -> str:
    """Return the name of the node of a client's strategy that proposes next."""
    return str(client._generation_strategy_or_choose().current_node_name)


def _state(proposal: Proposal) -> dict[str, int]:
    state = {"seed": proposal.seed, "init_position": proposal.position}
    return {name: value for name, value in state.items() if value is not None}


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


def _ax_parameter(name: str, parameter: Range | Choice) -> Any:
    from ax.api.configs import ChoiceParameterConfig, RangeParameterConfig

    if isinstance(parameter, Range):
        kind = "int" if parameter.whole else "float"
        scaling = "log" if parameter.log else "linear"
        return RangeParameterConfig(name, (parameter.low, parameter.high), kind, scaling=scaling)  # type: ignore[arg-type]
    values = list(parameter.values)
    kind = type(values[0]).__name__
    return ChoiceParameterConfig(name, values, kind, is_ordered=kind != "str")  # type: ignore[arg-type]
