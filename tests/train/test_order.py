import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lmk_train.order import WINDOW_SHARDS, batch_rows, counter_hash, epoch_order, num_batches

SHARD_SIZES = st.lists(st.integers(1, 40), min_size=1, max_size=60)


@given(sizes=SHARD_SIZES, seed=st.integers(0, 2**62), epoch=st.integers(0, 1000))
def test_epoch_is_a_permutation_in_windows_of_whole_shards(sizes: list[int], seed: int, epoch: int) -> None:
    shard_of_row = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
    order = epoch_order(shard_of_row, seed, epoch)
    assert sorted(order) == list(range(len(shard_of_row)))
    start = 0
    while start < len(order):
        opened: list[int] = []
        for row in order[start:]:
            if shard_of_row[row] not in opened:
                if len(opened) == WINDOW_SHARDS:
                    break
                opened.append(int(shard_of_row[row]))
        window = sum(sizes[shard] for shard in opened)
        assert set(shard_of_row[order[start : start + window]]) == set(opened)
        start += window


@given(sizes=SHARD_SIZES, batch_size=st.integers(1, 50))
def test_batches_cut_the_epoch_without_overlap(sizes: list[int], batch_size: int) -> None:
    order = epoch_order(np.repeat(np.arange(len(sizes), dtype=np.int32), sizes), 0, 0)
    kept = num_batches(len(order), batch_size, drop_last=False)
    batches = [batch_rows(order, step, batch_size) for step in range(kept)]
    assert np.concatenate(batches).tolist() == order.tolist()
    full = num_batches(len(order), batch_size, drop_last=True)
    assert all(len(batch) == batch_size for batch in batches[:full])
    assert kept - full in (0, 1)


def test_every_epoch_and_seed_has_an_order_of_its_own() -> None:
    shard_of_row = np.repeat(np.arange(50, dtype=np.int32), 40)
    orders = {tuple(epoch_order(shard_of_row, seed, epoch)) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16


def test_counter_hash_is_uniform_and_independent_in_each_counter() -> None:
    draws = (counter_hash(5, np.arange(1000)[:, None], np.arange(100)[None, :]) >> np.uint64(11)) * 2.0**-53
    assert draws.shape == (1000, 100)
    assert abs(draws.mean() - 0.5) < 0.005
    assert abs(draws.var() - 1 / 12) < 0.002
    for axis in (0, 1):
        neighbours = np.corrcoef(draws.take(range(99), axis).ravel(), draws.take(range(1, 100), axis).ravel())[0, 1]
        assert abs(neighbours) < 0.02
    assert len(np.unique(counter_hash(0, np.arange(100_000)))) == 100_000
