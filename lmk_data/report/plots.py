"""The plots of the dataset report, drawn from its figures."""

from typing import Any

import numpy as np
from markupsafe import Markup

from lmk_data.report import page
from lmk_data.report.census import MAX_MARGIN

_HISTOGRAMS = {
    "width": "width of the source in pixels",
    "height": "height of the source in pixels",
    "megapixels": "megapixels of the source",
    "aspect": "width / height of the source",
    "stored_kb": "KB of a stored picture",
}


def frequency_plots(figures: dict[str, Any]) -> list[Markup]:
    """Class sizes in descending order on a log scale with the cut, and the share of images they cover."""
    kept, dropped = figures["class_sizes"]["kept"], figures["class_sizes"]["dropped"]
    drawn, axes = page.new_figure()
    ranks, sizes, num_kept = _ranked(kept, 0)
    axes.plot(ranks, sizes, color=page.ACCENT, linewidth=2, label="kept")
    axes.fill_between(ranks, sizes, 1, color=page.ACCENT, alpha=0.25, linewidth=0)
    if dropped["images"]:
        ranks, sizes, _ = _ranked(dropped, num_kept)
        axes.plot(ranks, sizes, color=page.MUTED, linewidth=2, label="left out by the rule")
        axes.axvline(num_kept + 0.5, color=page.MUTED, linestyle=":", linewidth=1)
        axes.legend(frameon=False)
    axes.set(yscale="log", ylim=(1, None), xlim=(1, None), xlabel="class, the largest first", ylabel="images")
    frequency = page.figure(drawn, "Images per class in descending order (log scale).")
    drawn, axes = page.new_figure(2.6)
    share = {name: np.array(values) * 100 for name, values in figures["coverage"].items()}
    axes.plot(share["classes"], share["images"], color=page.ACCENT, linewidth=2)
    axes.plot([0, 100], [0, 100], color=page.MUTED, linestyle=":", linewidth=1)
    axes.set(xlim=(0, 100), ylim=(0, 100), xlabel="% of classes, the largest first", ylabel="% of images")
    caption = "Share of the images that the largest classes hold; dotted, if all were equal."
    return [frequency, page.figure(drawn, caption)]


def margin_plot(figures: dict[str, Any]) -> Markup:
    """The margin that LDAM gives a class by its number of training images."""
    sizes, classes = (np.array(figures["margins"][name]) for name in ("images", "num_classes"))
    if not len(sizes):
        return page.paragraph("No class has training images, so none has a margin.")
    drawn, axes = page.new_figure(2.6)
    curve = np.geomspace(sizes.min(), max(sizes.max(), sizes.min() + 1), 200)
    axes.plot(curve, MAX_MARGIN * (curve / sizes.min()) ** -0.25, color=page.MUTED, linewidth=1)
    marker = np.clip(12 * classes**0.5, 24, 240)
    axes.scatter(sizes, figures["margins"]["margin"], s=marker, color=page.ACCENT, alpha=0.6, linewidths=0)
    axes.set(xscale="log", ylim=(0, None), xlabel="training images of a class (log scale)", ylabel="LDAM margin")
    axes.xaxis.set_major_formatter("{x:g}")
    caption = (
        "The margin that the LDAM loss asks of each class: C / n^(1/4), the largest 0.5. A dot for each class size, "
        "larger where more classes have it."
    )
    return page.figure(drawn, caption)


def picture_plots(figures: dict[str, Any]) -> list[Markup]:
    """Histograms of sizes and shapes of the sources and of stored bytes."""
    return [
        _histogram(figures["histograms"][name], caption, log=name != "stored_kb")
        for name, caption in _HISTOGRAMS.items()
    ]


def _histogram(found: dict[str, Any], caption: str, *, log: bool) -> Markup:
    from matplotlib.ticker import LogLocator, NullLocator

    drawn, axes = page.new_figure(2.2)
    axes.stairs(found["counts"], found["edges"], fill=True, color=page.ACCENT)
    if log:
        axes.set(xscale="log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter("{x:g}")
    axes.set(ylabel="images", xlabel=f"{caption} (log scale)" if log else caption)
    return page.figure(drawn, f"All {sum(found['counts']):,} images by {caption}.")


def _ranked(by_size: dict[str, list[int]], before: int) -> "tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], int]":
    """Ranks and sizes at both ends of each run of classes of one size, and the last rank; `before` come first."""
    num_classes = np.array(by_size["num_classes"])
    last = before + num_classes.cumsum()
    ranks = np.column_stack([last - num_classes + 1, last]).ravel()
    return ranks, np.repeat(by_size["images"], 2), int(last[-1])
