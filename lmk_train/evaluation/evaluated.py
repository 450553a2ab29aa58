"""What a training and its evaluations left in the folder of a run, as the report of the run shows it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pandas as pd

from lmk_data.dataset.format import SPLITS
from lmk_data.errors import UserError
from lmk_train.config.training import ResolvedConfig
from lmk_train.evaluation.evaluate import SOURCE, same_source
from lmk_train.evaluation.evaluation_files import read_evaluation, read_sweep, read_tables
from lmk_train.runs.checkpoint import BEST, load_checkpoint
from lmk_train.runs.folder import RunFolder
from lmk_train.runs.metrics_file import read_metrics_file
from lmk_train.runs.plain_file import read_json

Metrics = dict[str, float | int | None]


@dataclass(frozen=True)
class EvaluatedSplit:
    """The evaluation of one split.

    Attributes:
        split: Name of the split.
        metrics: Its metrics by name, None for undefined ones.
        source: What was evaluated, by the names in `SOURCE`.
        predictions: One row per image of a known class: key, target, the best labels and their probabilities.
        classes: One row per class: per-class-<split>.parquet, and `shown`, its name or else its landmark id.
        confusion: The confusion matrix without its zeros: target, prediction, count.
    """

    split: str
    metrics: Metrics
    source: dict[str, str]
    predictions: pd.DataFrame
    classes: pd.DataFrame
    confusion: pd.DataFrame


@dataclass(frozen=True)
class TauSweep:
    """The sweep over tau.

    Attributes:
        rows: Accuracy and macro F1 (columns) of the logit adjustment by tau.
        picked: The tau that was picked on a split; None without one.
        picked_on: That split.
        others: Method, tau, accuracy, macro F1 and macro recall of the other methods, at the tau that was picked.
    """

    rows: pd.DataFrame
    picked: float | None
    picked_on: str | None
    others: list[tuple[str, float | None, float, float, float]]


@dataclass(frozen=True)
class RunRecord:
    """All that the report of a split shows.

    Attributes:
        config: The configuration of the run.
        epochs: The lines of metrics.jsonl on epochs.
        steps: Its lines on training steps.
        evaluated: The evaluation of the split.
        metrics: Metrics of every split that the same checkpoint was evaluated on in the same dataset.
        sweep: The sweep over tau, if there was one.
    """

    config: dict[str, Any]
    epochs: pd.DataFrame
    steps: pd.DataFrame
    evaluated: EvaluatedSplit
    metrics: dict[str, Metrics]
    sweep: TauSweep | None


def read_record(run: Path, split: str) -> RunRecord:
    """Read all that the report of an evaluated split shows. Raises UserError for a file that is not one of a run.

    Of a folder that holds a checkpoint alone, the configuration is that of the checkpoint, and there are no epochs.
    """
    folder = RunFolder(run)
    lines = read_metrics_file(folder.metrics) if folder.metrics.exists() else []
    return RunRecord(
        config=_read_config(folder.config) if folder.config.exists() else load_checkpoint(run, BEST)["config"],
        epochs=pd.DataFrame([line for line in lines if line["kind"] == "epoch"]),
        steps=pd.DataFrame([line for line in lines if line["kind"] == "train"]),
        evaluated=_read_split(run, split),
        metrics=read_metrics(run, split),
        sweep=_read_sweep(folder.tau_sweep(split)),
    )


def read_metrics(run: Path, split: str) -> dict[str, Metrics]:
    """Return `eval-<split>.json` of each split that the same checkpoint was evaluated on in the same dataset."""
    paths = {name: RunFolder(run).evaluation(name) for name in SPLITS}
    evaluations = {name: read_evaluation(path) for name, path in paths.items() if path.exists()}
    return {name: values for name, values in evaluations.items() if same_source(values, evaluations[split])}


def _read_config(path: Path) -> dict[str, Any]:
    try:
        return ResolvedConfig.from_json(read_json(path, dict[str, Any], "a configuration")).json()
    except UserError as error:
        raise UserError(str(error) if str(path) in str(error) else f"{path}: {error}") from None


def _read_split(run: Path, split: str) -> EvaluatedSplit:
    predictions, classes, confusion = read_tables(RunFolder(run), split)
    named = zip(classes["name"], classes["landmark_id"], strict=True)
    classes["shown"] = [name if isinstance(name, str) else str(landmark_id) for name, landmark_id in named]
    metrics = read_evaluation(RunFolder(run).evaluation(split))
    source = {name: metrics.pop(name) for name in SOURCE}
    return EvaluatedSplit(split, metrics, source, predictions[predictions["target"].notna()], classes, confusion)


def _read_sweep(path: Path) -> TauSweep | None:
    if not path.exists():
        return None
    found = read_sweep(path)
    others = [
        (method, row.tau, row.accuracy, row.macro_f1, row.macro_recall)
        for method, other in found.others.items()
        for row in other.sweep
        if row.tau == other.picked
    ]
    rows = pd.DataFrame([msgspec.structs.asdict(row) for row in found.sweep])
    return TauSweep(rows, found.picked, found.picked_on, others)
