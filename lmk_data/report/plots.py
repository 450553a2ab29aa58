"""The plots of the dataset report, drawn from its figures."""

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from lmk_data.report import page
from lmk_data.report.census import MAX_MARGIN, ClassSizes, Coverage, Histogram, Margins, SizeCounts
from lmk_data.system.terminal import counted

_HISTOGRAMS = {
    "width": "source width in pixels",
    "height": "source height in pixels",
    "megapixels": "source megapixels",
    "aspect": "source width / height",
    "stored_kb": "KB as stored",
}


def class_size_plot(sizes: ClassSizes) -> Markup:
    """Return class sizes in descending order on a log scale, with the classes that the rule left out."""
    from matplotlib.ticker import MaxNLocator

    drawn, axes = page.new_figure()
    ranks, images, num_kept = _ranks(sizes.kept, 0)
    axes.plot(ranks, images, color=page.ACCENT, linewidth=2, label="kept")
    axes.fill_between(ranks, images, 1, color=page.ACCENT, alpha=0.25, linewidth=0)
    if sizes.dropped.images:
        ranks, images, _ = _ranks(sizes.dropped, num_kept)
        axes.plot(ranks, images, color=page.MUTED, linewidth=2, label="left out by the rule")
        axes.axvline(num_kept + 0.5, color=page.MUTED, linestyle=":", linewidth=1)
        axes.legend(frameon=False)
    axes.set(yscale="log", ylim=(1, None), xlim=(1, None), xlabel="class, largest first", ylabel="images")
    page.label_log_axis(axes.yaxis, sizes.kept.images[0])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return page.figure(drawn, "Images per class in descending order (log scale).")


def coverage_plot(coverage: Coverage) -> Markup:
    """Return the share of the images in the largest classes, against the share of the classes."""
    drawn, axes = page.new_figure(2.6)
    classes, images = (np.array(share) * 100 for share in (coverage.classes, coverage.images))
    axes.plot(classes, images, color=page.ACCENT, linewidth=2, clip_on=False)
    axes.plot([0, 100], [0, 100], color=page.MUTED, linestyle=":", linewidth=1)
    axes.set(xlim=(0, 100), ylim=(0, 100), xlabel="% of classes, largest first", ylabel="% of images")
    return page.figure(drawn, "Share of the images in the largest classes. Dotted: all classes of equal size.")


def margin_plot(margins: Margins) -> Markup:
    """Return the LDAM margin of a class against its number of training images."""
    sizes, num_classes = np.array(margins.images), np.array(margins.num_classes)
    if not len(sizes):
        return page.paragraph("No class has training images, so none has a margin.")
    drawn, axes = page.new_figure(2.6)
    curve = np.geomspace(sizes.min(), max(sizes.max(), sizes.min() + 1), 200)
    axes.plot(curve, MAX_MARGIN * (curve / sizes.min()) ** -0.25, color=page.MUTED, linewidth=1)
    marker = np.clip(12 * num_classes**0.5, 24, 240)
    axes.scatter(sizes, margins.margin, s=marker, color=page.ACCENT, alpha=0.6, linewidths=0)
    axes.set(xscale="log", ylim=(0, None), xlabel="training images of a class (log scale)", ylabel="LDAM margin")
    page.label_log_axis(axes.xaxis, curve[-1] / curve[0])
    caption = f"Margin of --loss ldam by class size: C / n^(1/4), at most {MAX_MARGIN}. Larger dots: more classes."
    return page.figure(drawn, caption)


def picture_plots(histograms: dict[str, Histogram]) -> list[Markup]:
    """Return histograms of sizes and shapes of the sources, and of stored bytes."""
    return [
        _histogram_plot(histograms[name], quantity, log=name != "stored_kb") for name, quantity in _HISTOGRAMS.items()
    ]


def _histogram_plot(histogram: Histogram, quantity: str, *, log: bool) -> Markup:
    drawn, axes = page.new_figure(2.2)
    axes.stairs(histogram.counts, histogram.edges, fill=True, color=page.ACCENT)
    if log:
        axes.set(xscale="log")
        page.label_log_axis(axes.xaxis, histogram.edges[-1] / histogram.edges[0])
    axes.set(ylabel="images", xlabel=f"{quantity} (log scale)" if log else quantity)
    return page.figure(drawn, f"All {counted(sum(histogram.counts), 'image')} by {quantity}.")


def _ranks(sizes: SizeCounts, num_before: int) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """Return the curve of class sizes, one point at both ends of each run of equal classes.

    Returns ranks and images, int64 [2 x number of sizes], and the last rank. `num_before` classes are larger.
    """
    num_classes = np.array(sizes.num_classes)
    last = num_before + num_classes.cumsum()
    ranks = np.column_stack([last - num_classes + 1, last]).ravel()
    return ranks, np.repeat(sizes.images, 2), int(last[-1])
