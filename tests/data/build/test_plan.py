import struct
from hashlib import sha256

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lmk_data.build.plan import keyed_hash, make_plan, split_counts
from lmk_data.errors import UserError
from lmk_data.options import PlanRule

RATIOS = st.sampled_from(
    [(0.72, 0.18, 0.1), (0.8, 0.1, 0.1), (0.5, 0.5, 0.0), (1.0, 0.0, 0.0), (0.0, 0.0, 1.0), (0.34, 0.33, 0.33)]
)
SIZES = st.lists(st.integers(1, 60), min_size=1, max_size=30)


def table(sizes: list[int]) -> pd.DataFrame:
    """A label table with classes of these sizes, in no particular order."""
    rows = [(f"{c:04x}{i:012x}", 1000 + c) for c, size in enumerate(sizes) for i in range(size)]
    return pd.DataFrame(rows, columns=["id", "landmark_id"]).sample(frac=1, random_state=0, ignore_index=True)


@given(sizes=SIZES, split=RATIOS)
def test_every_image_of_a_class_goes_to_one_split(sizes: list[int], split: tuple[float, float, float]) -> None:
    counts = split_counts(np.array(sizes), split)
    assert (counts >= 0).all()
    assert (counts.sum(axis=1) == sizes).all()
    assert (counts[:, 0] >= (split[0] > 0)).all()
    for i, ratio in enumerate(split):
        if ratio == 0:
            assert (counts[:, i] == 0).all()
        else:
            assert (counts[np.array(sizes) >= 6, i] >= 1).all()
        assert (np.abs(counts[:, i] - np.array(sizes) * ratio) < 2).all()


def test_split_is_by_largest_remainder_with_ties_to_the_earlier_split() -> None:
    cut = split_counts(np.array([2, 3, 5, 6, 7, 100, 6272]), (0.72, 0.18, 0.1))
    assert cut.tolist() == [[2, 0, 0], [2, 1, 0], [4, 1, 0], [4, 1, 1], [5, 1, 1], [72, 18, 10], [4516, 1129, 627]]
    assert split_counts(np.array([1, 3]), (0.5, 0.5, 0.0)).tolist() == [[1, 0, 0], [2, 1, 0]]


@given(sizes=st.lists(st.integers(1, 7000), min_size=1, max_size=9), cuts=st.tuples(st.floats(0, 1), st.floats(0, 1)))
@example(sizes=[6272, 1000, 6], cuts=(0.72, 0.9))
@example(sizes=[1001], cuts=(5e-213, 1e-249))  # each of the two tiny shares gets its one
def test_ratios_that_were_computed_split_as_exactly(sizes: list[int], cuts: tuple[float, float]) -> None:
    low, high = sorted(cuts)
    split = (low, high - low, 1 - low - (high - low))
    if min(split) < 0:
        return
    counts, exact = split_counts(np.array(sizes), split), np.array(sizes)[:, None] * np.array(split)
    assert (counts.sum(axis=1) == sizes).all()
    assert (np.abs(counts - exact) < 3).all()
    assert (counts[np.array(sizes) > 1000] >= np.floor(exact[np.array(sizes) > 1000]) - 2).all()


@given(sizes=SIZES, min_samples=st.integers(1, 10), top=st.none() | st.integers(1, 10), seed=st.integers(0, 9))
def test_plan_is_a_partition_that_reconciles(sizes: list[int], min_samples: int, top: int | None, seed: int) -> None:
    images = table(sizes)
    rule = PlanRule(min_samples, top, seed=seed, samples_per_shard=7)
    if max(sizes) < min_samples:
        with pytest.raises(UserError, match="leaves no class"):
            make_plan(images, rule)
        return
    plan = make_plan(images, rule)
    counts = plan.counts
    assert counts["listed"] == len(images)
    assert counts["listed"] == len(plan.samples) + counts["below_min_samples"] + counts["outside_top"]
    assert plan.samples["key"].is_unique
    kept = plan.classes
    assert (kept["listed"] == kept[["train", "val", "test"]].sum(axis=1)).all()
    assert kept["label"].tolist() == list(range(len(kept)))
    assert kept.sort_values(["listed", "landmark_id"], ascending=[False, True]).index.tolist() == kept.index.tolist()
    assert sorted([*kept["landmark_id"], *plan.dropped["landmark_id"]]) == sorted(images["landmark_id"].unique())
    for split, rows in plan.samples.groupby("split", observed=True):
        assert rows["label"].value_counts().sort_index().to_dict() == {
            label: n for label, n in zip(kept["label"], kept[str(split)], strict=True) if n
        }
        shards = rows["shard"].value_counts()
        assert len(shards) == plan.num_shards[str(split)] == -(-len(rows) // 7)
        assert shards.max() - shards.min() <= 1
        assert rows["shard"].is_monotonic_increasing


def test_plan_depends_on_neither_row_order_nor_other_classes() -> None:
    images = table([30, 20, 9, 4])
    plan = make_plan(images, PlanRule(samples_per_shard=10))
    shuffled = make_plan(images.iloc[::-1].reset_index(drop=True), PlanRule(samples_per_shard=10))
    pd.testing.assert_frame_equal(plan.samples, shuffled.samples)
    pd.testing.assert_frame_equal(plan.classes, shuffled.classes)
    narrow = make_plan(images, PlanRule(top=2, samples_per_shard=10)).samples.set_index("key")["split"]
    wide = plan.samples.set_index("key")["split"]
    assert (wide[narrow.index] == narrow).all(), "a smaller plan keeps the split of every image"


def test_another_seed_gives_another_split_and_order() -> None:
    images = table([40, 30])
    first, second = (make_plan(images, PlanRule(seed=seed, samples_per_shard=10)).samples for seed in (0, 1))
    assert set(first["key"]) == set(second["key"])
    assert first["key"].tolist() != second["key"].tolist()
    assert first.set_index("key")["split"].to_dict() != second.set_index("key")["split"].to_dict()


def siphash_2_4(key: bytes, data: bytes) -> int:
    """An independent transcription of SipHash-2-4 (Aumasson, Bernstein 2012)."""
    mask = (1 << 64) - 1
    k0, k1 = struct.unpack("<QQ", key)
    v = [k0 ^ 0x736F6D6570736575, k1 ^ 0x646F72616E646F6D, k0 ^ 0x6C7967656E657261, k1 ^ 0x7465646279746573]

    def rotate(x: int, b: int) -> int:
        return ((x << b) | (x >> (64 - b))) & mask

    def rounds(n: int) -> None:
        for _ in range(n):
            v[0] = (v[0] + v[1]) & mask
            v[2] = (v[2] + v[3]) & mask
            v[1], v[3] = rotate(v[1], 13) ^ v[0], rotate(v[3], 16) ^ v[2]
            v[0] = rotate(v[0], 32)
            v[2] = (v[2] + v[1]) & mask
            v[0] = (v[0] + v[3]) & mask
            v[1], v[3] = rotate(v[1], 17) ^ v[2], rotate(v[3], 21) ^ v[0]
            v[2] = rotate(v[2], 32)

    padded = data + bytes(7 - len(data) % 8) + bytes([len(data) & 0xFF])
    for (word,) in struct.iter_unpack("<Q", padded):
        v[3] ^= word
        rounds(2)
        v[0] ^= word
    v[2] ^= 0xFF
    rounds(4)
    return v[0] ^ v[1] ^ v[2] ^ v[3]


def splitmix64_finaliser(value: int) -> int:
    mask = (1 << 64) - 1
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & mask
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & mask
    return value ^ (value >> 31)


@given(keys=st.lists(st.text("0123456789abcdef-_Z", min_size=1, max_size=40), min_size=1), seed=st.integers(0, 2**60))
def test_keyed_hash_is_as_documented(keys: list[str], seed: int) -> None:
    key = sha256(f"split/{seed}".encode()).hexdigest()[:16].encode()
    expected = [splitmix64_finaliser(siphash_2_4(key, text.encode())) for text in keys]
    assert keyed_hash(pd.Series(keys), "split", seed).tolist() == expected


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"top": 0}, "--top 0"),
        ({"min_samples": 0}, "--min-samples 0"),
        ({"split": (0.7, 0.2, 0.2)}, "sums to 1.1"),
        ({"split": (1.2, -0.1, -0.1)}, "three ratios from 0 to 1"),
        ({"split": (float("nan"), 0.5, 0.5)}, "three ratios from 0 to 1"),
        ({"seed": -1}, "--seed -1"),
        ({"samples_per_shard": 0}, "--samples-per-shard 0"),
    ],
)
def test_rules_that_make_no_sense_are_refused(change: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        PlanRule(**change)  # type: ignore[arg-type]
