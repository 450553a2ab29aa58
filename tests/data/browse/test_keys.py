"""Keys: each is found at its row, no other is, and the check of their form is that of the format."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmk_data.browse.keys import KeyIndex, are_safe
from lmk_data.dataset.format import is_safe_key

LETTERS = st.text("abAB01_-", min_size=1, max_size=20)


def strings(keys: list[str]) -> pa.LargeStringArray:
    return pa.array(keys, pa.large_string())


@settings(max_examples=30)
@given(st.lists(LETTERS, unique=True), st.lists(LETTERS))
def test_each_key_is_found_at_its_row_and_no_other(keys: list[str], others: list[str]) -> None:
    index = KeyIndex(strings(keys))
    wanted = [*others, *reversed(keys)]
    expected = [keys.index(key) if key in keys else -1 for key in wanted]
    assert index.rows(strings(wanted)).tolist() == expected
    assert index.rows(strings(["x", *wanted]).slice(1)).tolist() == expected
    assert index.repeated() is None


def test_keys_with_the_same_hash_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KeyIndex, "_hashes_of", lambda _, keys: np.zeros(len(keys), np.uint64))
    index = KeyIndex(strings(["a", "b", "c"]))
    assert index.rows(strings(["c", "d", "a"])).tolist() == [2, -1, 0]


def test_a_repeated_key_is_noticed() -> None:
    assert KeyIndex(strings(["a" * 30, "b", "a" * 30])).repeated() == "a" * 30


@pytest.mark.parametrize("key", ["a", "_a", "__a", "a__", "_", "__", "", "a" * 80, "a" * 81, "a/b", "a.b", "é", "a\n"])
def test_the_form_of_keys_is_that_of_the_format(key: str) -> None:
    assert are_safe(strings(["good", key, "also-good"])) == is_safe_key(key)
    assert are_safe(strings([key, "good"]).slice(1))
