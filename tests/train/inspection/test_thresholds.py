"""Thresholds keep the share of false alarms that they state."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lmk_train.inspection.thresholds import flag_probable, low_confidence


@given(probabilities=hnp.arrays(np.float32, st.integers(0, 40), elements=st.floats(0, 1, width=32)))
def test_flagged_findings_are_the_most_probable_and_few_of_them_are_false(probabilities: np.ndarray) -> None:
    flagged = flag_probable(probabilities, 0.1)
    if flagged.any():
        assert probabilities[flagged].min() > probabilities[~flagged].max(initial=0)
        assert probabilities[flagged].min() > 0.5


def test_probable_findings_are_false_as_often_as_stated() -> None:
    generator = np.random.default_rng(0)
    probabilities = generator.uniform(size=20_000).astype(np.float32)
    true = generator.uniform(size=20_000) < probabilities
    assert 1 - true[flag_probable(probabilities, 0.1)].mean() == pytest.approx(0.1, abs=0.01)


def test_values_far_below_the_bulk_are_found_with_confidence() -> None:
    generator = np.random.default_rng(0)
    values = generator.normal(size=5000).astype(np.float32)
    assert (low_confidence(values) > 0.9).mean() < 0.001
    values[:100] -= 8
    values[-1] = np.nan
    found = low_confidence(values) > 0.9
    assert found[:100].all()
    assert found[100:].sum() <= 0.2 * 100
    assert not low_confidence(np.full(99, np.nan, np.float32)).any()


def test_of_a_skewed_bulk_few_values_are_flagged_and_lower_ones_come_first() -> None:
    generator = np.random.default_rng(0)
    values = -generator.gamma(20, size=5000).astype(np.float32)
    confidence = low_confidence(values)
    assert (confidence >= 0.9).mean() <= 0.01
    assert (np.diff(confidence[np.argsort(values)][:1000]) <= 0).all()
    assert len(np.unique(confidence[np.argsort(values)][:1000])) > 900
