"""Evaluate a model on a split: all metrics, and the files of an evaluation."""

import json
from contextlib import ExitStack, closing
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
from lmk_train.data.reader import SplitReader
from lmk_train.evaluation.calibration import MIN_SAMPLES, fit_run
from lmk_train.evaluation.inference import Evaluator
from lmk_train.evaluation.metrics import ClassCounts, confusion, is_defined, summarize, summarize_calibrated
from lmk_train.evaluation.predictions import Predictions
from lmk_train.evaluation.sweep import PostHoc, Row, picked_taus, sweep_json, swept
from lmk_train.models.heads import Classifier
from lmk_train.models.registry import ARCHITECTURES, build_model
from lmk_train.models.state_dicts import state_sha256
from lmk_train.runs.calibration import read_calibration
from lmk_train.runs.checkpoint import load_checkpoint, weights_to_evaluate
from lmk_train.runs.classes import Classes
from lmk_train.runs.folder import RunFolder, refuse_links, stored_dataset
from lmk_train.runs.tensor_file import restore_weights
from lmk_train.runtime.precision import Precision, resolve_device
from lmk_train.runtime.world import World, joined_world

# What was evaluated: content hashes of the dataset and of the training dataset, the dataset's location, best or last.
SOURCE = ("dataset", "trained_on", "shards", "checkpoint")


@dataclass(frozen=True)
class Evaluation:
    """The metrics of one split and what they were computed from.

    Attributes:
        rank: of this process.
        split: that was evaluated.
        source: what was evaluated, by the names of `SOURCE`.
        metrics: of `predictions`, and `num_unknown`.
        predictions: for the samples whose landmark the model knows.
        unknown: for the others, with target -1.
        sweep: the figures of each post-hoc method; empty unless asked for.
    """

    rank: int
    split: str
    source: dict[str, str]
    metrics: dict[str, float | int | None]
    predictions: Predictions
    unknown: Predictions
    sweep: dict[str, list[Row]]


def evaluate_run(config: EvalConfig) -> list[Evaluation]:
    """Evaluate a run's checkpoint on a split and write the files of the evaluation into the run's folder.

    With `tau`, the validation split is evaluated first unless it is the one asked for, because it picks tau. The
    evaluation asked for is the last one returned.

    Raises:
        UserError: the run, the split and the dataset do not fit together.
    """
    refuse_links(config.run)
    state = load_checkpoint(config.run, config.checkpoint)
    trained, classes = ResolvedConfig.from_json(state["config"]), Classes.of_checkpoint(state)
    shards, device = config.shards or stored_dataset(config.run, trained.shards), resolve_device(config.device)
    with joined_world(device) as world, ShardedDataset.open(shards, base=config.base) as dataset:
        _check_split(config.split, dataset, classes)
        model = build_model(trained, len(classes.ids), dataset.recipe.size)
        weights = weights_to_evaluate(state)
        restore_weights(model, weights, RunFolder(config.run).checkpoint(config.checkpoint))
        evaluator = make_evaluator(model.to(device), trained, config, device, world)
        temperature = _temperature(evaluator, dataset, classes, config, state_sha256(weights))
        picking = config.tau and config.split != "val" and classes.num_known(dataset, "val")
        splits = ("val", config.split) if picking else (config.split,)
        sums = _class_sums(evaluator, dataset, classes, config, trained) if config.class_means else None
        post_hoc = PostHoc.of(model.head, classes.train_counts, sums) if config.tau else None
        evaluations = [
            evaluate_split(evaluator, dataset, classes, replace(config, split=split), temperature, post_hoc)  # type: ignore[arg-type]
            for split in splits
        ]
        if config.tau and world.is_first:
            _write_sweeps(config.run, evaluations)
        return evaluations


def _check_split(split: str, dataset: ShardedDataset, classes: Classes) -> None:
    """Raise UserError unless a dataset has this split, with a sample of a class of the run."""
    if not dataset.num_samples(split):
        raise UserError(f"--split {split}: {dataset.location} has no such split; it has {', '.join(dataset.splits)}")
    if not (classes.labels_of(dataset) >= 0).any():
        few = f"has none of the {len(classes.ids)} classes of the run"
        raise UserError(f"{dataset.location}: {few}; evaluate on a dataset with the run's landmark ids")
    if not classes.num_known(dataset, split):
        raise UserError(
            f"--split {split}: none of its images in {dataset.location} is of one of the "
            f"{len(classes.ids)} classes of the run; evaluate another split or dataset"
        )


def make_evaluator(
    model: Classifier, trained: ResolvedConfig, config: EvalConfig, device: torch.device, world: World
) -> Evaluator:
    """Return the evaluator of a model, which is on the device.

    Args:
        model: with the weights to evaluate.
        trained: the resolved configuration of the run; its micro-batches are the default.
        config: its batch size, precision and number of workers.
        device: to compute on.
        world: the ranks that share a split.
    """
    return Evaluator(
        model=model.to(memory_format=torch.channels_last),
        preprocess=Preprocess(ARCHITECTURES[trained.model].normalization, Augmentation(), device),
        precision=Precision.resolve(config.amp, device),
        batch_size=config.batch_size or trained.pictures_at_once,
        workers=config.workers,
        world=world,
    )


def _temperature(
    evaluator: Evaluator, dataset: ShardedDataset, classes: Classes, config: EvalConfig, weights_sha256: str
) -> float | None:
    """Return the temperature of a run, which is fitted if `config.calibrate`; None without one.

    Raises UserError if it cannot be fitted.
    """
    if not config.calibrate:
        calibration = read_calibration(config.run, weights_sha256)
        return None if calibration is None else calibration.temperature
    fitted = fit_run(evaluator, dataset, classes, config, weights_sha256)
    if fitted is None:
        there = f"{classes.num_known(dataset, 'val')} validation images of classes of the run"
        raise UserError(
            f"--calibrate: {dataset.location} has {there}, and a temperature takes {MIN_SAMPLES}; "
            "give a dataset that has more with --shards"
        )
    return fitted.temperature


def evaluate_split(
    evaluator: Evaluator,
    dataset: ShardedDataset,
    classes: Classes,
    config: EvalConfig,
    temperature: float | None = None,
    post_hoc: PostHoc | None = None,
) -> Evaluation:
    """Evaluate a model on the split `config.split` of an opened dataset.

    The first rank writes the files of the evaluation into `config.run`.

    Args:
        evaluator: of the model.
        dataset: with the split.
        classes: of the model.
        config: of the evaluation.
        temperature: of the run, for the figures at that temperature; None for none of these.
        post_hoc: methods to answer by as well; None for none.

    Raises:
        UserError: a probability is not finite.
    """
    world = evaluator.world
    with closing(SplitReader(dataset, config.split, config.cache.resolved())) as reader:
        everything = evaluator.predict(
            reader,
            label_map=classes.labels_of(dataset),
            post_hoc=post_hoc,
            temperature=temperature,
            quiet=config.quiet or not world.is_first,
        )
    assert len(everything.targets) == dataset.num_samples(config.split), "every sample is evaluated exactly once"
    if not everything.is_finite:
        raise UserError(
            f"{config.run}: its probabilities are not finite in {evaluator.precision}; evaluate it with --amp off, "
            "or train it again"
        )
    known, unknown = everything.select(everything.targets >= 0), everything.select(everything.targets < 0)
    evaluation = Evaluation(
        rank=world.rank,
        split=config.split,
        source=_source(dataset, classes, config.checkpoint),
        metrics={
            **summarize(known, classes.train_counts),
            "num_unknown": len(unknown.targets),
            **({} if temperature is None else {"temperature": temperature, **summarize_calibrated(known)}),
        },
        predictions=known,
        unknown=unknown,
        sweep=_sweep(known, classes, post_hoc),
    )
    if world.is_first:
        write_evaluation(config.run, evaluation, classes)
    return evaluation


def _sweep(known: Predictions, classes: Classes, post_hoc: PostHoc | None) -> dict[str, list[Row]]:
    if post_hoc is None:
        return {}
    assert known.adjusted is not None
    return swept(post_hoc.columns, known.adjusted, known.targets, classes.train_counts)


def _class_sums(
    evaluator: Evaluator, dataset: ShardedDataset, classes: Classes, config: EvalConfig, trained: ResolvedConfig
) -> torch.Tensor:
    """Return the sums of the training features of each class, float32 [K, D].

    They are those of the dataset that the run was trained on, which is opened unless it is the one that is evaluated.

    Raises UserError if it is another one now.
    """
    with ExitStack() as opened:
        if dataset.manifest["content_sha256"] != classes.content_sha256:
            shards = stored_dataset(config.run, trained.shards)
            dataset = opened.enter_context(ShardedDataset.open(shards))
            if dataset.manifest["content_sha256"] != classes.content_sha256:
                raise UserError(f"--class-means: {shards} is not the dataset that the run was trained on; leave it out")
        reader = opened.enter_context(closing(SplitReader(dataset, "train", config.cache.resolved())))
        quiet = config.quiet or not evaluator.world.is_first
        return evaluator.class_sums(reader, classes.labels_of(dataset), len(classes.ids), quiet)


def _source(dataset: ShardedDataset, classes: Classes, checkpoint: str) -> dict[str, str]:
    values = dataset.manifest["content_sha256"], classes.content_sha256, dataset.location, checkpoint
    return dict(zip(SOURCE, values, strict=True))


def same_source(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Return whether two eval-<split>.json are of the same checkpoint on the same dataset, wherever that lies."""
    return all(one.get(name) == other.get(name) for name in SOURCE if name != "shards")


def check_metric(option: str, name: str, dataset: ShardedDataset) -> None:
    """Raise UserError, which begins with `option`, if the validation split has no class that a metric is about."""
    counts = dataset.classes
    if not is_defined(name, counts["train"].to_numpy(np.int64), counts["val"].to_numpy(np.int64)):
        raise UserError(f"{option}: the validation split has no class that this metric is about; give another metric")


def write_evaluation(run: Path, evaluation: Evaluation, classes: Classes) -> None:
    """Write eval-<split>.json, and predictions, per-class metrics and sparse confusion matrix as Parquet.

    Removes what an earlier evaluation of the split wrote, its sweep over tau included.
    """
    predictions, split, folder = evaluation.predictions, evaluation.split, RunFolder(run)
    remove_durably(folder.evaluation(split))  # it is written last and marks the rest as complete
    remove_durably(folder.tau_sweep(split))
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
    written = {**evaluation.source, **evaluation.metrics}
    write_bytes(folder.evaluation(split), json.dumps(written, indent=2).encode() + b"\n")


def picked_of(evaluations: list[Evaluation]) -> dict[str, float | None]:
    """Return the tau of each post-hoc method that the validation split picks; empty if it is not among these."""
    return picked_taus(next((evaluation.sweep for evaluation in evaluations if evaluation.split == "val"), None))


def _write_sweeps(run: Path, evaluations: list[Evaluation]) -> None:
    """Write tau-<split>.json of each split: the sweep, and the taus that were picked on the validation split."""
    for evaluation in evaluations:
        written = sweep_json(evaluation.sweep, picked_of(evaluations))
        write_bytes(RunFolder(run).tau_sweep(evaluation.split), json.dumps(written, indent=2).encode() + b"\n")


def _prediction_table(predictions: Predictions) -> pa.Table:
    """Return one row per sample; the target is null where the model does not know its landmark."""
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
