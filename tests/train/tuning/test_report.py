"""The page of a search."""

from pathlib import Path

import pytest

from lmk_train.tuning.experiment import FAILED, Experiment, Plan, best_trial
from lmk_train.tuning.report import _fit, write_search_report
from tests.train.tuning.searches import SPACE, told

pytest.importorskip("ax", reason="the extra `tune` is not installed")


def test_the_report_says_what_mattered_and_shows_every_trial(tmp_path: Path) -> None:
    experiment = Experiment.new(tmp_path / "x.json", Plan(SPACE, "loss", "bayesian", 0, 4))
    told(experiment, 8)
    number = experiment.ask().number  # type: ignore[union-attr]
    experiment.end(number, FAILED, "it <died>")
    trials = experiment.trials()
    best = best_trial(trials, "loss")
    model = _fit(experiment, trials)
    assert best is not None
    assert model is not None
    shares = model.sensitivities()
    assert shares["lr"] > max(shares["weight_decay"], shares["loss"]), "the bowl is deep along the rate alone"
    near, far = model.predict([{**best.point, "lr": 1e-3}, {**best.point, "lr": 1e-1}])[0]
    assert near < far
    path = write_search_report(tmp_path, experiment, SPACE, trials, best, "lmk-train", {"loss": None, "accuracy": 0.5})
    page = path.read_text()
    for said in ("0.5000", "test accuracy", "total Sobol indices", "correlation", "the large dot is the best", "95 %"):
        assert said in page
    assert "test loss" not in page, "the test split has none"
    assert page.count("<figure>") == 5, "history, curves, slices, sensitivity, cross-validation"
    assert "it <died>" not in page
    rows = [f"{trial.value:.4f}" for trial in trials if trial.value is not None]
    assert len(rows) == 8
    assert all(row in page for row in rows)
