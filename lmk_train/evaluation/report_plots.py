"""The plots of the report of a run."""

import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.ticker import MaxNLocator

from lmk_data.report import page
from lmk_train.evaluation.evaluated import EvaluatedSplit, TauSweep

_MAX_VECTOR_DOTS = 2000  # more dots are drawn as one raster image
_MAX_NAMED_CLASSES = 30
_MAX_NAME_LENGTH = 24


def loss_plot(epochs: pd.DataFrame) -> Markup:
    """Return the training loss by epoch."""
    drawn, axes = page.new_figure(2.8)
    axes.plot(epochs["epoch"], epochs["train_loss"], color=page.ACCENT, marker="o", markersize=3)
    axes.set(xlabel="epoch", ylabel="training loss", ylim=(0, None))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return page.figure(drawn, "Loss on the augmented training images, averaged over each epoch.")


def accuracy_plot(epochs: pd.DataFrame) -> Markup:
    """Return training accuracy, validation accuracy and validation macro F1 by epoch, as far as they are known."""
    drawn, axes = page.new_figure(2.8)
    styles = {
        "train_accuracy": ("training accuracy", page.MUTED, "-"),
        "val_accuracy": ("validation accuracy", page.ACCENT, "-"),
        "val_macro_f1": ("validation macro F1", page.ACCENT, "--"),
    }
    for name, (label, color, style) in styles.items():
        if name in epochs:
            axes.plot(epochs["epoch"], epochs[name], style, color=color, marker="o", markersize=3, label=label)
    axes.set(xlabel="epoch", ylim=(0, 1))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=len(styles))  # above the curves
    return page.figure(drawn, "Accuracy and macro F1 after each epoch.")


def throughput_plot(steps: pd.DataFrame) -> Markup:
    """Return images per second over training, with the average shares of waiting, copying and computing."""
    drawn, axes = page.new_figure(2.4)
    axes.plot(steps["step"], steps["images_per_second"], color=page.ACCENT)
    axes.set(xlabel="optimiser update", ylabel="images per second", ylim=(0, None))
    shares = ", ".join(f"{steps[f'{part}_share'].mean():.1%} {part}" for part in ("data", "copy", "compute"))
    return page.figure(drawn, f"Training throughput. Average shares of the time: {shares}.")


def f1_histogram(evaluated: EvaluatedSplit) -> Markup:
    """Return a histogram of F1 over the classes with images in the split."""
    f1 = evaluated.classes.loc[evaluated.classes["support"] > 0, "f1"]
    drawn, axes = page.new_figure(2.8)
    axes.hist(f1, bins=np.linspace(0, 1, 21).tolist(), color=page.ACCENT)
    axes.set(xlabel="F1 of a class", ylabel="classes", xlim=(0, 1))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    return page.figure(drawn, f"F1 of the {len(f1):,} classes with {evaluated.split} images.")


def f1_by_size_plot(evaluated: EvaluatedSplit) -> Markup:
    """Return F1 against the number of training images of a class, with means of classes of similar size."""
    classes = evaluated.classes[evaluated.classes["support"] > 0]
    sizes = classes["train"].clip(lower=1).to_numpy(np.float64)
    drawn, axes = page.new_figure(2.8)
    axes.scatter(
        sizes,
        classes["f1"],
        s=14,
        color=page.ACCENT,
        alpha=min(0.8, 30 / len(classes) ** 0.5),
        linewidths=0,
        rasterized=len(classes) > _MAX_VECTOR_DOTS,
    )
    edges = np.unique(np.geomspace(sizes.min(), sizes.max() + 1, 9))
    bins = np.digitize(sizes, edges)
    means = pd.DataFrame({"size": sizes, "f1": classes["f1"].to_numpy()}).groupby(bins).mean()
    axes.plot(means["size"], means["f1"], color=page.MUTED, marker="o", markersize=4, linewidth=1.5)
    axes.set(xscale="log", xlabel="training images of a class (log scale)", ylabel="F1", ylim=(-0.03, 1.03))
    page.label_log_axis(axes.xaxis, edges[-1] / edges[0])
    return page.figure(drawn, "F1 against class size. Line: mean of classes of similar size.")


def tau_plot(sweep: TauSweep) -> Markup:
    """Return accuracy against macro F1 for each tau, with a ring around the tau that was picked."""
    rows, picked = sweep.rows, sweep.picked
    drawn, axes = page.new_figure(3.0)
    axes.plot(rows["accuracy"], rows["macro_f1"], color=page.ACCENT, marker="o", markersize=4)
    for tau, accuracy, macro_f1 in rows[["tau", "accuracy", "macro_f1"]].itertuples(index=False):
        axes.annotate(f"{tau:g}", (accuracy, macro_f1), xytext=(4, 4), textcoords="offset points", fontsize=8)
    axes.set(xlabel="accuracy", ylabel="macro F1")
    caption = "Accuracy and macro F1 of the logits minus tau times the log prior, for each tau."
    if picked is None:
        return page.figure(drawn, f"{caption} There was no validation split to pick one on.")
    best = rows[rows["tau"] == picked]
    axes.plot(best["accuracy"], best["macro_f1"], color=page.MUTED, marker="o", markersize=9, fillstyle="none")
    return page.figure(drawn, f"{caption} Ring: tau {picked:g}, which has the best macro F1 on {sweep.picked_on}.")


def confusion_plot(evaluated: EvaluatedSplit) -> Markup:
    """Return the confusion matrix: rows are the true classes, the largest first, each as shares of its images."""
    classes, confusion = evaluated.classes, evaluated.confusion
    order = classes.sort_values(["train", "label"], ascending=[False, True])["label"].to_numpy()
    position = np.argsort(order)
    counts = np.zeros((len(order), len(order)))
    counts[position[confusion["target"]], position[confusion["prediction"]]] = confusion["count"]
    shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    drawn, axes = page.new_figure(6.4)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    drawn.colorbar(image, ax=axes, shrink=0.6, label="share of the true class")
    axes.set(xlabel="predicted class, largest first", ylabel="true class, largest first")
    if len(order) <= _MAX_NAMED_CLASSES:
        names = [name[:_MAX_NAME_LENGTH] for name in classes["shown"][order]]
        axes.set_xticks(range(len(order)), names, rotation=90, fontsize=8, parse_math=False)
        axes.set_yticks(range(len(order)), names, fontsize=8, parse_math=False)
    return page.figure(drawn, "Confusion matrix in descending order of class size. Each row adds up to 1.")
