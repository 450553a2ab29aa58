"""The figures of a dataset report, which `report.json` holds and the page shows."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.compute as pc
from numpy.typing import NDArray

from lmk_data.dataset.format import (
    FEW_BELOW,
    MANY_ABOVE,
    Counts,
    Manifest,
    PlanEntry,
    SourceEntry,
    SubsetOrigin,
    ViewOrigin,
)
from lmk_data.dataset.reader import ShardedDataset
from lmk_data.report.census import Census, take_census
from lmk_data.report.quality import Quality, assess

_EXAMPLES = 5


@dataclass(frozen=True)
class ClassFigures:
    """Numbers and sizes of classes.

    Sizes are numbers of listed images. `dropped` includes the classes that were not chosen for a view or a copy.
    `half_of_images_in` is the number of the largest classes that have half of the images.
    """

    kept: int
    dropped: int
    largest: int
    smallest: int
    median: float
    imbalance_ratio: float
    gini: float
    gini_before_the_rule: float
    half_of_images_in: int


@dataclass(frozen=True)
class Band:
    """Many-shot, medium-shot or few-shot classes and their training images."""

    num_classes: int
    num_train: int


@dataclass(frozen=True)
class SplitFigures:
    """Sizes of a split. `num_bytes` is that of its shards, `picture_bytes` that of its images in them."""

    asked: float
    ratio: float
    num_samples: int
    num_classes: int
    num_shards: int
    num_bytes: int
    picture_bytes: int


@dataclass(frozen=True)
class RejectFigures:
    """Number of images that were rejected for one reason, and the keys of some."""

    count: int
    examples: list[str]


@dataclass(frozen=True)
class DatasetFigures:
    """All figures of a dataset. The fields from `view_of` to `counts` are those of the manifest."""

    title: str
    view_of: ViewOrigin | None
    source: SourceEntry
    plan: PlanEntry
    recipe: dict[str, Any]
    license: str
    fingerprint: str
    content_sha256: str
    counts: Counts
    classes: ClassFigures
    bands: dict[str, Band]
    splits: dict[str, SplitFigures]
    rejects: dict[str, RejectFigures]
    census: Census
    quality: Quality

    @property
    def is_view(self) -> bool:
        """Whether the dataset is a view, whose shards also hold other samples."""
        return self.view_of is not None

    @property
    def origin(self) -> SubsetOrigin | None:
        """What a view or a copy records about the dataset it was chosen from; None for any other dataset."""
        return self.view_of or self.source.get("subset_of")

    def megabytes(self, split: SplitFigures) -> float:
        """Return the size of the shards of a split, or of the images if this is a view."""
        return (split.picture_bytes if self.is_view else split.num_bytes) / 1e6

    def as_json(self) -> dict[str, Any]:
        """Return the content of report.json: all figures, those of `census` and `quality` beside the others."""
        figures = asdict(self)
        census, quality = figures.pop("census"), figures.pop("quality")
        return {**figures, **census, **quality}


def read_figures(dataset: ShardedDataset, *, workers: int | None = None, quiet: bool = True) -> DatasetFigures:
    """Return every figure of a dataset; near duplicates are compared by `workers` threads.

    Raises DatasetError if a file of the dataset cannot be read.
    """
    manifest = dataset.manifest
    return DatasetFigures(
        title=" ".join(manifest["title"].split()) or "Image shards",
        view_of=manifest.get("view_of"),
        source=manifest["source"],
        plan=manifest["plan"],
        recipe=manifest["recipe"],
        license=manifest["license"],
        fingerprint=manifest["fingerprint"],
        content_sha256=manifest["content_sha256"],
        counts=manifest["counts"],
        classes=_class_figures(manifest, dataset.classes, dataset.dropped_classes()),
        bands=_bands(dataset.classes["train"]),
        splits={split: _split_figures(dataset, split) for split in dataset.splits},
        rejects={
            str(reason): RejectFigures(len(rows), rows["key"].head(_EXAMPLES).tolist())
            for reason, rows in dataset.rejects().groupby("reason")
        },
        census=take_census(dataset),
        quality=assess(dataset, workers=workers, quiet=quiet),
    )


def gini(counts: NDArray[np.int64]) -> float:
    """Return the Gini coefficient of class sizes, int64 [K]: 0 if all are equal, near 1 if one class has nearly all."""
    ascending = np.sort(counts)
    ranks = np.arange(1, len(counts) + 1)
    return float((2 * ranks - len(counts) - 1) @ ascending / (len(counts) * ascending.sum()))


def _class_figures(manifest: Manifest, classes: pd.DataFrame, dropped: pd.DataFrame) -> ClassFigures:
    origin = manifest.get("view_of") or manifest["source"].get("subset_of")
    listed = np.sort(classes["listed"].to_numpy(np.int64))[::-1]
    before_the_rule = np.concatenate([listed, dropped["listed"].to_numpy(np.int64)])
    return ClassFigures(
        kept=len(classes),
        dropped=len(dropped) + (origin["removed"]["classes"] if origin else 0),
        largest=int(listed.max()),
        smallest=int(listed.min()),
        median=float(np.median(listed)),
        imbalance_ratio=round(float(listed.max() / listed[listed > 0].min()), 4),
        gini=round(gini(listed), 4),
        gini_before_the_rule=round(gini(before_the_rule), 4),
        half_of_images_in=int(np.searchsorted(listed.cumsum(), listed.sum() / 2) + 1),
    )


def _bands(num_train: "pd.Series[int]") -> dict[str, Band]:
    """Return the bands of classes by their number of training images."""
    rows_of_band = {
        "many": num_train > MANY_ABOVE,
        "medium": num_train.between(FEW_BELOW, MANY_ABOVE),
        "few": num_train < FEW_BELOW,
    }
    return {name: Band(int(rows.sum()), int(num_train[rows].sum())) for name, rows in rows_of_band.items()}


def _split_figures(dataset: ShardedDataset, split: str) -> SplitFigures:
    entry = dataset.manifest["splits"][split]
    return SplitFigures(
        asked=dataset.manifest["plan"]["split"][split],
        ratio=round(entry["num_samples"] / len(dataset), 6),
        num_samples=entry["num_samples"],
        num_classes=int((dataset.classes[split] > 0).sum()),
        num_shards=len(entry["shards"]),
        num_bytes=entry["num_bytes"],
        picture_bytes=int(pc.sum(dataset.index_table(split, ["jpg_size"])["jpg_size"]).as_py()),
    )
