"""Which points are proposed, and which trials are poor."""

import json
from pathlib import Path

import pytest

from lmk_data.errors import UserError
from lmk_train.tuning.ax_client import Plan
from lmk_train.tuning.experiment import Experiment, best_trial
from lmk_train.tuning.history import DONE, FAILED, STOPPED
from lmk_train.tuning.space import Choice, SearchSpace
from tests.train.tuning.searches import SPACE, bowl, points, told

pytest.importorskip("ax", reason="the extra `tune` is not installed")


@pytest.mark.slow
def test_a_search_that_was_loaded_proposes_what_one_that_ran_on_does(tmp_path: Path) -> None:
    at_once = Experiment.new(tmp_path / "a.json", Plan(SPACE, "loss", "bayesian", 0, 4))
    told(at_once, 7)
    Experiment.new(tmp_path / "b.json", Plan(SPACE, "loss", "bayesian", 0, 4))
    for _ in range(7):
        told(Experiment.load(tmp_path / "b.json", Plan(SPACE, "loss", "bayesian", 0, 4)), 1)
    in_parts = Experiment.load(tmp_path / "b.json", Plan(SPACE, "loss", "bayesian", 0, 4))
    assert points(at_once) == points(in_parts)
    assert in_parts.trials()[3].values == {
        epoch: pytest.approx(bowl(points(in_parts)[3]) + 4 - epoch) for epoch in range(1, 5)
    }
    best = best_trial(in_parts.trials(), "loss")
    assert best is not None
    assert best.value == min(bowl(point) for point in points(in_parts))
    # Chance: of 7 log-uniform rates one in eight is within a factor of 3 of the best; a search has come closer.
    assert best.value < 0.2


def test_what_failed_is_not_proposed_again_and_a_search_ends_when_all_is_tried(tmp_path: Path) -> None:
    space = SearchSpace({"batch_size": Choice((8, 16, 32)), "loss": Choice(("ce", "ldam"))}, SPACE.base)
    experiment = Experiment.new(tmp_path / "x.json", Plan(space, "accuracy", "bayesian", 0, 4))
    while (trial := experiment.ask()) is not None:
        if trial.point["loss"] == "ce":
            experiment.end(trial.number, FAILED, "the loss is not finite")
        else:
            experiment.tell(trial.number, 1, float(trial.point["batch_size"]))
            experiment.end(trial.number, DONE)
        experiment = Experiment.load(tmp_path / "x.json", Plan(space, "accuracy", "bayesian", 0, 4))
    assert len(points(experiment)) == 6
    assert len({tuple(point.items()) for point in points(experiment)}) == 6
    failed = [trial for trial in experiment.trials() if trial.state == FAILED]
    assert [trial.reason for trial in failed] == ["the loss is not finite"] * 3


def test_poor_trials_are_told_apart_by_epoch(tmp_path: Path) -> None:
    experiment = Experiment.new(tmp_path / "x.json", Plan(SPACE, "macro_f1", "random", 0, 8))
    for value in (0.5, 0.6, 0.7, 0.8, 0.9):
        number = experiment.ask().number  # type: ignore[union-attr]
        for epoch in range(1, 9):
            experiment.tell(number, epoch, value * epoch / 8)
        experiment.end(number, DONE)
    for factor, poor in ((0.9, False), (0.1, True)):
        number = experiment.ask().number  # type: ignore[union-attr]
        experiment.tell(number, 1, factor / 8)
        assert not experiment.is_poor(number), "the first epochs say too little"
        experiment.tell(number, 2, factor * 2 / 8)
        assert experiment.is_poor(number) == poor
        experiment.end(number, STOPPED if poor else DONE)
    assert [trial.state for trial in experiment.trials()] == [DONE] * 6 + [STOPPED]


@pytest.mark.parametrize("epochs", [1, 2])
def test_trials_of_an_epoch_or_two_are_never_poor(tmp_path: Path, epochs: int) -> None:
    experiment = Experiment.new(tmp_path / "x.json", Plan(SPACE, "loss", "random", 0, epochs))
    told(experiment, 6, epochs)
    number = experiment.ask().number  # type: ignore[union-attr]
    experiment.tell(number, 1, 1e6)
    assert not experiment.is_poor(number)


@pytest.mark.parametrize("of_a_trial", [False, True])
def test_a_strategy_that_ax_does_not_have_is_refused(tmp_path: Path, of_a_trial: bool) -> None:
    plan = Plan(SPACE, "loss", "bayesian", 0, 4)
    told(Experiment.new(tmp_path / "x.json", plan), 1)
    history = json.loads((tmp_path / "x.json").read_text())
    (history["trials"][0]["proposal"] if of_a_trial else history)["node"] = "os.system"
    (tmp_path / "x.json").write_text(json.dumps(history))
    with pytest.raises(UserError, match="of an unknown strategy"):
        Experiment.load(tmp_path / "x.json", plan)
