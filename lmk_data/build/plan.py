"""The static plan: which images, which label, which split, which shard and place, before a pixel is read. Pure."""

from dataclasses import asdict, dataclass, field
from hashlib import sha256
from typing import Any

import numpy as np
import pandas as pd
import pandas.util

from lmk_data.dataset.format import (
    DROP_REASONS,
    FORMAT_VERSION,
    KEY_PATTERN,
    SPLITS,
    fingerprint_of,
    is_safe_key,
    make_key,
)
from lmk_data.errors import UserError
from lmk_data.options import PlanRule, split_weights

_MIN_SHARD_SAMPLES, _MAX_SHARD_SAMPLES, _SHARDS_WANTED = 256, 4096, 256
_GUARANTEED_CLASS_SIZE = 6
Ints = np.ndarray[tuple[int, ...], np.dtype[np.int64]]


@dataclass(frozen=True)
class Plan:
    """Every planned image with its place, and the classes kept and dropped.

    `samples`: one row per image in order of (split, shard, position), with key, label (int32), landmark_id,
    split, shard (int32 number within the split), and the columns of the label table that locate the image.
    `classes`: label, landmark_id, name, listed, train, val, test (planned). `dropped`: landmark_id, name,
    listed, reason. `counts`: listed and why images left. `rule`: with samples_per_shard resolved.
    """

    rule: PlanRule
    samples: pd.DataFrame
    classes: pd.DataFrame
    dropped: pd.DataFrame
    counts: dict[str, int]
    num_shards: dict[str, int] = field(default_factory=dict)

    def json(self) -> dict[str, Any]:
        """The manifest's `plan`."""
        return {**asdict(self.rule), "split": dict(zip(SPLITS, self.rule.split, strict=True))}


def make_plan(images: pd.DataFrame, rule: PlanRule, names: "pd.Series[str] | None" = None) -> Plan:
    """Filter classes, number them densely, split each by class, and lay samples out over shards.

    `images` has one row per unique id with at least `id` and `landmark_id`; further columns are carried along.
    `names` maps landmark ids (as strings) to class names. Raises UserError if no class is left.
    """
    kept, dropped, counts = _choose_classes(images["landmark_id"], rule, names)
    label_of = pd.Series(kept.index.to_numpy(np.int32), index=kept["landmark_id"].to_numpy())
    label = label_of.reindex(images["landmark_id"].to_numpy()).to_numpy()
    samples = images[~np.isnan(label)].reset_index(drop=True)
    samples["label"] = label[~np.isnan(label)].astype(np.int32)
    samples["key"] = _keys(samples.pop("id"))
    rule = _with_shard_size(rule, len(samples))
    samples["split"], planned = _split_by_class(samples, kept["listed"].to_numpy(np.int64), rule)
    samples, num_shards = _lay_out(samples, rule)
    classes = kept.assign(**{name: planned[:, i].astype(np.int32) for i, name in enumerate(SPLITS)})
    return Plan(rule, samples, classes.reset_index(names="label"), dropped, counts, num_shards)


def plan_fingerprint(source: dict[str, Any], plan: dict[str, Any], recipe: dict[str, Any]) -> str:
    """The fingerprint of a build: source, plan, recipe (with its encoder) and format version."""
    return fingerprint_of({"source": source, "plan": plan, "recipe": recipe, "version": FORMAT_VERSION})


def split_counts(num_images: Ints, split: tuple[float, float, float]) -> Ints:
    """How many images of each class go to each split: int64 [K] to int64 [K, 3].

    Largest remainder in exact arithmetic, ties to train, then val, then test; then, for splits with a ratio
    above 0, at least one training image, and at least one in each for a class of 6 or more, taken from the
    class's largest split.
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
    """Samples in a shard where nobody says: a 256th of all images, within 256..4096."""
    return min(max(num_images // _SHARDS_WANTED, _MIN_SHARD_SAMPLES), _MAX_SHARD_SAMPLES)


def shard_sizes(num_samples: int, samples_per_shard: int) -> list[int]:
    """The sizes of a split's shards: ceil(n / samples_per_shard) of equal size, the first one longer if need be."""
    num_shards = -(-num_samples // samples_per_shard)
    if not num_shards:
        return []
    small, longer = divmod(num_samples, num_shards)
    return [small + (number < longer) for number in range(num_shards)]


def keyed_hash(keys: "pd.Series[str]", purpose: str, seed: int) -> "np.ndarray[tuple[int], np.dtype[np.uint64]]":
    """A keyed hash of each key, uint64 [N], the same on every machine.

    SipHash-2-4 under a key made of (purpose, seed), then SplitMix64's finaliser; docs/format.md spells it out.
    """
    hash_key = sha256(f"{purpose}/{seed}".encode()).hexdigest()[:16]
    values = keys.to_numpy(dtype=object)
    return pandas.util.hash_array(values, hash_key=hash_key, categorize=False)


def _choose_classes(
    landmark_ids: "pd.Series[Any]", rule: PlanRule, names: "pd.Series[str] | None"
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, int]]:
    """Classes kept (descending size, ties by landmark id) and dropped (in the same order), and image counts."""
    sizes = landmark_ids.value_counts(sort=False)
    table = pd.DataFrame({"landmark_id": sizes.index, "listed": sizes.to_numpy(np.int32)})
    table = table.sort_values(["listed", "landmark_id"], ascending=[False, True], ignore_index=True)
    texts = table["landmark_id"].astype(str)
    named = texts if names is None else names.reindex(pd.Index(texts)).set_axis(texts.index)
    table.insert(1, "name", named.where(named.notna() & (named != ""), texts).astype(str))
    small = table["listed"] < rule.min_samples
    outside = ~small & (np.arange(len(table)) >= (rule.top if rule.top is not None else len(table)))
    counts = {
        "listed": int(table["listed"].sum()),
        "below_min_samples": int(table.loc[small, "listed"].sum()),
        "outside_top": int(table.loc[outside, "listed"].sum()),
    }
    if (small | outside).all():
        largest = int(table["listed"].max())
        raise UserError(f"--min-samples {rule.min_samples} leaves no class: the largest has {largest} images")
    reason = pd.Series(np.where(small, DROP_REASONS[0], DROP_REASONS[1]), index=table.index)
    dropped = table.assign(reason=reason)[small | outside].reset_index(drop=True)
    return table[~(small | outside)].reset_index(drop=True), dropped, counts


def _keys(ids: "pd.Series[str]") -> "np.ndarray[tuple[int], np.dtype[np.object_]]":
    """Unique WebDataset keys for unique ids."""
    keys = ids.to_numpy(dtype=object, copy=True)
    odd = np.flatnonzero(~ids.str.fullmatch(KEY_PATTERN).to_numpy(dtype=bool))
    keys[odd] = [make_key(i) for i in keys[odd]]
    if len(odd) and len(set(keys)) != len(keys):
        raise UserError("two ids give the same sample key; rename one of the files")
    assert all(map(is_safe_key, keys[odd]))
    return keys


def _with_shard_size(rule: PlanRule, num_images: int) -> PlanRule:
    size = rule.samples_per_shard or default_samples_per_shard(num_images)
    return PlanRule(rule.min_samples, rule.top, rule.split, rule.seed, size)


def _split_by_class(samples: pd.DataFrame, sizes: Ints, rule: PlanRule) -> "tuple[pd.Categorical[Any], Ints]":
    """Each sample's split, and how many images of each class each split gets (int64 [K, 3])."""
    planned = split_counts(sizes, rule.split)
    label = samples["label"].to_numpy()
    order = _hash_order(samples["key"], "split", rule.seed, label)
    starts = np.concatenate(([0], np.cumsum(sizes)))[:-1]
    rank = np.empty(len(samples), dtype=np.int64)
    rank[order] = np.arange(len(samples)) - starts[label[order]]
    bounds = planned.cumsum(axis=1)[label]
    code = (rank >= bounds[:, 0]).astype(np.int8) + (rank >= bounds[:, 1])
    return pd.Categorical.from_codes(code, categories=pd.Index(SPLITS)), planned


def _lay_out(samples: pd.DataFrame, rule: PlanRule) -> tuple[pd.DataFrame, dict[str, int]]:
    """Shuffle each split globally; cut it into shards of equal size, give or take one."""
    code = samples["split"].cat.codes.to_numpy()
    order = _hash_order(samples["key"], "shard", rule.seed, code)
    samples = samples.take(order).reset_index(drop=True)
    assert rule.samples_per_shard is not None
    sizes = [shard_sizes(int(n), rule.samples_per_shard) for n in np.bincount(code, minlength=len(SPLITS))]
    numbers = [np.repeat(np.arange(len(of_split), dtype=np.int32), of_split) for of_split in sizes]
    samples["shard"] = np.concatenate(numbers)
    return samples, {split: len(of_split) for split, of_split in zip(SPLITS, sizes, strict=True)}


def _hash_order(keys: "pd.Series[str]", purpose: str, seed: int, group: np.ndarray[Any, Any]) -> Ints:
    """The rows ordered by (group, keyed hash, key)."""
    hashes = keyed_hash(keys, purpose, seed)
    if pd.Series(hashes).duplicated().any():
        return np.lexsort((keys.to_numpy(dtype=object).astype(str), hashes, group))
    return np.lexsort((hashes, group))
