"""The plots of the dataset report."""

from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from lmk_data import page
from lmk_data.dataset import ShardedDataset

_BINS = 60
_MAX_MARGIN = 0.5  # the default of the trainer's --ldam-max-margin


def frequency_plots(dataset: ShardedDataset) -> list[Markup]:
    """Class sizes in descending order on a log scale with the cut, and the share of images they cover."""
    kept = np.sort(dataset.classes["listed"].to_numpy(np.int64))[::-1]
    dropped = np.sort(dataset.dropped_classes()["listed"].to_numpy(np.int64))[::-1]
    drawn, axes = page.new_figure()
    ranks = np.arange(1, len(kept) + len(dropped) + 1)
    at = _thinned(len(kept))
    axes.plot(ranks[: len(kept)][at], kept[at], color=page.ACCENT, linewidth=2, label="kept")
    axes.fill_between(ranks[: len(kept)][at], kept[at], 1, color=page.ACCENT, alpha=0.25, linewidth=0)
    if len(dropped):
        at = _thinned(len(dropped))
        axes.plot(ranks[len(kept) :][at], dropped[at], color=page.MUTED, linewidth=2, label="left out by the rule")
        axes.axvline(len(kept) + 0.5, color=page.MUTED, linestyle=":", linewidth=1)
        axes.legend(frameon=False)
    axes.set(yscale="log", ylim=(1, None), xlim=(1, None), xlabel="class, the largest first", ylabel="images")
    frequency = page.figure(drawn, "Images per class in descending order (log scale).")
    drawn, axes = page.new_figure(2.6)
    share = np.arange(len(kept) + 1) / len(kept)
    covered = np.concatenate(([0], kept.cumsum())) / kept.sum()
    at = _thinned(len(share))
    axes.plot(share[at] * 100, covered[at] * 100, color=page.ACCENT, linewidth=2)
    axes.plot([0, 100], [0, 100], color=page.MUTED, linestyle=":", linewidth=1)
    axes.set(xlim=(0, 100), ylim=(0, 100), xlabel="% of classes, the largest first", ylabel="% of images")
    caption = "Share of the images that the largest classes hold; dotted, if all were equal."
    return [frequency, page.figure(drawn, caption)]


def margin_plot(dataset: ShardedDataset) -> Markup:
    """The margin that LDAM gives a class of n training images, C / n^(1/4), with C such that the largest is 0.5."""
    train = dataset.classes["train"].to_numpy(np.int64)
    if not train.any():
        return page.paragraph("No class has training images, so none has a margin.")
    sizes, classes = np.unique(train[train > 0], return_counts=True)
    margin = _MAX_MARGIN * (sizes / sizes.min()) ** -0.25
    drawn, axes = page.new_figure(2.6)
    curve = np.geomspace(sizes.min(), max(sizes.max(), sizes.min() + 1), 200)
    axes.plot(curve, _MAX_MARGIN * (curve / sizes.min()) ** -0.25, color=page.MUTED, linewidth=1)
    axes.scatter(sizes, margin, s=np.clip(12 * classes**0.5, 24, 240), color=page.ACCENT, alpha=0.6, linewidths=0)
    axes.set(xscale="log", ylim=(0, None), xlabel="training images of a class (log scale)", ylabel="LDAM margin")
    axes.xaxis.set_major_formatter("{x:g}")
    caption = (
        "The margin that the LDAM loss asks of each class: C / n^(1/4), the largest 0.5. A dot for each class size, "
        "larger where more classes have it."
    )
    return page.figure(drawn, caption)


def picture_plots(pictures: pd.DataFrame) -> list[Markup]:
    """Histograms of sizes and shapes of the sources and of stored bytes, from the rows of `census.read_pictures`."""
    return [
        _histogram(pictures["megapixels"], "megapixels of the source (log scale)", log=True),
        _histogram(pictures["aspect"], "width / height of the source (log scale)", log=True),
        _histogram(pictures["stored_kb"], "KB of a stored picture", log=False),
    ]


def _histogram(values: "pd.Series[float]", caption: str, *, log: bool) -> Markup:
    from matplotlib.ticker import LogLocator, NullLocator

    drawn, axes = page.new_figure(2.2)
    numbers = values.to_numpy(np.float64)
    low = float(numbers.min())
    high = max(float(numbers.max()), low * 1.01)
    edges = np.geomspace(low, high, _BINS + 1) if log else np.linspace(low, high, _BINS + 1)
    edges[0], edges[-1] = low, high  # geomspace may miss them by a rounding
    counts, _ = np.histogram(numbers, edges)
    axes.stairs(counts, edges, fill=True, color=page.ACCENT)
    if log:
        axes.set(xscale="log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter("{x:g}")
    axes.set(ylabel="images", xlabel=caption)
    return page.figure(drawn, f"All {len(numbers):,} images by {caption}.")


def _thinned(number: int) -> "np.ndarray[Any, np.dtype[np.int64]]":
    """Up to 2,000 places along a curve, dense at its head, both ends included."""
    places = np.unique(np.geomspace(1, number, 1000).round().astype(np.int64)) - 1
    return np.union1d(places, np.linspace(0, number - 1, min(number, 1000)).round().astype(np.int64))
