"""Figures from the index about all images and classes: sizes, odd ones, and how well labels are mixed over shards."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lmk_data.dataset.reader import ShardedDataset

QUANTILES = {"least": 0.0, "5%": 0.05, "half": 0.5, "95%": 0.95, "most": 1.0}
MAX_MARGIN = 0.5  # the default of the trainer's --ldam-max-margin
_NUM_BINS = 60
_LINEAR = ("stored_kb",)  # the other histograms have a log scale
_ELONGATED = 4.0
_UNIFORM_KB = 2.0
_NUM_ODD = 8


@dataclass(frozen=True)
class Histogram:
    """`counts` of values between two neighbouring `edges`, of which there is one more."""

    edges: list[float]
    counts: list[int]


@dataclass(frozen=True)
class OddCounts:
    """Numbers of images that were enlarged, are longer than 4 : 1, or take less than 2 KB as stored."""

    enlarged: int
    elongated: int
    nearly_uniform: int


@dataclass(frozen=True)
class Mixing:
    """Mean entropy of the labels of a shard in bits, and the same for the labels in random order."""

    entropy: float
    by_chance: float


@dataclass(frozen=True)
class SizeCounts:
    """How many classes have each number of images, the largest first."""

    images: list[int]
    num_classes: list[int]


@dataclass(frozen=True)
class ClassSizes:
    """Sizes of the classes that are in the dataset, and of those that the rule left out."""

    kept: SizeCounts
    dropped: SizeCounts


@dataclass(frozen=True)
class Coverage:
    """A curve: the share of the images in each share of the classes, the largest first."""

    classes: list[float]
    images: list[float]


@dataclass(frozen=True)
class Margins(SizeCounts):
    """The LDAM margin of the classes of each number of training images."""

    margin: list[float]


@dataclass(frozen=True)
class SampleName:
    """Split, row in the index of the split, and key of a sample."""

    split: str
    row: int
    key: str


@dataclass(frozen=True)
class OddOnes:
    """The samples at one end of a scale, the most extreme first."""

    what: str
    samples: list[SampleName]


@dataclass(frozen=True)
class Census:
    """Figures about all images and classes.

    Attributes:
        pictures: Quantiles (see `QUANTILES`) of each column of `_read_pictures`.
        histograms: A histogram of each of these columns.
        odd: Counts of odd images.
        odd_ones: The smallest, the longest and the most uniform images.
        mixing: How well labels are mixed over the shards of the first split.
        class_sizes: Numbers of classes by their size.
        coverage: Share of images over share of classes.
        margins: LDAM margins over class sizes.
    """

    pictures: dict[str, dict[str, float]]
    histograms: dict[str, Histogram]
    odd: OddCounts
    odd_ones: list[OddOnes]
    mixing: Mixing
    class_sizes: ClassSizes
    coverage: Coverage
    margins: Margins


def take_census(dataset: ShardedDataset) -> Census:
    """Return the figures of all images and classes from the index and the tables of classes."""
    pictures = _read_pictures(dataset)
    kept = _count_sizes(dataset.classes["listed"])
    return Census(
        pictures={
            str(name): {at: round(float(column.quantile(share)), 4) for at, share in QUANTILES.items()}
            for name, column in pictures.items()
        },
        histograms={str(name): _histogram(column, str(name)) for name, column in pictures.items()},
        odd=OddCounts(
            enlarged=int((pictures[["width", "height"]].min(axis=1) < dataset.recipe.size).sum()),
            elongated=int((_elongation(pictures) > _ELONGATED).sum()),
            nearly_uniform=int((pictures["stored_kb"] < _UNIFORM_KB).sum()),
        ),
        odd_ones=_odd_ones(dataset, pictures),
        mixing=_mixing(dataset),
        class_sizes=ClassSizes(kept, _count_sizes(dataset.dropped_classes()["listed"])),
        coverage=_coverage(kept),
        margins=_margins(dataset.classes["train"]),
    )


def _read_pictures(dataset: ShardedDataset) -> pd.DataFrame:
    """Return the size and shape of every source and the size of every stored image, by (split, row).

    Columns: width, height (pixels), megapixels, aspect (width / height), source_kb, stored_kb.
    """
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
    """Return the longer side over the shorter one."""
    return pictures["aspect"].clip(lower=1) / pictures["aspect"].clip(upper=1)


def _odd_ones(dataset: ShardedDataset, pictures: pd.DataFrame) -> list[OddOnes]:
    """Return the 8 smallest, longest and most uniform images."""
    extremes = {
        "The smallest sources": pictures["megapixels"].nsmallest(_NUM_ODD),
        "The longest and the highest": _elongation(pictures).nlargest(_NUM_ODD),
        "The most uniform": pictures["stored_kb"].nsmallest(_NUM_ODD),
    }
    keys = {split: dataset.index_table(split, ["key"])["key"] for split in dataset.splits}
    return [OddOnes(what, _names(values.index, keys)) for what, values in extremes.items()]


def _names(rows: Iterable[tuple[str, int]], keys: dict[str, Any]) -> list[SampleName]:
    return [SampleName(str(split), int(row), keys[split][int(row)].as_py()) for split, row in rows]


def _count_sizes(sizes: "pd.Series[int]") -> SizeCounts:
    images, num_classes = np.unique(sizes.to_numpy(np.int64), return_counts=True)
    return SizeCounts(images[::-1].tolist(), num_classes[::-1].tolist())


def _coverage(kept: SizeCounts) -> Coverage:
    """Return the share of the images that each share of the classes has, the largest first."""
    classes = np.array([0, *kept.num_classes])
    images = np.array([0, *kept.images]) * classes
    class_share, image_share = classes.cumsum() / classes.sum(), images.cumsum() / images.sum()
    return Coverage(class_share.round(6).tolist(), image_share.round(6).tolist())


def _margins(train: "pd.Series[int]") -> Margins:
    """Return the LDAM margins of classes of n training images: C / n^(1/4), with C such that the largest is 0.5."""
    sizes = _count_sizes(train[train > 0])
    margin = [MAX_MARGIN * (images / sizes.images[-1]) ** -0.25 for images in sizes.images]
    return Margins(sizes.images, sizes.num_classes, np.round(margin, 6).tolist())


def _histogram(values: "pd.Series[float]", name: str) -> Histogram:
    numbers = values.to_numpy(np.float64)
    low = float(numbers.min())
    high = max(float(numbers.max()), low * 1.01)
    space = np.linspace if name in _LINEAR else np.geomspace
    edges = space(low, high, _NUM_BINS + 1)
    edges[0], edges[-1] = low, high  # geomspace may miss them by a rounding error
    return Histogram([float(f"{edge:.6g}") for edge in edges], np.histogram(numbers, edges)[0].tolist())


def _mixing(dataset: ShardedDataset) -> Mixing:
    """Return the mean label entropy of the shards of the first split, and that of a random order of these labels."""
    index = dataset.index(dataset.splits[0], ["label", "shard"])
    shard = index["shard"].cat.codes.to_numpy().astype(np.int64)
    label = index["label"].to_numpy(np.int64)
    shuffled = np.random.default_rng(0).permutation(label)
    return Mixing(round(_mean_entropy(shard, label), 4), round(_mean_entropy(shard, shuffled), 4))


def _mean_entropy(shard: NDArray[np.int64], label: NDArray[np.int64]) -> float:
    """Return the entropy of the labels of a shard in bits, averaged over shards; both arrays are int64 [N]."""
    pairs = pd.DataFrame({"shard": shard, "label": label}).value_counts(sort=False)
    sizes = pairs.groupby(level="shard").transform("sum")
    share = (pairs / sizes).to_numpy()
    return float(-(share * np.log2(share)).sum() / pairs.index.get_level_values("shard").nunique())
