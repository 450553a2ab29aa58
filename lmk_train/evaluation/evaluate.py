"""Evaluate a model on a split: every metric, and the files of an evaluation."""

import json
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from lmk_data.dataset import ShardedDataset
from lmk_data.errors import UserError
from lmk_data.system.files import atomic_file, remove_durably, write_bytes
from lmk_train.config.commands import EvalConfig
from lmk_train.config.training import ResolvedConfig
from lmk_train.data.augment import Augmentation, Preprocess
from lmk_train.data.stream import BatchStream, SplitReader
from lmk_train.evaluation.metrics import ClassCounts, Ints, Predictions, confusion, is_defined, summarize
from lmk_train.evaluation.predictions import predict_split
from lmk_train.models.heads import Classifier
from lmk_train.models.losses import log_prior
from lmk_train.models.registry import ARCHITECTURES, model_of
from lmk_train.runs.checkpoint import load_checkpoint, weights_to_evaluate
from lmk_train.runs.classes import Classes
from lmk_train.runs.folder import RunFolder
from lmk_train.runtime.precision import Precision, resolve_device
from lmk_train.runtime.world import World, joined_world

# What an evaluation was of: content hashes of its dataset and of the one trained on, where it lay, best or last.
SOURCE = ("dataset", "trained_on", "shards", "checkpoint")
TAUS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)


@dataclass(frozen=True)
class Evaluation:
    """The metrics of one split and what they were computed from.

    `rank` is this process's. `source` says what was evaluated (see `SOURCE`). `predictions` are those of the samples
    whose landmark the model knows; `unknown` those of the others, target -1. `by_tau` holds accuracy and macro F1 under
    each post-hoc adjustment that was asked for.
    """

    rank: int
    split: str
    source: dict[str, str]
    metrics: dict[str, float | int | None]
    predictions: Predictions
    unknown: Predictions
    by_tau: list[dict[str, float | None]]


def evaluate_run(config: EvalConfig) -> list[Evaluation]:
    """Evaluate a run's checkpoint on a split and write its files into the run's folder.

    With `tau`, validation is evaluated first, if it is another split, since it is what picks tau; the evaluation that
    was asked for comes last. Raises UserError for a run or a dataset that do not fit together.
    """
    state = load_checkpoint(config.run, config.checkpoint)
    trained, classes = ResolvedConfig.from_json(state["config"]), Classes.of_checkpoint(state)
    device = resolve_device(config.device)
    with joined_world(device) as world, ShardedDataset.open(config.shards or trained.shards) as dataset:
        if not dataset.num_samples(config.split):
            raise UserError(
                f"--split {config.split}: {dataset.location} has no such split; it has {', '.join(dataset.splits)}"
            )
        if not (classes.labels_of(dataset) >= 0).any():
            raise UserError(f"{dataset.location}: has none of the {len(classes.ids)} classes of the run")
        if not classes.num_known(dataset, config.split):
            raise UserError(
                f"--split {config.split}: none of its images in {dataset.location} is of one of the "
                f"{len(classes.ids)} classes of the run; evaluate another split or dataset"
            )
        model = model_of(trained, len(classes.ids), dataset.recipe.size)
        model.load_state_dict(weights_to_evaluate(state))
        model.to(device)
        picking = config.tau and config.split != "val" and classes.num_known(dataset, "val")
        splits = ("val", config.split) if picking else (config.split,)
        evaluations = [
            evaluate_model(model, dataset, classes, trained, replace(config, split=split), device, world)  # type: ignore[arg-type]
            for split in splits
        ]
        if config.tau and world.is_first:
            _write_sweeps(config.run, evaluations)
        return evaluations


def evaluate_model(
    model: Classifier,
    dataset: ShardedDataset,
    classes: Classes,
    trained: ResolvedConfig,
    config: EvalConfig,
    device: torch.device,
    world: World,
) -> Evaluation:
    """Evaluate a model on a split of an opened dataset; the first process writes the files into `config.run`."""
    model.to(memory_format=torch.channels_last)
    batch_size = config.batch_size or trained.batch_size
    preprocess = Preprocess(ARCHITECTURES[trained.model].normalization, Augmentation(), device)
    precision = Precision.resolve(config.amp, device)
    adjustments = tau_adjustments(classes.train_counts).to(device) if config.tau else None
    with closing(SplitReader(dataset, config.split, config.cache.resolved())) as reader:
        everything = predict_split(
            model,
            reader,
            BatchStream(reader, device, world.largest_share(batch_size), config.workers),
            preprocess,
            precision,
            batch_size,
            known_as=classes.labels_of(dataset),
            adjustments=adjustments,
            world=world,
            quiet=config.quiet or not world.is_first,
        )
    assert len(everything.targets) == dataset.num_samples(config.split), "every sample is evaluated exactly once"
    if not everything.is_finite:
        raise UserError(
            f"{config.run}: its probabilities are not finite in {precision}; evaluate it with --amp off, or train anew"
        )
    source = _source(dataset, classes, config.checkpoint)
    known, unknown = everything.rows(everything.targets >= 0), everything.rows(everything.targets < 0)
    metrics = {**summarize(known, classes.train_counts), "num_unknown": len(unknown.targets)}
    by_tau = _by_tau(known, classes.train_counts) if config.tau else []
    evaluation = Evaluation(world.rank, config.split, source, metrics, known, unknown, by_tau)
    if world.is_first:
        write_evaluation(config.run, evaluation, classes)
    return evaluation


def _source(dataset: ShardedDataset, classes: Classes, checkpoint: str) -> dict[str, str]:
    values = dataset.manifest["content_sha256"], classes.content_sha256, dataset.location, checkpoint
    return dict(zip(SOURCE, values, strict=True))


def same_source(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two eval-<split>.json of a run are of the same checkpoint on the same dataset, wherever that lay."""
    return all(one.get(name) == other.get(name) for name in SOURCE if name != "shards")


def tau_adjustments(train_counts: Ints) -> torch.Tensor:
    """What is added to the logits for each of `TAUS`: -tau * log prior, float32 [T, K].

    Post-hoc logit adjustment (Menon et al., "Long-tail learning via logit adjustment", ICLR 2021).
    """
    return -torch.tensor(TAUS)[:, None] * log_prior(train_counts)


def best_tau(by_tau: list[dict[str, float | None]]) -> float:
    """The tau with the greatest macro F1, the smallest of equals."""
    return max(by_tau, key=lambda row: (row["macro_f1"] or 0.0, -(row["tau"] or 0.0)))["tau"] or 0.0


def picked_tau(evaluations: list[Evaluation]) -> float | None:
    """The best tau of the validation split, None if that is not among these evaluations."""
    return next((best_tau(evaluation.by_tau) for evaluation in evaluations if evaluation.split == "val"), None)


def _by_tau(predictions: Predictions, train_counts: Ints) -> list[dict[str, float | None]]:
    assert predictions.adjusted is not None
    rows: list[dict[str, float | None]] = []
    for place, tau in enumerate(TAUS):
        chosen = predictions.adjusted[:, place]
        counts = ClassCounts.of(predictions.targets, chosen, len(train_counts))
        seen = counts.support > 0
        accuracy = float((chosen == predictions.targets).mean())
        rows.append({"tau": tau, "accuracy": accuracy, "macro_f1": float(counts.f1()[seen].mean())})
    return rows


def check_metric(option: str, name: str, dataset: ShardedDataset) -> None:
    """Raise UserError, which begins with the option, for a metric of classes of which the validation split has none."""
    counts = dataset.classes
    if not is_defined(name, counts["train"].to_numpy(np.int64), counts["val"].to_numpy(np.int64)):
        raise UserError(f"{option}: the validation split has no class that it is about; give another")


def write_evaluation(run: Path, evaluation: Evaluation, classes: Classes) -> None:
    """Write eval-<split>.json, predictions, per-class figures and the sparse confusion matrix of a split.

    What an earlier evaluation left of the split goes, its sweep over tau too.
    """
    predictions, split, folder = evaluation.predictions, evaluation.split, RunFolder(run)
    for path in (folder.evaluation(split), folder.tau_sweep(split)):  # the first is written last: all is there then
        remove_durably(path)
    counts = ClassCounts.of(predictions.targets, predictions.labels[:, 0], len(classes.ids))
    tables = [_prediction_table(part) for part in (predictions, evaluation.unknown)]
    _write_table(pa.concat_tables(tables), folder.predictions(split))
    per_class = {
        "label": np.arange(len(classes.ids)),
        "landmark_id": pa.array(classes.ids),
        "name": pa.array(classes.names, pa.string()),
        "train": classes.train_counts,
        "support": counts.support,
        "predicted": counts.predicted,
        "correct": counts.correct,
        "precision": counts.precision(),
        "recall": counts.recall(),
        "f1": counts.f1(),
    }
    _write_table(pa.table(per_class), folder.per_class(split))
    targets, predicted, count = confusion(predictions, len(classes.ids))
    _write_table(pa.table({"target": targets, "prediction": predicted, "count": count}), folder.confusion(split))
    said = {**evaluation.source, **evaluation.metrics}
    write_bytes(folder.evaluation(split), json.dumps(said, indent=2).encode() + b"\n")


def _write_sweeps(run: Path, evaluations: list[Evaluation]) -> None:
    """Write tau-<split>.json of each split: the sweep, the tau that validation picks, and on what it was picked."""
    picked = picked_tau(evaluations)
    for evaluation in evaluations:
        said = {"picked": picked, "picked_on": None if picked is None else "val", "sweep": evaluation.by_tau}
        write_bytes(RunFolder(run).tau_sweep(evaluation.split), json.dumps(said, indent=2).encode() + b"\n")


def _prediction_table(predictions: Predictions) -> pa.Table:
    """One row per sample; the target is null where the model does not know its landmark."""
    targets = predictions.targets.astype(np.int32)
    columns: dict[str, Any] = {
        "key": pa.array(predictions.keys, pa.string()),
        "target": pa.array(targets, mask=targets < 0),
    }
    for place in range(predictions.labels.shape[1]):
        columns[f"label_{place + 1}"] = predictions.labels[:, place].astype(np.int32)
        columns[f"probability_{place + 1}"] = predictions.probabilities[:, place]
    return pa.table(columns)


def _write_table(table: pa.Table, path: Path) -> None:
    with atomic_file(path) as file:
        pq.write_table(table, file, compression="zstd")
