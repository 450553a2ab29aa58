"""What the index says of all pictures: sizes of sources, stored bytes, odd ones, and how well labels are mixed."""

from typing import Any

import numpy as np
import pandas as pd

from lmk_data.dataset import ShardedDataset

QUANTILES = {"least": 0.0, "5%": 0.05, "half": 0.5, "95%": 0.95, "most": 1.0}
_ELONGATED = 4.0
_UNIFORM_KB = 2.0


def take_census(dataset: ShardedDataset) -> dict[str, Any]:
    """The figures `pictures` (quantiles), `odd` (counts) and `mixing` (bits of label entropy in a training shard)."""
    pictures = read_pictures(dataset)
    size = dataset.recipe.size
    longer = pictures["aspect"].clip(lower=1) / pictures["aspect"].clip(upper=1)
    return {
        "pictures": {
            str(name): {at: round(float(column.quantile(share)), 4) for at, share in QUANTILES.items()}
            for name, column in pictures.items()
        },
        "odd": {
            "enlarged": int((pictures[["width", "height"]].min(axis=1) < size).sum()),
            "elongated": int((longer > _ELONGATED).sum()),
            "nearly_uniform": int((pictures["stored_kb"] < _UNIFORM_KB).sum()),
        },
        "mixing": _mixing(dataset),
    }


def read_pictures(dataset: ShardedDataset) -> pd.DataFrame:
    """width, height, megapixels, aspect and source_kb of every source, stored_kb of every picture; all splits."""
    columns = ["original_width", "original_height", "original_bytes", "jpg_size"]
    index = pd.concat([dataset.index(split, columns) for split in dataset.splits], ignore_index=True)
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


def _mixing(dataset: ShardedDataset) -> dict[str, float]:
    """Mean label entropy of the training shards, and what a random order of the same labels gives."""
    index = dataset.index("train", ["label", "shard"])
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
