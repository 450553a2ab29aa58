"""The order of an epoch: exact for any world, pure, and as often as the sampling says."""

import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lmk_train.config.training import Sampling
from lmk_train.data import order as order_module
from lmk_train.data.order import (
    augmentation_hashes,
    batch_picks,
    class_picks,
    counter_hash,
    epoch_length,
    epoch_order,
    num_batches,
    pack_picks,
    rows_of,
    window_shards,
)
from lmk_train.runtime.world import share

SHARD_SIZES = st.lists(st.integers(1, 40), min_size=1, max_size=60)
LABELS = st.lists(st.integers(0, 12), min_size=1, max_size=300).map(lambda given: np.array(given, dtype=np.int64))
SAMPLINGS: list[Sampling] = ["uniform", "class-balanced", "repeat-factor"]


def in_shards(num_rows: int, size: int = 8) -> NDArray[np.int32]:
    return (np.arange(num_rows) // size).astype(np.int32)


def uniform(shard_of_row: NDArray[np.int32], seed: int, epoch: int) -> NDArray[np.int64]:
    return epoch_order(np.zeros(len(shard_of_row), dtype=np.int64), shard_of_row, seed, epoch)


@given(sizes=SHARD_SIZES, seed=st.integers(0, 2**62), epoch=st.integers(0, 1000), least=st.integers(1, 500))
def test_epoch_is_a_permutation_in_windows_of_whole_shards(sizes: list[int], seed: int, epoch: int, least: int) -> None:
    """A window has 16 shards, or as many as are needed for the least number of samples."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(order_module, "WINDOW_SAMPLES", least)
        shard_of_row = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
        width = window_shards(len(shard_of_row), len(sizes))
        assert width >= 16
        assert width == 16 or (width - 1) * len(shard_of_row) < least * len(sizes)
        order = uniform(shard_of_row, seed, epoch)
    assert sorted(order) == list(range(len(shard_of_row)))
    start = 0
    while start < len(order):
        opened: list[int] = []
        for row in order[start:]:
            if shard_of_row[row] not in opened:
                if len(opened) == width:
                    break
                opened.append(int(shard_of_row[row]))
        window = sum(sizes[shard] for shard in opened)
        assert set(shard_of_row[order[start : start + window]]) == set(opened)
        start += window


def test_a_view_that_holds_little_of_many_shards_is_one_window() -> None:
    assert window_shards(num_rows=9_000, num_shards=400) >= 400
    assert window_shards(num_rows=1_072_994, num_shards=262) == 16 == order_module.WINDOW_SHARDS


@given(
    labels=LABELS,
    sampling=st.sampled_from(SAMPLINGS),
    epoch=st.integers(0, 5),
    batch_size=st.integers(12, 50),
    world=st.integers(1, 4),
    parts=st.integers(1, 3),
)
def test_any_world_sees_the_same_global_batches(
    labels: NDArray[np.int64], sampling: Sampling, epoch: int, batch_size: int, world: int, parts: int
) -> None:
    """Ranks and micro-batches cut a global batch without overlap, in order, into near-equal parts."""
    order = epoch_order(labels, in_shards(len(labels)), 7, epoch, sampling)
    assert len(order) == epoch_length(labels, sampling) == len(set(order.tolist()))
    steps = num_batches(len(order), batch_size, drop_last=True)
    for step in range(steps):
        batch = batch_picks(order, step, batch_size)
        assert len(batch) == batch_size
        shares = [share(batch, rank, world) for rank in range(world)]
        micro = [share(mine, part, parts) for mine in shares for part in range(parts)]
        assert np.concatenate(micro).tolist() == batch.tolist()
        for cut in (shares, micro):
            assert max(map(len, cut)) - min(map(len, cut)) <= 1 + (cut is micro)
            assert min(map(len, cut)) > 0


@given(sizes=SHARD_SIZES, batch_size=st.integers(1, 50), world=st.integers(1, 5))
def test_evaluation_sees_every_sample_exactly_once(sizes: list[int], batch_size: int, world: int) -> None:
    rows = np.arange(sum(sizes), dtype=np.int64)
    steps = num_batches(len(rows), batch_size, drop_last=False)
    seen = [share(batch_picks(rows, step, batch_size), rank, world) for rank in range(world) for step in range(steps)]
    assert sorted(np.concatenate(seen).tolist()) == rows.tolist()
    assert steps - num_batches(len(rows), batch_size, drop_last=True) in (0, 1)


@given(labels=LABELS, epoch=st.integers(0, 20))
def test_class_balanced_takes_every_class_as_often(labels: NDArray[np.int64], epoch: int) -> None:
    order = epoch_order(labels, in_shards(len(labels)), 3, epoch, "class-balanced")
    assert len(order) == len(labels)
    rows = rows_of(order, len(labels))
    classes = Counter(labels[rows].tolist())
    assert classes.keys() == set(labels.tolist())
    assert max(classes.values()) - min(classes.values()) <= 1
    for label in classes:
        times = [int((rows == row).sum()) for row in np.flatnonzero(labels == label)]
        assert max(times) - min(times) <= 1, "the samples of a class share its turns evenly"


@given(labels=LABELS, sampling=st.sampled_from(["uniform", "class-balanced", "repeat-factor"]))
def test_the_picks_of_a_class_are_those_of_an_epoch(labels: NDArray[np.int64], sampling: Sampling) -> None:
    order = epoch_order(labels, in_shards(len(labels)), 3, 0, sampling)
    picked = np.bincount(labels[rows_of(order, len(labels))], minlength=labels.max() + 1)
    assert np.abs(picked - class_picks(np.bincount(labels), sampling)).max() <= (sampling == "class-balanced")


@given(labels=LABELS)
def test_repeat_factor_is_the_formula(labels: NDArray[np.int64]) -> None:
    order = epoch_order(labels, in_shards(len(labels)), 3, 0, "repeat-factor")
    rows = rows_of(order, len(labels))
    held = Counter(labels.tolist())
    mean = len(labels) / len(held)
    for label, number in held.items():
        factor = max(1.0, (mean / number) ** 0.5)
        assert abs(int((labels[rows] == label).sum()) - number * factor) <= 0.5
        times = [int((rows == row).sum()) for row in np.flatnonzero(labels == label)]
        assert min(times) >= 1
        assert max(times) - min(times) <= 1


@given(rows=st.lists(st.integers(0, 299), min_size=1, max_size=50), repetitions=st.integers(0, 2**31))
def test_a_pick_keeps_its_row_and_differs_in_each_repetition(rows: list[int], repetitions: int) -> None:
    picked = np.array(rows, dtype=np.int64)
    once, again = (pack_picks(picked, np.full(len(rows), times), 300) for times in (0, repetitions))
    assert once.tolist() == rows_of(once, 300).tolist() == rows_of(again, 300).tolist() == rows
    assert (once == again).all() == (repetitions == 0)


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_every_epoch_and_seed_has_an_order_of_its_own(sampling: Sampling) -> None:
    labels = np.repeat(np.arange(20), np.arange(1, 21) * 10)
    shards = in_shards(len(labels), 40)
    orders = {tuple(epoch_order(labels, shards, seed, epoch, sampling)) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16
    again = epoch_order(labels, shards, 2, 3, sampling)
    assert tuple(again) in orders


def test_a_sample_that_comes_twice_is_augmented_differently() -> None:
    labels = np.array([0] * 50 + [1])
    order = epoch_order(labels, in_shards(51), 0, 0, "class-balanced")
    picks = order[rows_of(order, 51) == 50]
    assert len(picks) > 20
    assert len(np.unique(augmentation_hashes(picks, 0, 0, 1))) == len(picks)


def test_a_full_size_epoch_starts_fast_at_any_step() -> None:
    num_rows = 1_072_994
    labels = np.minimum(np.random.default_rng(0).zipf(1.5, num_rows), 57_042) - 1
    shards = in_shards(num_rows, 4096)
    for sampling in SAMPLINGS:
        started = time.process_time()
        batch_picks(epoch_order(labels, shards, 0, 17, sampling), 9_000, 64)
        assert time.process_time() - started < 4, sampling


def test_counter_hash_is_uniform_and_independent_in_each_counter() -> None:
    draws = (counter_hash(5, np.arange(1000)[:, None], np.arange(100)[None, :]) >> np.uint64(11)) * 2.0**-53
    assert draws.shape == (1000, 100)
    assert abs(draws.mean() - 0.5) < 0.005
    assert abs(draws.var() - 1 / 12) < 0.002
    for axis in (0, 1):
        neighbours = np.corrcoef(draws.take(range(99), axis).ravel(), draws.take(range(1, 100), axis).ravel())[0, 1]
        assert abs(neighbours) < 0.02
    assert len(np.unique(counter_hash(0, np.arange(100_000)))) == 100_000
