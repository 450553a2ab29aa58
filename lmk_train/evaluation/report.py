"""The report of a run: one page of curves, confusion, classes that do well and badly, and confident mistakes."""

import io
import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.ticker import MaxNLocator
from PIL import Image

from lmk_data.dataset import ShardedDataset
from lmk_data.report import page
from lmk_data.system.files import write_bytes
from lmk_train.evaluation.evaluate import SOURCE, same_source
from lmk_train.evaluation.metrics import FEW_BELOW, MANY_ABOVE, spelled
from lmk_train.runs.folder import RunFolder

_MATRIX_CLASSES = 100
_PAIRS, _MISTAKES, _CLASSES, _PICTURES = 10, 12, 5, 6
_THUMBNAIL = 112
_MOST_VECTORS = 2000  # dots of a figure; more are one picture in it
_TILES = ("accuracy", "top5_accuracy", "macro_f1", "gap")
_SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class _Judged:
    """What an evaluation of one split left in the run's folder."""

    split: str
    metrics: dict[str, float | int | None]
    source: dict[str, str]
    predictions: pd.DataFrame
    classes: pd.DataFrame
    confusion: pd.DataFrame


def write_run_report(run: Path, dataset: ShardedDataset, split: str) -> Path:
    """Write report/index.html of the test split into the run's folder, or report/<split>.html of another one.

    The split has been evaluated; `dataset` has its pictures. Pages of other splits of the same evaluated checkpoint and
    dataset are written anew, since each shows the metrics of all.
    """
    for other in _judged_with(run, split):
        if other != split and RunFolder(run).report(other).exists():
            _write_page(run, dataset, other)
    return _write_page(run, dataset, split)


def _judged_with(run: Path, split: str) -> dict[str, dict[str, Any]]:
    """What `eval-<split>.json` says, of each split that the same checkpoint was evaluated on in the same dataset."""
    found = {
        name: json.loads(path.read_text()) for name in _SPLITS if (path := RunFolder(run).evaluation(name)).exists()
    }
    return {name: said for name, said in found.items() if same_source(said, found[split])}


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text(errors="replace").splitlines():
        with suppress(ValueError):  # the last one may be cut short
            yield json.loads(line)


def _write_page(run: Path, dataset: ShardedDataset, split: str) -> Path:
    folder = RunFolder(run)
    config = json.loads(folder.config.read_text())
    judged = _read(run, split)
    lines = list(_lines(folder.metrics))
    sections = [
        page.Section("In short", _summary(run, judged)),
        page.Section("Training", _curves(lines)),
        page.Section("Classes", _class_plots(judged)),
        page.Section("What is taken for what", _confusions(judged, dataset)),
        page.Section("Large classes that do badly, small ones that do well", _surprises(judged, dataset)),
        page.Section("The most confident mistakes", _mistakes(judged, dataset)),
        page.Section("Every class", [_class_table(judged)]),
        page.Section("Configuration", [_configuration(config, judged)]),
    ]
    if (sweep := folder.tau_sweep(split)).exists():
        sections.insert(3, page.Section("Post-hoc logit adjustment", [_tau_plot(json.loads(sweep.read_text()))]))
    subtitle = f"{config['model']}, {config['loss']}, on {judged.metrics['num_samples']:,} {split} images"
    if judged.source["dataset"] != judged.source["trained_on"]:
        subtitle += f" of another dataset than it was trained on: {judged.source['shards']}"
    path = folder.report(split)
    path.parent.mkdir(exist_ok=True)
    write_bytes(path, page.render_page(run.resolve().name, subtitle, sections).encode())
    return path


def _read(run: Path, split: str) -> _Judged:
    folder = RunFolder(run)
    paths = (folder.predictions(split), folder.per_class(split), folder.confusion(split))
    predictions, classes, confusion = (pd.read_parquet(path) for path in paths)
    classes["shown"] = [_shown(name, i) for name, i in zip(classes["name"], classes["landmark_id"], strict=True)]
    metrics = json.loads(folder.evaluation(split).read_text())
    source = {name: metrics.pop(name) for name in SOURCE}
    return _Judged(split, metrics, source, predictions[predictions["target"].notna()], classes, confusion)


def _shown(name: object, landmark_id: object) -> str:
    return str(name) if isinstance(name, str) else str(landmark_id)


def _thumbnail(dataset: ShardedDataset, key: str) -> bytes:
    with Image.open(io.BytesIO(dataset.sample(key).jpeg), formats=("JPEG",)) as image:
        image.thumbnail((_THUMBNAIL, _THUMBNAIL))
        sink = io.BytesIO()
        image.save(sink, "JPEG", quality=80)
    return sink.getvalue()


def _summary(run: Path, judged: _Judged) -> list[Markup]:
    parts = [page.key_figures((_percent(judged.metrics[name]), spelled(name)) for name in _TILES)]
    found = _judged_with(run, judged.split)
    rows = [
        (spelled(name), *(_number(metrics.get(name)) for metrics in found.values()))
        for name in judged.metrics
        if any(metrics.get(name) is not None for metrics in found.values())
    ]
    parts.append(page.table(("metric", *found), rows))
    parts.append(
        page.paragraph(
            f"Many, medium, few: mean recall of the classes with more than {MANY_ABOVE}, {FEW_BELOW} to {MANY_ABOVE} "
            f"and fewer than {FEW_BELOW} training images. Macro averages are over the classes with images in the split."
        )
    )
    return parts


def _percent(value: float | int | None) -> str:
    return "none" if value is None else f"{value:.1%}"


def _number(value: float | int | None) -> str | int | float:
    return "" if value is None else value if isinstance(value, int) else round(value, 4)


def _plural(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("" if number == 1 else "s")


def _curves(lines: list[dict[str, Any]]) -> list[Markup]:
    epochs = pd.DataFrame([line for line in lines if line["kind"] == "epoch"])
    steps = pd.DataFrame([line for line in lines if line["kind"] == "train"])
    parts = []
    if len(epochs):
        drawn, axes = page.new_figure(2.8)
        axes.plot(epochs["epoch"], epochs["train_loss"], color=page.ACCENT, marker="o", markersize=3)
        axes.set(xlabel="epoch", ylabel="training loss", ylim=(0, None))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        parts.append(page.figure(drawn, "Loss of the training split, augmented, while it was trained on."))
        drawn, axes = page.new_figure(2.8)
        shown = {
            "train_accuracy": "training accuracy",
            "val_accuracy": "validation accuracy",
            "val_macro_f1": "validation macro F1",
        }
        for (name, label), style in zip(shown.items(), ("-", "-", "--"), strict=True):
            if name in epochs:
                color = page.MUTED if name == "train_accuracy" else page.ACCENT
                axes.plot(epochs["epoch"], epochs[name], style, color=color, marker="o", markersize=3, label=label)
        axes.set(xlabel="epoch", ylim=(0, 1))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(frameon=False, loc="lower right")
        parts.append(page.figure(drawn, "Accuracy and macro F1 after each epoch."))
    if len(steps) > 1:
        drawn, axes = page.new_figure(2.4)
        axes.plot(steps["step"], steps["images_per_second"], color=page.ACCENT)
        axes.set(xlabel="update", ylabel="images a second", ylim=(0, None))
        shares = ", ".join(f"{steps[f'{what}_share'].mean():.1%} {what}" for what in ("data", "copy", "compute"))
        parts.append(page.figure(drawn, f"Throughput of the training; of its time on average: {shares}."))
    return parts


def _class_plots(judged: _Judged) -> list[Markup]:
    classes = judged.classes[judged.classes["support"] > 0]
    drawn, axes = page.new_figure(2.8)
    axes.hist(classes["f1"], bins=np.linspace(0, 1, 21).tolist(), color=page.ACCENT)
    axes.set(xlabel="F1 of a class", ylabel="classes", xlim=(0, 1))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    histogram = page.figure(drawn, f"F1 of the {len(classes):,} classes with {judged.split} images.")
    drawn, axes = page.new_figure(2.8)
    sizes = classes["train"].clip(lower=1).to_numpy(np.float64)
    axes.scatter(
        sizes,
        classes["f1"],
        s=14,
        color=page.ACCENT,
        alpha=min(0.8, 30 / len(classes) ** 0.5),
        linewidths=0,
        rasterized=len(classes) > _MOST_VECTORS,
    )
    edges = np.unique(np.geomspace(sizes.min(), sizes.max() + 1, 9))
    within = np.digitize(sizes, edges)
    means = pd.DataFrame({"size": sizes, "f1": classes["f1"].to_numpy()}).groupby(within).mean()
    axes.plot(means["size"], means["f1"], color=page.MUTED, marker="o", markersize=4, linewidth=1.5)
    axes.set(xscale="log", xlabel="training images of a class (log scale)", ylabel="F1", ylim=(-0.03, 1.03))
    axes.xaxis.set_major_formatter("{x:g}")
    return [histogram, page.figure(drawn, "F1 against class size; the line is the mean of classes of similar size.")]


def _tau_plot(found: dict[str, Any]) -> Markup:
    rows, picked = found["sweep"], found["picked"]
    table = pd.DataFrame(rows)
    drawn, axes = page.new_figure(3.0)
    axes.plot(table["accuracy"], table["macro_f1"], color=page.ACCENT, marker="o", markersize=4)
    for row in rows:
        axes.annotate(
            f"{row['tau']:g}", (row["accuracy"], row["macro_f1"]), xytext=(4, 4), textcoords="offset points", fontsize=8
        )
    axes.set(xlabel="accuracy", ylabel="macro F1")
    caption = "Accuracy against macro F1 of logits minus tau times the log prior, for each tau"
    if picked is None:
        return page.figure(drawn, f"{caption}; there was no validation split to pick one on.")
    chosen = table[table["tau"] == picked]
    axes.plot(chosen["accuracy"], chosen["macro_f1"], color=page.MUTED, marker="o", markersize=9, fillstyle="none")
    return page.figure(drawn, f"{caption}; the ring is {picked:g}, the best macro F1 on {found['picked_on']}.")


def _confusions(judged: _Judged, dataset: ShardedDataset) -> list[Markup]:
    parts = [_matrix(judged)] if len(judged.classes) <= _MATRIX_CLASSES else []
    wrong = judged.confusion[judged.confusion["target"] != judged.confusion["prediction"]]
    pairs = wrong.sort_values(["count", "target", "prediction"], ascending=[False, True, True]).head(_PAIRS)
    if not len(pairs):
        return [*parts, page.paragraph("No picture is taken for another class.")]
    rows = []
    predictions, names = judged.predictions, judged.classes["shown"]
    for target, predicted, count in pairs[["target", "prediction", "count"]].itertuples(index=False):
        keys = predictions.loc[(predictions["target"] == target) & (predictions["label_1"] == predicted), "key"]
        caption = f"{names[target]} taken for {names[predicted]}"
        rows.append(
            page.PictureRow(
                caption, _plural(count, "picture"), [_thumbnail(dataset, key) for key in keys.head(_PICTURES)]
            )
        )
    return [*parts, page.paragraph("The pairs that are confused most often:"), page.picture_rows(rows)]


def _matrix(judged: _Judged) -> Markup:
    """Rows are the true classes, the largest first, each row as shares of its images."""
    order = judged.classes.sort_values(["train", "label"], ascending=[False, True])["label"].to_numpy()
    place = np.argsort(order)
    counts = np.zeros((len(order), len(order)))
    confusion = judged.confusion
    counts[place[confusion["target"]], place[confusion["prediction"]]] = confusion["count"]
    shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    drawn, axes = page.new_figure(6.4)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    drawn.colorbar(image, ax=axes, shrink=0.6, label="share of the true class")
    axes.set(xlabel="predicted class, the largest first", ylabel="true class, the largest first")
    if len(order) <= 30:
        names = judged.classes["shown"][order]
        axes.set_xticks(range(len(order)), [name[:24] for name in names], rotation=90, fontsize=8, parse_math=False)
        axes.set_yticks(range(len(order)), [name[:24] for name in names], fontsize=8, parse_math=False)
    return page.figure(drawn, "Confusion, in descending order of class size; each row adds up to 1.")


def _surprises(judged: _Judged, dataset: ShardedDataset) -> list[Markup]:
    """The worst of the many-shot classes and the best of the few-shot ones; where there are none, of the classes above
    and below the median size."""
    classes = judged.classes[judged.classes["support"] > 0]
    sizes, median = classes["train"], classes["train"].median()
    is_large = sizes > (MANY_ABOVE if (sizes > MANY_ABOVE).any() else median)
    is_small = sizes < (FEW_BELOW if (sizes < FEW_BELOW).any() else median)
    badly = classes[is_large & (classes["f1"] < 1)].sort_values(["f1", "train"], ascending=[True, False])
    well = classes[is_small & (classes["f1"] > 0)].sort_values(["f1", "train"], ascending=[False, True])
    predictions, rows = judged.predictions, []
    for what, chosen in (("large", badly.head(_CLASSES)), ("small", well.head(_CLASSES))):
        columns = (chosen[name] for name in ("label", "shown", "train", "f1", "support"))
        for label, shown, train, f1, support in zip(*columns, strict=True):
            keys = predictions.loc[predictions["target"] == label, "key"].head(_PICTURES)
            note = f"{what}: {_plural(int(train), 'training image')}, F1 {f1:.2f} on {support:,}"
            rows.append(page.PictureRow(str(shown), note, [_thumbnail(dataset, key) for key in keys]))
    if not rows:
        return [page.paragraph("No large class does badly, and no small one well.")]
    return [page.picture_rows(rows)]


def _mistakes(judged: _Judged, dataset: ShardedDataset) -> list[Markup]:
    predictions, names = judged.predictions, judged.classes["shown"]
    wrong = predictions[predictions["target"] != predictions["label_1"]]
    worst = wrong.sort_values(["probability_1", "key"], ascending=[False, True]).head(_MISTAKES)
    if not len(worst):
        return [page.paragraph("Every picture of the split is recognised.")]
    rows = []
    for key, target, predicted, probability in zip(
        worst["key"], worst["target"].astype(int), worst["label_1"], worst["probability_1"], strict=True
    ):
        caption = f"{names[target]} taken for {names[predicted]}"
        rows.append(page.PictureRow(caption, f"{key}, probability {probability:.3f}", [_thumbnail(dataset, key)]))
    return [page.picture_rows(rows)]


def _class_table(judged: _Judged) -> Markup:
    classes = judged.classes
    figures = [[f"{value:.3f}" for value in classes[name]] for name in ("precision", "recall", "f1")]
    counted = [classes[name].tolist() for name in ("train", "support", "predicted", "correct")]
    header = ("class", "landmark id", "train", judged.split, "predicted", "correct", "precision", "recall", "F1")
    ids = [str(landmark_id) for landmark_id in classes["landmark_id"]]
    return page.sortable_table(header, [classes["shown"].tolist(), ids, *counted, *figures])


def _configuration(config: dict[str, Any], judged: _Judged) -> Markup:
    rows = [(name.replace("_", " "), "" if value is None else str(value)) for name, value in config.items()]
    source = judged.source
    rows += [
        ("content of the dataset trained on", source["trained_on"]),
        ("content of the dataset evaluated", source["dataset"]),
        ("dataset evaluated", source["shards"]),
        ("checkpoint evaluated", source["checkpoint"]),
    ]
    return page.table(("option", "value"), rows)
