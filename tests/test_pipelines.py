"""The recipes' own arithmetic."""

import numpy as np
import pandas as pd
import pytest

from lmk_data.errors import UserError
from pipelines.compare import Row, bootstrap


def row(name: str, targets: "np.ndarray[tuple[int], np.dtype[np.int64]]", right: float, seed: int) -> Row:
    """A run that is right with a probability, independently for each picture."""
    random = np.random.default_rng(seed)
    labels = np.where(random.random(len(targets)) < right, targets, (targets + 1) % 10)
    keys = [f"{i:05d}" for i in range(len(targets))]
    return Row(name, {}, 0, 0, 0.0, pd.DataFrame({"target": targets, "label_1": labels}, index=keys))


def test_the_interval_holds_the_true_difference_and_leaves_out_nought() -> None:
    targets = np.random.default_rng(0).integers(0, 10, 4000)
    found = bootstrap(row("a", targets, 0.80, 1), row("b", targets, 0.85, 2), 300)
    for middle, low, high in found.values():
        assert 0 < low < middle < high
        assert low < 0.05 < high
        # Independent answers: the variance is that of two binomials.
        assert high - low == pytest.approx(2 * 1.96 * np.sqrt((0.8 * 0.2 + 0.85 * 0.15) / 4000), rel=0.25)
    same = bootstrap(row("a", targets, 0.8, 1), row("a", targets, 0.8, 1), 50)
    assert set(same.values()) == {(0.0, 0.0, 0.0)}


def test_runs_on_other_pictures_are_not_compared() -> None:
    targets = np.random.default_rng(0).integers(0, 10, 100)
    with pytest.raises(UserError, match="other pictures"):
        bootstrap(row("a", targets, 0.8, 1), row("b", targets[::-1].copy(), 0.8, 1), 10)
