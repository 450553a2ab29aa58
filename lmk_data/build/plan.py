"""The plan of a build: which images, label, split, shard and position, before a pixel is read. Pure functions."""

from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from typing import Any

import numpy as np
import pandas as pd
import pandas.util
from numpy.typing import NDArray

from lmk_data.dataset.format import (
    DROP_REASONS,
    FORMAT_VERSION,
    SPLITS,
    fingerprint_of,
    is_safe_key,
    make_key,
)
from lmk_data.dataset.tables import unsafe_keys
from lmk_data.errors import UserError
from lmk_data.options import PlanRule, split_weights
from lmk_data.typed_text import chunked

_MIN_SHARD_SAMPLES, _MAX_SHARD_SAMPLES, _SHARDS_WANTED = 256, 4096, 256
_GUARANTEED_CLASS_SIZE = 6
_HASHED_AT_ONCE = 1 << 18  # keys: as strings of Python they take several times the memory of their column
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Plan:
    """Every planned image with its place, and the classes that are kept and dropped."""

    rule: PlanRule
    """The rule, with `samples_per_shard` resolved to a number."""
    samples: pd.DataFrame
    """One row per image in order of (split, shard, position): key, label (int32), landmark_id, split, shard (int32,
    number within the split), and the columns of the label table that locate the image."""
    classes: pd.DataFrame
    """label, landmark_id, name, listed, and the planned images in train, val and test, in order of the label."""
    dropped: pd.DataFrame
    """landmark_id, name, listed, reason (one of `DROP_REASONS`)."""
    counts: dict[str, int]
    """Images listed, and those left out: below_min_samples, outside_top."""
    num_shards: dict[str, int] = field(default_factory=dict)
    """Shards of each split."""


def rule_json(rule: PlanRule, num_images: int) -> dict[str, Any]:
    """Return the manifest's `plan`: a rule, with the size of a shard that `num_images` planned images give."""
    return {**asdict(_with_shard_size(rule, num_images)), "split": dict(zip(SPLITS, rule.split, strict=True))}


def make_plan(images: pd.DataFrame, rule: PlanRule, names: "pd.Series[str] | None" = None) -> Plan:
    """Return the plan: classes filtered and numbered from 0, each split on its own, samples assigned to shards.

    Args:
        images: One row per unique id, with `id` and `landmark_id`; other columns are carried along.
        rule: Which classes to keep, and how to split them.
        names: Class names by landmark id (as strings).

    Raises UserError if no class is left.
    """
    kept, dropped, counts = _choose_classes(images["landmark_id"], rule, names)
    label_of = pd.Series(kept.index.to_numpy(np.int32), index=kept["landmark_id"].to_numpy())
    label = label_of.reindex(images["landmark_id"].to_numpy()).to_numpy()
    samples = images[~np.isnan(label)].reset_index(drop=True)
    samples["label"] = label[~np.isnan(label)].astype(np.int32)
    samples["key"] = _keys(samples.pop("id"))
    by_split, by_shard = (keyed_hash(samples["key"], purpose, rule.seed) for purpose in ("split", "shard"))
    rule = _with_shard_size(rule, len(samples))
    samples["split"], planned = _split_by_class(samples, by_split, kept["listed"].to_numpy(np.int64), rule)
    samples, num_shards = _lay_out(samples, by_shard, rule)
    classes = kept.assign(**{name: planned[:, i].astype(np.int32) for i, name in enumerate(SPLITS)})
    return Plan(rule, samples, classes.reset_index(names="label"), dropped, counts, num_shards)


def plan_fingerprint(source: dict[str, Any], plan: dict[str, Any], recipe: dict[str, Any]) -> str:
    """Return the fingerprint of a build: a hash of source, plan, recipe (with its encoder) and format version."""
    return fingerprint_of({"source": source, "plan": plan, "recipe": recipe, "version": FORMAT_VERSION})


def class_names(landmark_ids: "pd.Series[Any]", names: "pd.Series[str] | None") -> "pd.Series[str]":
    """Return the name of each class, or its landmark id where `names` has none; `names` is that of `make_plan`."""
    texts = landmark_ids.astype(str)
    named = texts if names is None else names.reindex(pd.Index(texts)).set_axis(texts.index)
    return named.where(named.notna() & (named != ""), texts).astype(str)


def split_counts(num_images: Ints, split: tuple[float, float, float]) -> Ints:
    """Return how many images of each class go to train, val and test: int64 [K] to int64 [K, 3].

    Shares are rounded by the largest-remainder method in exact arithmetic; ties go to train, then val, then test. Then
    every split with a ratio above 0 gets at least one image, taken from the class's largest split: train for every
    class, val and test for classes with 6 images or more.
    """
    weights, total = split_weights(split)
    # Ratios of many digits, such as 1 - 0.72 - 0.18, need Python's own integers.
    kind = np.int64 if int(num_images.max(initial=0)) * total < 2**63 else object
    products = num_images.astype(kind)[:, None] * np.array(weights, dtype=kind)
    counts: Ints = (products // total).astype(np.int64)
    remainders = products % total
    order = np.argsort(-remainders, axis=1, kind="stable")
    left = num_images - counts.sum(axis=1)
    for rank in range(len(SPLITS)):
        rows = np.flatnonzero(left > rank)
        counts[rows, order[rows, rank]] += 1
    for i, weight in enumerate(weights):
        if weight:
            smallest = 1 if i == 0 else _GUARANTEED_CLASS_SIZE
            rows = np.flatnonzero((counts[:, i] == 0) & (num_images >= smallest))
            counts[rows, counts[rows].argmax(axis=1)] -= 1
            counts[rows, i] += 1
    return counts


def default_samples_per_shard(num_images: int) -> int:
    """Return the default number of samples in a shard: images // 256, but at least 256 and at most 4096."""
    return min(max(num_images // _SHARDS_WANTED, _MIN_SHARD_SAMPLES), _MAX_SHARD_SAMPLES)


def shard_sizes(num_samples: int, samples_per_shard: int) -> list[int]:
    """Return the sizes of a split's ceil(n / samples_per_shard) shards: equal, or one more in the first shards."""
    num_shards = -(-num_samples // samples_per_shard)
    if not num_shards:
        return []
    small, longer = divmod(num_samples, num_shards)
    return [small + (number < longer) for number in range(num_shards)]


def keyed_hash(keys: "pd.Series[str]", purpose: str, seed: int) -> NDArray[np.uint64]:
    """Return a keyed hash of each key, uint64 [N], the same on every machine.

    It is SipHash-2-4 with a key made from (purpose, seed), then SplitMix64's finaliser. docs/format.md specifies it.
    """
    hash_key = sha256(f"{purpose}/{seed}".encode()).hexdigest()[:16]
    parts = (keys.iloc[start : start + _HASHED_AT_ONCE] for start in range(0, len(keys), _HASHED_AT_ONCE))
    hashes = (
        pandas.util.hash_array(part.to_numpy(dtype=object), hash_key=hash_key, categorize=False) for part in parts
    )
    return np.concatenate([np.empty(0, dtype=np.uint64), *hashes])


def _choose_classes(
    landmark_ids: "pd.Series[Any]", rule: PlanRule, names: "pd.Series[str] | None"
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, int]]:
    """Return the classes kept (by descending size, ties by landmark id) and dropped (same order), and image counts."""
    sizes = landmark_ids.value_counts(sort=False)
    table = pd.DataFrame({"landmark_id": sizes.index, "listed": sizes.to_numpy(np.int32)})
    table = table.sort_values(["listed", "landmark_id"], ascending=[False, True], ignore_index=True)
    table.insert(1, "name", class_names(table["landmark_id"], names))
    small = table["listed"] < rule.min_samples
    outside = ~small & (np.arange(len(table)) >= (rule.top if rule.top is not None else len(table)))
    counts = {
        "listed": int(table["listed"].sum()),
        "below_min_samples": int(table.loc[small, "listed"].sum()),
        "outside_top": int(table.loc[outside, "listed"].sum()),
    }
    if (small | outside).all():
        largest = int(table["listed"].max())
        raise UserError(
            f"--min-samples {rule.min_samples} leaves no class: the largest has {largest} images; give a smaller number"
        )
    reason = pd.Series(np.where(small, DROP_REASONS[0], DROP_REASONS[1]), index=table.index)
    dropped = table.assign(reason=reason)[small | outside].reset_index(drop=True)
    return table[~(small | outside)].reset_index(drop=True), dropped, counts


def _keys(ids: "pd.Series[str]") -> "pd.Series[str]":
    """Return unique WebDataset keys for unique ids."""
    unsafe = np.flatnonzero(unsafe_keys(chunked(ids)))
    if not len(unsafe):
        return ids
    keys = ids.to_numpy(dtype=object, copy=True)
    keys[unsafe] = [make_key(i) for i in keys[unsafe]]
    if len(set(keys)) != len(keys):
        raise UserError("two ids give the same sample key; rename one of the files")
    assert all(map(is_safe_key, keys[unsafe]))
    return pd.Series(keys, index=ids.index, dtype=ids.dtype)


def _with_shard_size(rule: PlanRule, num_images: int) -> PlanRule:
    size = rule.samples_per_shard or default_samples_per_shard(num_images)
    return replace(rule, samples_per_shard=size)


def _split_by_class(
    samples: pd.DataFrame, hashes: NDArray[np.uint64], sizes: Ints, rule: PlanRule
) -> "tuple[pd.Categorical[Any], Ints]":
    """Return each sample's split, and how many images of each class go to each split (int64 [K, 3])."""
    planned = split_counts(sizes, rule.split)
    label = samples["label"].to_numpy()
    order = _hash_order(hashes, samples["key"], label)
    starts = np.concatenate(([0], np.cumsum(sizes)))[:-1]
    rank = np.empty(len(samples), dtype=np.int64)
    rank[order] = np.arange(len(samples)) - starts[label[order]]
    first_val, first_test = (planned[:, :number].sum(axis=1) for number in (1, 2))
    code = (rank >= first_val[label]).astype(np.int8)
    code += rank >= first_test[label]
    return pd.Categorical.from_codes(code, categories=pd.Index(SPLITS)), planned


def _lay_out(samples: pd.DataFrame, hashes: NDArray[np.uint64], rule: PlanRule) -> tuple[pd.DataFrame, dict[str, int]]:
    """Shuffle each split over all its classes and cut it into shards whose sizes differ by at most one."""
    code = samples["split"].cat.codes.to_numpy()
    order = _hash_order(hashes, samples["key"], code)
    samples = samples.take(order).reset_index(drop=True)
    assert rule.samples_per_shard is not None
    sizes = [shard_sizes(int(n), rule.samples_per_shard) for n in np.bincount(code, minlength=len(SPLITS))]
    numbers = [np.repeat(np.arange(len(of_split), dtype=np.int32), of_split) for of_split in sizes]
    samples["shard"] = np.concatenate(numbers)
    return samples, {split: len(of_split) for split, of_split in zip(SPLITS, sizes, strict=True)}


def _hash_order(hashes: NDArray[np.uint64], keys: "pd.Series[str]", group: NDArray[Any]) -> Ints:
    """Return the row numbers in order of (group, keyed hash, key)."""
    order = np.argsort(hashes)
    ascending = hashes[order]
    if (ascending[1:] == ascending[:-1]).any():
        return np.lexsort((keys.to_numpy(dtype=object).astype(str), hashes, group))
    grouped: Ints = order[np.argsort(group[order], kind="stable")]
    return grouped
