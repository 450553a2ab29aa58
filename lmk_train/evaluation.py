"""One split through a model: predictions, every metric, and the files of an evaluation."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from lmk_data.dataset import ShardedDataset
from lmk_data.errors import UserError
from lmk_data.files import atomic_file, write_bytes
from lmk_data.terminal import progress_bar
from lmk_train.augment import Augmentation, Preprocess
from lmk_train.checkpoint import BEST, LAST, load_checkpoint, weights_to_evaluate
from lmk_train.config import EvalConfig, TrainConfig
from lmk_train.metrics import TOP_K, ClassCounts, Predictions, confusion, summarize
from lmk_train.models import ARCHITECTURES, Classifier, build_model
from lmk_train.order import batch_picks, num_batches
from lmk_train.precision import Precision, resolve_device
from lmk_train.stream import BatchStream, SplitReader
from lmk_train.world import ALONE, World, joined_world


@dataclass(frozen=True)
class Evaluation:
    """The metrics of one split and what they were computed from."""

    split: str
    metrics: dict[str, float | int | None]
    predictions: Predictions


def predict_split(
    model: Classifier,
    reader: SplitReader,
    stream: BatchStream,
    preprocess: Preprocess,
    precision: Precision,
    batch_size: int,
    *,
    world: World = ALONE,
    quiet: bool = True,
) -> Predictions:
    """Run every sample of a split through the model once, each process its share; all of them get all predictions.

    The model is left in training mode.
    """
    rows = np.arange(len(reader), dtype=np.int64)
    steps = num_batches(len(rows), batch_size, drop_last=False)
    best = min(TOP_K, reader.dataset.num_classes)
    seen = [np.empty(0, np.int64)]
    labels, probabilities = [torch.empty(0, best, dtype=torch.int64)], [torch.empty(0, best)]
    reader.expect(rows)
    model.eval()
    with torch.inference_mode(), progress_bar(len(rows), f"evaluating {reader.split}", "images", quiet=quiet) as bar:
        for batch in stream(world.share(batch_picks(rows, step, batch_size)) for step in range(steps)):
            with precision.autocast():
                logits = model(preprocess(batch.pixels, None))
            top = logits.softmax(dim=1).topk(best, dim=1)
            seen.append(batch.picks)
            labels.append(top.indices.cpu())
            probabilities.append(top.values.cpu())
            bar.update(len(batch.picks) * world.size)
    model.train()
    parts = world.gather((np.concatenate(seen), torch.cat(labels).numpy(), torch.cat(probabilities).numpy()))
    picked = np.concatenate([part[0] for part in parts])
    assert len(picked) == len(rows), "every sample is evaluated exactly once"
    order = np.argsort(picked)
    return Predictions(
        keys=reader.keys(),
        targets=reader.labels,
        labels=np.concatenate([part[1] for part in parts])[order],
        probabilities=np.concatenate([part[2] for part in parts])[order],
    )


def evaluate_run(config: EvalConfig) -> Evaluation:
    """Evaluate a run's checkpoint on a split and write its files into the run's folder.

    Raises UserError for a run or a dataset that do not fit together.
    """
    state = load_checkpoint(config.run, BEST if config.checkpoint == "best" else LAST)
    trained = TrainConfig.from_json(state["config"])
    device = resolve_device(config.device)
    with joined_world(device) as world, ShardedDataset.open(config.shards or trained.shards) as dataset:
        check_classes(dataset, state["classes"])
        if not dataset.num_samples(config.split):
            raise UserError(
                f"--split {config.split}: {dataset.location} has no such split; it has {', '.join(dataset.splits)}"
            )
        model = model_of(trained, dataset)
        model.load_state_dict(weights_to_evaluate(state))
        return evaluate_model(model.to(device), dataset, trained, config, device, world)


def evaluate_model(
    model: Classifier,
    dataset: ShardedDataset,
    trained: TrainConfig,
    config: EvalConfig,
    device: torch.device,
    world: World,
) -> Evaluation:
    """Evaluate a model on a split of an opened dataset; the first process writes the files into `config.run`."""
    model.to(memory_format=torch.channels_last)
    batch_size = config.batch_size or trained.batch_size
    assert batch_size is not None
    reader = SplitReader(dataset, config.split, config.shard_cache)
    stream = BatchStream(reader, device, batch_size, config.workers)
    preprocess = Preprocess(ARCHITECTURES[trained.model].normalization, Augmentation(), device)
    precision = Precision.resolve(config.amp, device)
    quiet = config.quiet or not world.is_first
    predictions = predict_split(model, reader, stream, preprocess, precision, batch_size, world=world, quiet=quiet)
    reader.close()
    train_counts = dataset.classes["train"].to_numpy(np.int64)
    metrics = summarize(predictions, train_counts)
    assert metrics["num_samples"] == dataset.num_samples(config.split), "every sample is evaluated exactly once"
    evaluation = Evaluation(config.split, metrics, predictions)
    if world.is_first:
        write_evaluation(config.run, evaluation, dataset)
    return evaluation


def model_of(config: TrainConfig, dataset: ShardedDataset) -> Classifier:
    """The classifier that a resolved configuration describes, for a dataset's classes, with random weights."""
    assert config.head is not None
    assert config.drop_rate is not None
    return build_model(
        config.model,
        dataset.num_classes,
        head=config.head,
        scale=config.cosine_scale,
        picture_size=dataset.recipe.size,
        drop_rate=config.drop_rate,
    )


def class_table(dataset: ShardedDataset) -> list[int | str]:
    """The landmark id of each label, as checkpoints keep it."""
    ids: list[int | str] = dataset.classes["landmark_id"].tolist()
    return ids


def check_classes(dataset: ShardedDataset, classes: list[int | str]) -> None:
    """Raise UserError unless the dataset has the classes that a checkpoint was trained on, under the same labels."""
    if class_table(dataset) != classes:
        raise UserError(
            f"{dataset.location}: its {dataset.num_classes} classes are not the {len(classes)} of the run; "
            "give the dataset of the run with --shards"
        )


def write_evaluation(run: Path, evaluation: Evaluation, dataset: ShardedDataset) -> None:
    """Write eval-<split>.json, predictions, per-class figures and the sparse confusion matrix of a split."""
    predictions, split = evaluation.predictions, evaluation.split
    counts = ClassCounts.of(predictions.targets, predictions.labels[:, 0], dataset.num_classes)
    top: dict[str, Any] = {
        "key": pa.array(predictions.keys, pa.string()),
        "target": predictions.targets.astype(np.int32),
    }
    for place in range(predictions.labels.shape[1]):
        top[f"label_{place + 1}"] = predictions.labels[:, place].astype(np.int32)
        top[f"probability_{place + 1}"] = predictions.probabilities[:, place]
    _write_table(pa.table(top), run / f"predictions-{split}.parquet")
    classes = dataset.classes
    per_class = {
        "label": classes["label"].to_numpy(),
        "landmark_id": pa.array(classes["landmark_id"]),
        "name": pa.array(classes["name"], pa.string()),
        "train": classes["train"].to_numpy(),
        "support": counts.support,
        "predicted": counts.predicted,
        "correct": counts.correct,
        "precision": counts.precision(),
        "recall": counts.recall(),
        "f1": counts.f1(),
    }
    _write_table(pa.table(per_class), run / f"per-class-{split}.parquet")
    targets, predicted, count = confusion(predictions, dataset.num_classes)
    _write_table(
        pa.table({"target": targets, "prediction": predicted, "count": count}), run / f"confusion-{split}.parquet"
    )
    write_bytes(run / f"eval-{split}.json", json.dumps(evaluation.metrics, indent=2).encode() + b"\n")


def _write_table(table: pa.Table, path: Path) -> None:
    with atomic_file(path) as file:
        pq.write_table(table, file, compression="zstd")
