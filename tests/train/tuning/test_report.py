"""The page of a search."""

from pathlib import Path

import pytest

from lmk_train.tuning.ax_client import Plan
from lmk_train.tuning.experiment import Experiment, best_trial
from lmk_train.tuning.history import FAILED
from lmk_train.tuning.report import SearchResult, write_search_report
from lmk_train.tuning.surrogate import fit_surrogate
from tests.pages import sections
from tests.train.tuning.searches import SPACE, told

pytest.importorskip("ax", reason="the extra `tune` is not installed")


@pytest.mark.slow
def test_the_report_says_what_mattered_and_shows_every_trial(tmp_path: Path) -> None:
    experiment = Experiment.new(tmp_path / "x.json", Plan(SPACE, "loss", "bayesian", 0, 4))
    told(experiment, 8)
    number = experiment.ask().number  # type: ignore[union-attr]
    experiment.end(number, FAILED, "it <died>")
    trials = experiment.trials()
    best = best_trial(trials, "loss")
    model = fit_surrogate(experiment, trials)
    assert best is not None
    assert model is not None
    shares = model.sensitivities()
    assert shares["lr"] > max(shares["weight_decay"], shares["loss"]), "the bowl is deep along the rate alone"
    near, far = model.predict([{**best.point, "lr": 1e-3}, {**best.point, "lr": 1e-1}])[0]
    assert near < far
    test = {"loss": None, "accuracy": 0.5}
    path = write_search_report(tmp_path, SearchResult(experiment, SPACE, trials, best, "lmk-train --lr 1", test))
    parts = sections(path)
    assert "<b>0.5000</b><span>test accuracy</span>" in parts["Summary"]
    assert "test loss" not in parts["Summary"], "the test split has none"
    assert "<pre>lmk-train --lr 1</pre>" in parts["Summary"]
    assert "best so far</text>" in parts["Trials and epochs"]
    for name in ("lr", "loss", "weight decay"):
        assert f">{name}</text>" in parts["Objective by parameter"]
        assert f">{name}</text>" in parts["Importance of the parameters"]
    assert f"Correlation {model.cross_validate().correlation:.2f}" in parts["Importance of the parameters"]
    assert "it <died>" not in path.read_text()
    values = [f"{trial.value:.4f}" for trial in trials if trial.value is not None]
    assert len(values) == 8
    assert all(f'"{value}"' in parts["All trials"] for value in values)


def test_without_enough_trials_there_is_no_model(tmp_path: Path) -> None:
    experiment = Experiment.new(tmp_path / "x.json", Plan(SPACE, "loss", "bayesian", 0, 4))
    told(experiment, 3)
    trials = experiment.trials()
    best = best_trial(trials, "loss")
    assert best is not None
    assert fit_surrogate(experiment, trials) is None
    path = write_search_report(tmp_path, SearchResult(experiment, SPACE, trials, best, "lmk-train", None))
    assert "needs 6 finished trials" in sections(path)["Importance of the parameters"]
