"""Temperature scaling: against float64 and a fine grid, its bounds, and what a run makes of it."""

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from lmk_data.errors import UserError
from lmk_train.evaluation.calibration import confidences, fit_temperature, mean_loss, probabilities_of, sampled_rows
from lmk_train.evaluation.metrics import global_average_precision
from lmk_train.runs.calibration import read_calibration


def probabilities(logits: NDArray[np.float32], temperature: float) -> NDArray[np.float64]:
    """The softmax as it is defined."""
    powers = np.exp(logits.astype(np.float64) / temperature)
    return powers / powers.sum(axis=1, keepdims=True)


def drawn(scale: float, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Logits whose probabilities are right at temperature `scale`, and targets that are drawn from them."""
    random = np.random.default_rng(seed)
    logits = random.normal(size=(3000, 5)) * 2
    targets = np.array([random.choice(5, p=row) for row in probabilities(logits.astype(np.float32), 1.0)])
    return (logits * scale).astype(np.float32), targets


@pytest.mark.parametrize("scale", [0.4, 1.0, 3.0])
def test_the_temperature_has_the_least_loss(scale: float) -> None:
    logits, targets = drawn(scale)
    fitted = fit_temperature(logits, targets)
    assert fitted == pytest.approx(scale, rel=0.1), "the one that the targets were drawn with, but for chance"
    rows = np.arange(len(targets))

    def loss(temperature: float) -> float:
        return float(-np.log(probabilities(logits, temperature)[rows, targets]).mean())

    assert mean_loss(logits, targets, fitted) == pytest.approx(loss(fitted), rel=1e-12)
    grid = np.exp(np.linspace(np.log(fitted) - 0.01, np.log(fitted) + 0.01, 21))
    assert abs(np.log(grid[np.argmin([loss(value) for value in grid])] / fitted)) < 0.0011
    of_target = probabilities(logits, fitted)[rows, targets]
    np.testing.assert_allclose(probabilities_of(logits, targets, fitted), of_target, rtol=1e-9)
    np.testing.assert_allclose(confidences(logits, fitted), probabilities(logits, fitted).max(axis=1), rtol=1e-9)


def test_a_temperature_is_bounded() -> None:
    """Without mistakes no probability is raised, with random answers there is an end to lowering them."""
    logits, _ = drawn(1.0)
    right = logits.argmax(axis=1)
    assert fit_temperature(logits, right) == pytest.approx(1.0, rel=1e-3)
    wrong = np.where(np.arange(len(right)) < 10, (right + 1) % 5, right)
    assert fit_temperature(logits, wrong) < 1, "ten mistakes are evidence"
    assert fit_temperature(logits, logits.argmin(axis=1)) == pytest.approx(10, rel=1e-3)


def test_the_sample_is_spread_over_known_pictures_and_bounded() -> None:
    targets = np.where(np.arange(20_000) % 2, 3, -1)
    rows = sampled_rows(targets, 10)
    assert len(rows) == len(set(rows.tolist())) == 5000
    assert (targets[rows] == 3).all()
    assert np.diff(rows).max() == 4
    assert len(sampled_rows(targets, 57_042)) == 588
    assert sampled_rows(targets[:100], 10).tolist() == list(range(1, 100, 2))


def test_pictures_of_nothing_count_against_the_answers_before_them() -> None:
    correct, confidence = np.array([True, False, True]), np.array([0.9, 0.8, 0.7])
    keys = np.array(["a", "b", "c"], dtype=object)
    assert global_average_precision(correct, confidence, keys, 2) == pytest.approx((1 + 2 / 3) / 2)


@pytest.mark.parametrize("value", ["NaN", "0", "1e9", '"1"', "null"])
def test_a_calibration_of_a_stranger_is_checked(tmp_path: Path, value: str) -> None:
    told = {"weights_sha256": "0" * 64, "dataset": "0" * 64, "split": "val", "num_samples": 50}
    told |= dict.fromkeys(("loss_before", "loss_after", "error_before", "error_after"), 0.5)
    (tmp_path / "calibration.json").write_text(json.dumps(told)[:-1] + f', "temperature": {value}}}')
    with pytest.raises(UserError, match="not a calibration"):
        read_calibration(tmp_path, "0" * 64)
