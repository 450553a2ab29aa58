"""What a frozen backbone makes of every picture of a dataset, computed once, so that heads train in seconds."""

import json
import os
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lmk_data.dataset import ShardedDataset
from lmk_data.errors import UserError
from lmk_data.system.files import sha256_file, sync_folder, write_bytes
from lmk_data.system.terminal import progress_bar
from lmk_train.config.training import ResolvedConfig
from lmk_train.data.augment import Augmentation, Preprocess
from lmk_train.data.order import batch_picks, num_batches
from lmk_train.data.stream import BatchStream, SplitReader
from lmk_train.models.registry import ARCHITECTURES, build_model
from lmk_train.models.weights import load_weights
from lmk_train.runtime.precision import Precision, resolve_device
from lmk_train.runtime.world import Rows

SPLITS = ("train", "val")
_DESCRIPTION = "features.json"
_BATCH = 64
_Features = np.ndarray[Any, np.dtype[np.float32]]


class FeatureReader:
    """A split whose samples are features, float32 [D], where `SplitReader`'s are pictures; same rows, same order."""

    def __init__(self, pictures: SplitReader, features: _Features) -> None:
        self._pictures, self._features = pictures, features
        self.split, self.labels, self.shard_of_row = pictures.split, pictures.labels, pictures.shard_of_row
        self.shape: tuple[int, ...] = (int(features.shape[1]),)
        self.dtype: np.dtype[Any] = np.dtype(np.float32)

    def __len__(self) -> int:
        return len(self._pictures)

    @property
    def default_workers(self) -> int:
        """One thread: rows are copied, nothing is decoded."""
        return 1

    def keys(self, rows: Rows | None = None) -> "np.ndarray[tuple[int], np.dtype[np.object_]]":
        """Keys of the samples of these rows, or of all in row order."""
        return self._pictures.keys(rows)

    def expect(self, picks: Rows) -> None:
        """Nothing is fetched: features are on this machine."""

    def decode(self, rows: Rows, out: "np.ndarray[Any, np.dtype[Any]]") -> None:
        """Copy the features of these rows into `out`, float32 [len(rows), D]."""
        np.take(self._features, rows, axis=0, out=out)

    def close(self) -> None:
        """Close the pictures' shards."""
        self._pictures.close()


@dataclass(frozen=True)
class FeatureStore:
    """A folder of features of the training and validation splits of a dataset, one `.npy` each, mapped into memory."""

    folder: Path
    dataset: ShardedDataset
    config: ResolvedConfig

    @classmethod
    def open(cls, folder: Path, dataset: ShardedDataset, config: ResolvedConfig) -> "FeatureStore":
        """Open what `compute_features` made for the same dataset, backbone and weights; UserError if it is not that."""
        try:
            found = json.loads((folder / _DESCRIPTION).read_bytes())
        except (OSError, ValueError):
            raise UserError(f"{folder}: has no finished features") from None
        if found != _description(dataset, config):
            raise UserError(
                f"{folder}: features of another dataset or backbone; remove the folder to compute them anew"
            )
        return cls(folder, dataset, config)

    def reader(self, split: str) -> FeatureReader:
        """The features of a split; UserError if they are not of its samples."""
        pictures = SplitReader(self.dataset, split, self.config.cache.resolved())
        path = self.folder / f"{split}.npy"
        try:
            features = np.load(path, mmap_mode="r")
        except (OSError, EOFError, ValueError) as error:
            raise UserError(
                f"{path}: not readable features ({error}); remove the folder to compute them anew"
            ) from None
        wanted = (len(pictures), ARCHITECTURES[self.config.model].num_features)
        if features.shape != wanted or features.dtype != np.float32:
            raise UserError(f"{path}: {features.dtype} {features.shape} instead of float32 {wanted}; remove the folder")
        return FeatureReader(pictures, features)


def compute_features(config: ResolvedConfig, folder: Path, announce: Callable[[str], None]) -> None:
    """Run the training and the validation split through the backbone of a resolved configuration, unless it was done.

    Writes `<split>.npy`, float32 [N, D] in row order, and last the description that makes them count.
    """
    with ShardedDataset.open(config.shards) as dataset:
        description = _description(dataset, config)
        if (folder / _DESCRIPTION).exists():
            FeatureStore.open(folder, dataset, config)
            return
        device = resolve_device(config.device)
        model = build_model(config.model, 2, head="linear", scale=None, picture_size=dataset.recipe.size)
        announce(f"{config.model}: {load_weights(model, config.model, config.weights)}; computing its features once")
        model.to(device).to(memory_format=torch.channels_last).eval()
        folder.mkdir(parents=True, exist_ok=True)
        for split in SPLITS:
            _compute_split(model.backbone, dataset, split, config, folder / f"{split}.npy")
        if device.type == "cuda":
            del model
            torch.cuda.empty_cache()  # the memory is the trials' now
        write_bytes(folder / _DESCRIPTION, json.dumps(description, indent=2).encode() + b"\n")


def _compute_split(
    backbone: torch.nn.Module, dataset: ShardedDataset, split: str, config: ResolvedConfig, path: Path
) -> None:
    device = resolve_device(config.device)
    precision = Precision.resolve(config.amp, device)
    architecture = ARCHITECTURES[config.model]
    dtype = precision.dtype or torch.float32
    preprocess = Preprocess(architecture.normalization, Augmentation(), device, dtype)
    rows = np.arange(dataset.num_samples(split), dtype=np.int64)
    temporary = path.with_suffix(".tmp")
    features = np.lib.format.open_memmap(temporary, "w+", np.float32, (len(rows), architecture.num_features))
    wanted = (batch_picks(rows, step, _BATCH) for step in range(num_batches(len(rows), _BATCH, drop_last=False)))
    with (
        closing(SplitReader(dataset, split, config.cache.resolved())) as reader,
        closing(BatchStream(reader, device, _BATCH, config.workers)(wanted)) as batches,
        torch.inference_mode(),
        progress_bar(len(rows), f"features of {split}", "images", quiet=config.quiet) as bar,
    ):
        reader.expect(rows)
        for batch in batches:
            with precision.autocast():
                found = backbone(preprocess(batch.pixels, None))
            features[batch.picks] = found.float().cpu().numpy()
            bar.update(len(batch.picks))
    features.flush()
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def as_they_are(features: torch.Tensor, _: torch.Tensor | None) -> torch.Tensor:
    """What stands in for preprocessing where features are trained on: float32 [B, D], unchanged."""
    return features


def _description(dataset: ShardedDataset, config: ResolvedConfig) -> dict[str, str | None]:
    path = Path(config.weights)
    return {
        "content_sha256": dataset.manifest["content_sha256"],
        "model": config.model,
        "weights": config.weights,
        "weights_sha256": sha256_file(path) if path.is_file() else None,
        "amp": config.amp,
    }
