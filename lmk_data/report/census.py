"""What the index says of all pictures and classes: their sizes, odd ones, and how well labels are mixed."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from lmk_data.dataset.reader import ShardedDataset

QUANTILES = {"least": 0.0, "5%": 0.05, "half": 0.5, "95%": 0.95, "most": 1.0}
MAX_MARGIN = 0.5  # the default of the trainer's --ldam-max-margin
_BINS = 60
_LINEAR = ("stored_kb",)  # the others are drawn on a log scale
_ELONGATED = 4.0
_UNIFORM_KB = 2.0


def take_census(dataset: ShardedDataset, pictures: pd.DataFrame) -> dict[str, Any]:
    """The figures of `read_pictures`' rows and of the classes.

    `pictures` (quantiles), `histograms`, `odd` (counts), `mixing` (label entropy of shards in bits), `class_sizes`,
    `coverage` and `margins` (curves over classes, one entry for all classes of one size).
    """
    size = dataset.recipe.size
    kept = _by_size(dataset.classes["listed"])
    return {
        "pictures": {
            str(name): {at: round(float(column.quantile(share)), 4) for at, share in QUANTILES.items()}
            for name, column in pictures.items()
        },
        "histograms": {str(name): _histogram(column, str(name)) for name, column in pictures.items()},
        "odd": {
            "enlarged": int((pictures[["width", "height"]].min(axis=1) < size).sum()),
            "elongated": int((_elongation(pictures) > _ELONGATED).sum()),
            "nearly_uniform": int((pictures["stored_kb"] < _UNIFORM_KB).sum()),
        },
        "mixing": _mixing(dataset),
        "class_sizes": {"kept": kept, "dropped": _by_size(dataset.dropped_classes()["listed"])},
        "coverage": _coverage(kept),
        "margins": _margins(dataset.classes["train"]),
    }


def _by_size(sizes: "pd.Series[int]") -> dict[str, list[int]]:
    """How many classes there are of each size, the largest size first."""
    images, num_classes = np.unique(sizes.to_numpy(np.int64), return_counts=True)
    return {"images": images[::-1].tolist(), "num_classes": num_classes[::-1].tolist()}


def _coverage(kept: dict[str, list[int]]) -> dict[str, list[float]]:
    """The share of the images that each share of the classes holds, the largest first."""
    classes = np.array([0, *kept["num_classes"]])
    images = np.array([0, *kept["images"]]) * classes
    shares = {"classes": classes.cumsum() / classes.sum(), "images": images.cumsum() / images.sum()}
    return {name: share.round(6).tolist() for name, share in shares.items()}


def _margins(train: "pd.Series[int]") -> dict[str, list[Any]]:
    """The margin that LDAM gives a class of n training images, C / n^(1/4), with C such that the largest is 0.5."""
    found = _by_size(train[train > 0])
    margin = [MAX_MARGIN * (images / found["images"][-1]) ** -0.25 for images in found["images"]]
    return {**found, "margin": np.round(margin, 6).tolist()}


def _histogram(values: "pd.Series[float]", name: str) -> dict[str, list[Any]]:
    """The number of values between each two edges."""
    numbers = values.to_numpy(np.float64)
    low = float(numbers.min())
    high = max(float(numbers.max()), low * 1.01)
    space = np.linspace if name in _LINEAR else np.geomspace
    edges = space(low, high, _BINS + 1)
    edges[0], edges[-1] = low, high  # geomspace may miss them by a rounding
    return {"edges": [float(f"{edge:.6g}") for edge in edges], "counts": np.histogram(numbers, edges)[0].tolist()}


@dataclass(frozen=True)
class OddOnes:
    """The pictures at one end of a scale: `rows` of `read_pictures`, the oddest first, and what is odd of them."""

    what: str
    note: str
    rows: pd.DataFrame


def odd_ones(pictures: pd.DataFrame, number: int) -> list[OddOnes]:
    """The `number` smallest, longest and most uniform pictures of `read_pictures`' rows."""
    area, ratio, stored = pictures["megapixels"], _elongation(pictures), pictures["stored_kb"]
    smallest = pictures.loc[area.nsmallest(number).index]
    longest = pictures.loc[ratio.nlargest(number).index]
    plainest = pictures.loc[stored.nsmallest(number).index]
    first = smallest.iloc[0]
    return [
        OddOnes("The smallest sources", f"from {first['width']:.0f}x{first['height']:.0f} pixels up", smallest),
        OddOnes("The longest and the highest", f"{ratio.max():.3g} : 1 and less", longest),
        OddOnes("The most uniform", f"stored in {stored.min():.3g} KB and more", plainest),
    ]


def read_pictures(dataset: ShardedDataset) -> pd.DataFrame:
    """width, height, megapixels, aspect and source_kb of every source, stored_kb of every picture, by (split, row)."""
    columns = ["original_width", "original_height", "original_bytes", "jpg_size"]
    index = pd.concat({split: dataset.index(split, columns) for split in dataset.splits}, names=["split", "row"])
    width, height = index["original_width"], index["original_height"]
    return pd.DataFrame(
        {
            "width": width,
            "height": height,
            "megapixels": width.astype(np.float64) * height / 1e6,
            "aspect": width / height,
            "source_kb": index["original_bytes"] / 1e3,
            "stored_kb": index["jpg_size"] / 1e3,
        }
    )


def _elongation(pictures: pd.DataFrame) -> "pd.Series[float]":
    """The longer side over the shorter one."""
    return pictures["aspect"].clip(lower=1) / pictures["aspect"].clip(upper=1)


def _mixing(dataset: ShardedDataset) -> dict[str, float]:
    """Mean label entropy of the first split's shards, and what a random order of the same labels gives."""
    index = dataset.index(dataset.splits[0], ["label", "shard"])
    shard = index["shard"].cat.codes.to_numpy()
    label = index["label"].to_numpy()
    by_chance = np.random.default_rng(0).permutation(label)
    return {
        "entropy": round(_mean_entropy(shard, label), 4),
        "by_chance": round(_mean_entropy(shard, by_chance), 4),
    }


def _mean_entropy(shard: "np.ndarray[Any, Any]", label: "np.ndarray[Any, Any]") -> float:
    """Bits of entropy of the labels in a shard, averaged over shards."""
    pairs = pd.DataFrame({"shard": shard, "label": label}).value_counts(sort=False)
    sizes = pairs.groupby(level="shard").transform("sum")
    share = (pairs / sizes).to_numpy()
    return float(-(share * np.log2(share)).sum() / pairs.index.get_level_values("shard").nunique())
