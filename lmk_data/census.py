"""What the index says of all pictures: sizes of sources, stored bytes, odd ones, and how well labels are mixed."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from lmk_data.dataset import ShardedDataset

QUANTILES = {"least": 0.0, "5%": 0.05, "half": 0.5, "95%": 0.95, "most": 1.0}
_ELONGATED = 4.0
_UNIFORM_KB = 2.0


def take_census(dataset: ShardedDataset) -> dict[str, Any]:
    """The figures `pictures` (quantiles), `odd` (counts) and `mixing` (label entropy of shards in bits)."""
    pictures = read_pictures(dataset)
    size = dataset.recipe.size
    return {
        "pictures": {
            str(name): {at: round(float(column.quantile(share)), 4) for at, share in QUANTILES.items()}
            for name, column in pictures.items()
        },
        "odd": {
            "enlarged": int((pictures[["width", "height"]].min(axis=1) < size).sum()),
            "elongated": int((_elongation(pictures) > _ELONGATED).sum()),
            "nearly_uniform": int((pictures["stored_kb"] < _UNIFORM_KB).sum()),
        },
        "mixing": _mixing(dataset),
    }


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
