"""The index of a run's training pictures: their features, keys and labels in its folder, written once."""

import json
import math
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from lmk_data.dataset import ShardedDataset
from lmk_data.errors import UserError, one_line
from lmk_data.system.files import atomic_file, check_no_link, file_lock, make_folder, remove_durably, write_bytes
from lmk_data.system.parquet import TableLimits, read_parquet
from lmk_train.config.arguments import CacheOptions
from lmk_train.data.feature_pass import FeatureFile, FeaturePass, require_room, unit_vectors_in
from lmk_train.data.reader import SplitReader
from lmk_train.evaluation.calibration import ValidationSample, calibrated, probabilities_of, validation_sample
from lmk_train.evaluation.inference import Evaluator
from lmk_train.models.heads import Classifier
from lmk_train.neighbours.blend import MAX_NEIGHBOURS, UNPICKED, Blend, pick_blends
from lmk_train.neighbours.search import nearest, unit_vectors
from lmk_train.runs.calibration import HIGHEST, LOWEST, Sha256, write_calibration
from lmk_train.runs.classes import Classes
from lmk_train.runs.folder import RunFolder, stored_dataset
from lmk_train.runs.plain_file import open_regular, read_json

_DESCRIPTION, _SAMPLES, _FEATURES, _LOCK = "index.json", "samples.parquet", "train.npy", ".lock"
_LIMITS = TableLimits(max_rows=100_000_000, max_bytes=8 << 30)
_QUERIES = 256  # validation pictures that are searched at once
_AGAIN = "remove the folder, and the next lmk-predict --neighbours writes it again"


@dataclass(frozen=True)
class TrainingPictures:
    """Where the pictures of an index are, and how they are read.

    Attributes:
        shards: dataset; by default the one that the run names.
        base: dataset that has the pictures of a view.
        cache: for shards behind a URL.
        workers: threads that decode.
        quiet: no progress bar.
    """

    shards: str | None = None
    base: str | None = None
    cache: CacheOptions = field(default_factory=CacheOptions)
    workers: int | None = None
    quiet: bool = True


@dataclass(frozen=True)
class IndexedModel:
    """The model of a run, whose features an index has.

    Attributes:
        run: the folder.
        shards: the dataset that the run names.
        classifier: on the device of `evaluator`, in evaluation mode.
        classes: of the model, and the hash of their dataset.
        weights_sha256: of the classifier.
        evaluator: of the classifier.
        temperature: of its probabilities; None if it has none.
    """

    run: Path
    shards: str
    classifier: Classifier
    classes: Classes
    weights_sha256: str
    evaluator: Evaluator
    temperature: float | None

    @property
    def folder(self) -> Path:
        """The folder of the index."""
        return RunFolder(self.run).neighbours


@dataclass(frozen=True)
class NeighbourIndex:
    """The training pictures of a run.

    Attributes:
        features: unit vectors, float16 [N, D], memory-mapped.
        keys: strings [N].
        labels: int64 [N].
        temperature: that the logits are divided by before they are blended; None for 1.
        blends: for 1 neighbour, 2 neighbours and so on.
    """

    features: NDArray[np.float16]
    keys: pa.ChunkedArray
    labels: NDArray[np.int64]
    temperature: float | None
    blends: list[Blend]

    def nearest(self, described: torch.Tensor, number: int) -> tuple[torch.Tensor, NDArray[np.int64]]:
        """Return the cosines of the nearest pictures, float32 [B, k], and their rows, int64 [B, k], for k <= `number`.

        `described` is what the head takes, float32 [B, D]. Raises UserError if the features are no unit vectors.
        """
        cosines, rows = nearest(self.features, unit_vectors(described), min(number, len(self.blends)))
        if not bool((cosines.abs() <= 1.01).all()):  # also NaN
            raise UserError(f"the index of neighbours is damaged: its features are no unit vectors; {_AGAIN}")
        return cosines.clamp(-1, 1), rows.cpu().numpy()  # in half precision a picture is 1.0001 similar to itself


class _Description(msgspec.Struct):
    """What index.json says; it is written last."""

    version: Literal[1]
    dataset: Sha256
    weights_sha256: Sha256
    num_samples: Annotated[int, msgspec.Meta(ge=1, le=100_000_000)]
    num_features: Annotated[int, msgspec.Meta(ge=1, le=1 << 16)]
    temperature: Annotated[float, msgspec.Meta(ge=LOWEST, le=HIGHEST)] | None
    blends: Annotated[
        list[tuple[Annotated[float, msgspec.Meta(ge=0, lt=1)], Annotated[float, msgspec.Meta(ge=0.001, le=10)]]],
        msgspec.Meta(min_length=1, max_length=MAX_NEIGHBOURS),
    ]
    picked_on: Literal["val"] | None
    num_validation: Annotated[int, msgspec.Meta(ge=0)]


def open_index(model: IndexedModel) -> NeighbourIndex | None:
    """Return the index in the folder of a run; None if there is none, or one of other weights or another temperature.

    Raises UserError for the index of another dataset, and for files that are not those of an index.
    """
    path = model.folder / _DESCRIPTION
    try:
        said = read_json(path, _Description, "the description of an index of neighbours")
    except FileNotFoundError:
        return None
    if said.dataset != model.classes.content_sha256:
        raise UserError(f"{model.folder}: an index of another dataset than the run's; {_AGAIN}")
    if said.weights_sha256 != model.weights_sha256 or said.temperature != model.temperature:
        return None
    if said.num_features != model.classifier.num_described:
        raise UserError(f"{path}: its features are not those of the run's network; {_AGAIN}")
    numbers = [number for blend in said.blends for number in blend]
    if not all(map(math.isfinite, numbers)):
        raise UserError(f"{path}: a weight or temperature is not finite; {_AGAIN}")
    if len(said.blends) > said.num_samples:
        raise UserError(f"{path}: blends more neighbours than there are pictures; {_AGAIN}")
    features = FeatureFile(model.folder / _FEATURES, (said.num_samples, said.num_features), np.float16, {}).read()
    keys, labels = _read_samples(model.folder / _SAMPLES, said.num_samples, len(model.classes.ids))
    return NeighbourIndex(features, keys, labels, said.temperature, [Blend(*blend) for blend in said.blends])


def build_index(model: IndexedModel, pictures: TrainingPictures, announce: Callable[[str], None]) -> NeighbourIndex:
    """Write the index of a run, and calibrate the run if it has no temperature; return the index.

    An interrupted pass over the pictures is resumed by the next call. The blends are picked on the validation split;
    without 30 validation pictures they are the default.

    Args:
        model: of the run.
        pictures: its dataset.
        announce: called with a line about what is done.

    Raises UserError if the dataset is not the run's, or another process writes the index.
    """
    location = pictures.shards or stored_dataset(model.run, model.shards)
    check_no_link(model.folder)
    make_folder(model.folder)
    busy = f"{model.folder}: another lmk-predict writes the index; wait for it"
    with (
        ShardedDataset.open(location, base=pictures.base) as dataset,
        file_lock(model.folder / _LOCK, wait_seconds=0, busy=busy),
    ):
        if dataset.manifest["content_sha256"] != model.classes.content_sha256:
            raise UserError(
                f"{dataset.location}: is not the dataset that {model.run} was trained on; name that one with --shards"
            )
        announce(f"{model.folder}: writing the index of {dataset.num_samples('train'):,} training pictures, once")
        for name in (_DESCRIPTION, _SAMPLES):
            remove_durably(model.folder / name)
        features = _write_features(model, dataset, pictures)
        labels = _write_samples(model.folder / _SAMPLES, dataset)
        sample = validation_sample(model.evaluator, dataset, model.classes, pictures.cache.resolved())
        model.classifier.eval()
        temperature = model.temperature
        if sample is not None and temperature is None:
            fitted = calibrated(sample, model.classes.content_sha256, model.weights_sha256)
            write_calibration(model.run, fitted)
            temperature = fitted.temperature
        said = _Description(
            version=1,
            dataset=model.classes.content_sha256,
            weights_sha256=model.weights_sha256,
            num_samples=len(features),
            num_features=features.shape[1],
            temperature=temperature,
            blends=_blends(features, labels, sample, temperature),
            picked_on=None if sample is None else "val",
            num_validation=0 if sample is None else len(sample.targets),
        )
        write_bytes(model.folder / _DESCRIPTION, json.dumps(msgspec.to_builtins(said), indent=2).encode() + b"\n")
    keys, labels = _read_samples(model.folder / _SAMPLES, len(features), len(model.classes.ids))
    return NeighbourIndex(features, keys, labels, temperature, [Blend(*blend) for blend in said.blends])


def _write_features(model: IndexedModel, dataset: ShardedDataset, pictures: TrainingPictures) -> NDArray[np.float16]:
    """Compute what is not on disk of the features of the training split, and return them memory-mapped."""
    evaluator = model.evaluator
    source = {
        "dataset": model.classes.content_sha256,
        "weights_sha256": model.weights_sha256,
        "precision": str(evaluator.precision),
    }
    shape = (dataset.num_samples("train"), model.classifier.num_described)
    file = FeatureFile(model.folder / _FEATURES, shape, np.float16, source)
    require_room(model.folder, [file], f"{model.folder}: the index takes", "move the run to a disk with more room")
    feature_pass = FeaturePass(model.classifier.describe, evaluator.preprocess, evaluator.precision, pictures.workers)
    with closing(SplitReader(dataset, "train", pictures.cache.resolved())) as reader:
        file.write(feature_pass, reader, convert=unit_vectors_in(evaluator.precision), quiet=pictures.quiet)
    features: NDArray[np.float16] = file.read()
    return features


def _blends(
    features: NDArray[np.float16],
    labels: NDArray[np.int64],
    sample: ValidationSample | None,
    temperature: float | None,
) -> list[tuple[float, float]]:
    """Return weight and temperature for each number of neighbours, picked by the sample if there is one."""
    number = min(MAX_NEIGHBOURS, len(features))
    if sample is None:
        return [(UNPICKED.weight, UNPICKED.temperature)] * number
    of_target = probabilities_of(sample.logits, sample.targets, temperature or 1.0)
    cosines, is_target = [], []
    for start in range(0, len(sample.targets), _QUERIES):
        part = slice(start, start + _QUERIES)
        found, rows = nearest(features, unit_vectors(torch.from_numpy(sample.described[part])), number)
        cosines.append(found.numpy())
        is_target.append(labels[rows.numpy()] == sample.targets[part, None])
    picked = pick_blends(of_target, np.concatenate(cosines), np.concatenate(is_target))
    return [(blend.weight, blend.temperature) for blend in picked]


def _write_samples(path: Path, dataset: ShardedDataset) -> NDArray[np.int64]:
    """Write key and label of each training picture, in the order of the features, and return the labels."""
    table = dataset.index_table("train", ["key", "label"])
    with atomic_file(path) as file:
        pq.write_table(table.select(["key", "label"]), file, compression="zstd")
    labels: NDArray[np.int64] = table["label"].to_numpy().astype(np.int64)
    return labels


def _read_samples(path: Path, num_samples: int, num_classes: int) -> tuple[pa.ChunkedArray, NDArray[np.int64]]:
    """Return keys, strings [N], and labels, int64 [N]. Raises UserError for a file that does not fit."""
    try:
        with open_regular(path) as source:
            table = read_parquet(source, ["key", "label"], _LIMITS)
        keys, labels = table["key"], table["label"]
        if table.num_rows != num_samples or not pa.types.is_integer(labels.type) or keys.null_count + labels.null_count:
            raise ValueError(f"has not the keys and labels of {num_samples:,} pictures")
        keys, numbers = keys.cast(pa.string()), labels.to_numpy().astype(np.int64)
        if numbers.min() < 0 or numbers.max() >= num_classes:
            raise ValueError("has labels that the run does not have")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; {_AGAIN}") from None
    except (pa.ArrowException, OSError, ValueError, KeyError, MemoryError) as error:
        raise UserError(f"{path}: not the samples of an index ({one_line(error)}); {_AGAIN}") from None
    return keys, numbers
