"""The sections of the report of a run."""

from collections.abc import Iterable
from pathlib import Path

import pandas as pd
from markupsafe import Markup

from lmk_data.dataset import ShardedDataset
from lmk_data.dataset.format import FEW_BELOW, MANY_ABOVE
from lmk_data.errors import UserError
from lmk_data.report import page
from lmk_data.system.terminal import counted
from lmk_train.evaluation.evaluated import EvaluatedSplit, RunRecord, TauSweep
from lmk_train.evaluation.metrics import spelled
from lmk_train.evaluation.report_plots import (
    accuracy_plot,
    confusion_plot,
    f1_by_size_plot,
    f1_histogram,
    loss_plot,
    tau_plot,
    throughput_plot,
)

_MAX_MATRIX_CLASSES = 100
_NUM_PAIRS, _NUM_MISTAKES, _NUM_CLASSES, _NUM_PICTURES = 10, 12, 5, 6
_SIDE_BY_SIDE = "To look at these classes side by side, and mark wrong labels:"
_REASONS = "To find wrong labels, outliers, and classes that are several things, which make a large class weak:"
_TILES = ("accuracy", "top5_accuracy", "macro_f1", "gap")
_METRIC_NAMES = {
    "num_samples": "images",
    "num_unknown": "images of unknown classes",
    "top5_accuracy": "top-5 accuracy",
    "gap": "GAP",
    "temperature": "temperature, fitted on validation",
    "calibrated_error": "calibration error at this temperature",
    "calibrated_gap": "GAP at this temperature",
}


def run_sections(record: RunRecord, dataset: ShardedDataset, run: Path) -> list[page.Section]:
    """Return the sections of the page in their order; `dataset` has the images that it shows."""
    evaluated = record.evaluated
    browse = page.command("lmk-shard", "browse", dataset.location, "--run", str(run))
    inspect = page.command("lmk-inspect", str(run), "--shards", dataset.location)
    sweep = [page.Section("Post-hoc logit adjustment", _sweep(record.sweep))] if record.sweep else []
    return [
        page.Section("Summary", _summary(record)),
        page.Section("Training", _curves(record)),
        page.Section("F1 by class", [f1_histogram(evaluated), f1_by_size_plot(evaluated)]),
        *sweep,
        page.Section("Confusions", [*_confusions(evaluated, dataset), page.paragraph(_SIDE_BY_SIDE), browse]),
        page.Section(
            "Weak large classes and strong small classes",
            [_surprises(evaluated, dataset), page.paragraph(_REASONS), inspect],
        ),
        page.Section("Most confident mistakes", [_mistakes(evaluated, dataset)]),
        page.Section("All classes", [_class_table(evaluated)]),
        page.Section("Configuration", [_configuration(record)]),
    ]


def _sweep(sweep: TauSweep) -> list[Markup]:
    """Return the plot of the logit adjustment, and a table of the other post-hoc methods if there are any."""
    if not sweep.others:
        return [tau_plot(sweep)]
    rows = [
        (method, "" if tau is None else f"{tau:g}", *(f"{figure:.4f}" for figure in figures))
        for method, tau, *figures in sweep.others
    ]
    return [tau_plot(sweep), page.table(("other methods", "tau", "accuracy", "macro F1", "macro recall"), rows)]


def _summary(record: RunRecord) -> list[Markup]:
    metrics = record.evaluated.metrics
    rows = [
        (_metric_name(name), *(_metric_value(values.get(name)) for values in record.metrics.values()))
        for name in metrics
        if any(values.get(name) is not None for values in record.metrics.values())
    ]
    explanation = (
        f"Many, medium and few: mean recall of the classes with more than {MANY_ABOVE}, {FEW_BELOW} to {MANY_ABOVE} "
        f"and fewer than {FEW_BELOW} training images. Macro averages are over the classes with images in the split. "
        "GAP: global average precision."
    )
    return [
        page.key_figures((_metric_percent(metrics[name]), _metric_name(name)) for name in _TILES),
        page.table(("metric", *record.metrics), rows),
        page.paragraph(explanation),
    ]


def _metric_name(name: str) -> str:
    return _METRIC_NAMES.get(name, spelled(name))


def _metric_percent(value: float | int | None) -> str:
    return "none" if value is None else f"{value:.1%}"


def _metric_value(value: float | int | None) -> str | int:
    if value is None or isinstance(value, int):
        return "" if value is None else value
    return page.Number(f"{value:.4f}")


def _curves(record: RunRecord) -> list[Markup]:
    parts = [loss_plot(record.epochs), accuracy_plot(record.epochs)] if len(record.epochs) else []
    return [*parts, throughput_plot(record.steps)] if len(record.steps) > 1 else parts


def _confusions(evaluated: EvaluatedSplit, dataset: ShardedDataset) -> list[Markup]:
    """Return the confusion matrix unless there are many classes, and the pairs that are confused most often."""
    parts = [confusion_plot(evaluated)] if len(evaluated.classes) <= _MAX_MATRIX_CLASSES else []
    wrong = evaluated.confusion[evaluated.confusion["target"] != evaluated.confusion["prediction"]]
    pairs = wrong.sort_values(["count", "target", "prediction"], ascending=[False, True, True]).head(_NUM_PAIRS)
    if not len(pairs):
        return [*parts, page.paragraph("No image is confused with another class.")]
    rows = []
    predictions = evaluated.predictions
    for target, predicted, count in pairs[["target", "prediction", "count"]].itertuples(index=False):
        is_pair = (predictions["target"] == target) & (predictions["label_1"] == predicted)
        jpegs = _thumbnails(dataset, predictions.loc[is_pair, "key"].head(_NUM_PICTURES))
        rows.append(page.PictureRow(_mistake(evaluated, target, predicted), counted(count, "image"), jpegs))
    return [*parts, page.paragraph("Pairs that are confused most often:"), page.picture_rows(rows)]


def _surprises(evaluated: EvaluatedSplit, dataset: ShardedDataset) -> Markup:
    """Return the worst many-shot classes and the best few-shot classes.

    If there are no classes of such a size, those above or below the median size take their place.
    """
    classes = evaluated.classes[evaluated.classes["support"] > 0]
    sizes, median = classes["train"], classes["train"].median()
    is_large = sizes > (MANY_ABOVE if (sizes > MANY_ABOVE).any() else median)
    is_small = sizes < (FEW_BELOW if (sizes < FEW_BELOW).any() else median)
    weak = classes[is_large & (classes["f1"] < 1)].sort_values(["f1", "train"], ascending=[True, False])
    strong = classes[is_small & (classes["f1"] > 0)].sort_values(["f1", "train"], ascending=[False, True])
    rows = [*_class_rows("large", weak, evaluated, dataset), *_class_rows("small", strong, evaluated, dataset)]
    return page.picture_rows(rows) if rows else page.paragraph("No large class is weak and no small class strong.")


def _class_rows(
    size: str, classes: pd.DataFrame, evaluated: EvaluatedSplit, dataset: ShardedDataset
) -> list[page.PictureRow]:
    """Return images of the first few classes, each with its name, its training images and its F1."""
    predictions, rows = evaluated.predictions, []
    columns = classes.head(_NUM_CLASSES)[["label", "shown", "train", "f1", "support"]]
    for label, name, train, f1, support in columns.itertuples(index=False, name=None):
        keys = predictions.loc[predictions["target"] == label, "key"].head(_NUM_PICTURES)
        note = f"{size}: {counted(train, 'training image')}, F1 {f1:.2f} on {counted(support, 'image')}"
        rows.append(page.PictureRow(name, note, _thumbnails(dataset, keys)))
    return rows


def _mistakes(evaluated: EvaluatedSplit, dataset: ShardedDataset) -> Markup:
    """Return the wrong predictions with the highest probabilities."""
    predictions = evaluated.predictions
    wrong = predictions[predictions["target"] != predictions["label_1"]]
    worst = wrong.sort_values(["probability_1", "key"], ascending=[False, True]).head(_NUM_MISTAKES)
    if not len(worst):
        return page.paragraph("Every image of the split is recognised.")
    columns = worst[["key", "target", "label_1", "probability_1"]]
    return page.picture_rows(
        page.PictureRow(
            _mistake(evaluated, int(target), predicted),
            f"{key}, probability {probability:.3f}",
            _thumbnails(dataset, [key]),
        )
        for key, target, predicted, probability in columns.itertuples(index=False, name=None)
    )


def _mistake(evaluated: EvaluatedSplit, target: int, predicted: int) -> str:
    names = evaluated.classes["shown"]
    return f"{names[target]} recognised as {names[predicted]}"


def _thumbnails(dataset: ShardedDataset, keys: Iterable[str]) -> list[bytes]:
    try:
        return [
            page.thumbnail(dataset.sample(key).jpeg, dataset.recipe.size, f"{dataset.location}: the image of {key}")
            for key in keys
        ]
    except KeyError as error:
        raise UserError(
            f"{dataset.location}: has no sample {error}, which the run's predictions name; evaluate the split again"
        ) from None


def _class_table(evaluated: EvaluatedSplit) -> Markup:
    classes = evaluated.classes
    ratios = [[page.Number(f"{value:.3f}") for value in classes[name]] for name in ("precision", "recall", "f1")]
    counts = [classes[name].tolist() for name in ("train", "support", "predicted", "correct")]
    header = ("class", "landmark id", "train", evaluated.split, "predicted", "correct", "precision", "recall", "F1")
    ids = [str(landmark_id) for landmark_id in classes["landmark_id"]]
    return page.sortable_table(header, [classes["shown"].tolist(), ids, *counts, *ratios])


def _configuration(record: RunRecord) -> Markup:
    options = [(name.replace("_", " "), "" if value is None else str(value)) for name, value in record.config.items()]
    source = record.evaluated.source
    evaluation = [
        ("content of the training dataset", source["trained_on"]),
        ("content of the evaluated dataset", source["dataset"]),
        ("evaluated dataset", source["shards"]),
        ("evaluated checkpoint", source["checkpoint"]),
    ]
    return page.table(("option", "value"), [*options, *evaluation])
