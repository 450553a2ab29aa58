"""Features of a frozen backbone for every picture of a dataset, computed once, so that heads train in seconds."""

import json
import os
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from lmk_data.dataset import ShardedDataset
from lmk_data.errors import UserError
from lmk_data.system.files import check_no_link, make_folder, sha256_file, sync_folder, write_bytes
from lmk_data.system.terminal import progress_bar
from lmk_train.config.training import ResolvedConfig
from lmk_train.data.augment import Augmentation, Preprocess
from lmk_train.data.order import batch_picks, num_batches
from lmk_train.data.reader import SplitReader
from lmk_train.data.stream import BatchStream
from lmk_train.models.registry import ARCHITECTURES, make_backbone
from lmk_train.models.weights import load_weights
from lmk_train.runs.plain_file import one_line, open_regular, read_bounded
from lmk_train.runtime.precision import Precision, resolve_device

SPLITS = ("train", "val")
_DESCRIPTION = "features.json"
_BATCH_SIZE = 64


class FeatureReader:
    """A split whose samples are features, float32 [D], in place of the pictures of a `SplitReader`; same rows."""

    def __init__(self, pictures: SplitReader, features: NDArray[np.float32]) -> None:
        """Serve `features`, float32 [N, D], under the keys and labels of `pictures`."""
        self._pictures, self._features = pictures, features
        self.split, self.labels, self.shard_of_row = pictures.split, pictures.labels, pictures.shard_of_row
        self.shape: tuple[int, ...] = (int(features.shape[1]),)
        self.dtype: np.dtype[Any] = np.dtype(np.float32)

    def __len__(self) -> int:
        return len(self._pictures)

    @property
    def default_workers(self) -> int:
        """One thread, since rows are only copied."""
        return 1

    def keys(self, rows: NDArray[np.int64] | None = None) -> NDArray[np.object_]:
        """Return the keys of these rows, or of all rows in order."""
        return self._pictures.keys(rows)

    def expect(self, picks: NDArray[np.int64]) -> None:
        """Do nothing: features are files of this machine."""

    def decode(self, rows: NDArray[np.int64], out: NDArray[np.float32]) -> None:
        """Copy the features of these rows into `out`, float32 [len(rows), D]."""
        np.take(self._features, rows, axis=0, out=out)

    def close(self) -> None:
        """Close the shards of the pictures."""
        self._pictures.close()


@dataclass(frozen=True)
class FeatureStore:
    """A folder with the features of a dataset's training and validation splits, one memory-mapped `.npy` for each."""

    folder: Path
    dataset: ShardedDataset
    config: ResolvedConfig

    @classmethod
    def open(cls, folder: Path, dataset: ShardedDataset, config: ResolvedConfig) -> "FeatureStore":
        """Open the folder that `compute_features` wrote.

        Raises:
            UserError: it is not finished, or was made for another dataset, backbone, weights or precision.
        """
        try:
            description = json.loads(read_bounded(folder / _DESCRIPTION))
        except (FileNotFoundError, ValueError, RecursionError):
            raise UserError(f"{folder}: has no finished features") from None
        if description != _description(dataset, config):
            raise UserError(
                f"{folder}: features of another dataset or backbone; remove the folder to compute them again"
            )
        return cls(folder, dataset, config)

    def reader(self, split: str) -> FeatureReader:
        """Return the reader of a split's features; raise UserError if the file does not match the split."""
        pictures = SplitReader(self.dataset, split, self.config.cache.resolved())
        path = self.folder / f"{split}.npy"
        try:
            with open_regular(path):
                features = np.lib.format.open_memmap(path, mode="r")  # refuses objects, which would be unpickled
        except (OSError, EOFError, ValueError, TypeError, OverflowError) as error:
            raise UserError(
                f"{path}: not readable features ({one_line(error)}); remove the folder to compute them again"
            ) from None
        shape = (len(pictures), ARCHITECTURES[self.config.model].num_features)
        if features.shape != shape or features.dtype != np.float32:
            raise UserError(
                f"{path}: {features.dtype} {features.shape} instead of float32 {shape}; "
                "remove the folder to compute them again"
            )
        return FeatureReader(pictures, features)


def has_features(config: ResolvedConfig, folder: Path) -> bool:
    """Return whether the features of a configuration are in a folder; raise UserError if those of another are."""
    if not (folder / _DESCRIPTION).exists():
        return False
    with ShardedDataset.open(config.shards, base=config.base) as dataset:
        FeatureStore.open(folder, dataset, config)
    return True


def compute_features(config: ResolvedConfig, folder: Path, announce: Callable[[str], None]) -> None:
    """Run the training and validation split through the backbone of a resolved configuration, unless this was done.

    Writes `<split>.npy`, float32 [N, D] in row order, and at the end the description that says the folder is finished.
    """
    if has_features(config, folder):
        return
    with ShardedDataset.open(config.shards, base=config.base) as dataset:
        description = _description(dataset, config)
        device = resolve_device(config.device)
        backbone = make_backbone(config, dataset.recipe.size)
        source = load_weights(backbone, config.model, config.weights, config.conventions)
        announce(f"{config.model}: {source}; computing its features once")
        backbone.to(device).to(memory_format=torch.channels_last).eval()
        check_no_link(folder)
        make_folder(folder)
        for split in (one for one in SPLITS if dataset.num_samples(one)):
            _compute_split(backbone, dataset, split, config, folder / f"{split}.npy")
        write_bytes(folder / _DESCRIPTION, json.dumps(description, indent=2).encode() + b"\n")


def _compute_split(
    backbone: nn.Module, dataset: ShardedDataset, split: str, config: ResolvedConfig, path: Path
) -> None:
    """Write the features of one split to `path`, which exists only once it is complete."""
    device = resolve_device(config.device)
    precision = Precision.resolve(config.amp, device)
    architecture = ARCHITECTURES[config.model]
    dtype = precision.dtype or torch.float32
    preprocess = Preprocess(architecture.normalization, Augmentation(), device, dtype)
    rows = np.arange(dataset.num_samples(split), dtype=np.int64)
    temporary = path.with_suffix(".tmp")
    temporary.unlink(missing_ok=True)  # it may be a link, through which nothing is written
    features = np.lib.format.open_memmap(temporary, "w+", np.float32, (len(rows), architecture.num_features))
    picks = (
        batch_picks(rows, step, _BATCH_SIZE) for step in range(num_batches(len(rows), _BATCH_SIZE, drop_last=False))
    )
    with (
        closing(SplitReader(dataset, split, config.cache.resolved())) as reader,
        closing(BatchStream(reader, device, _BATCH_SIZE, config.workers)(picks)) as batches,
        torch.inference_mode(),
        progress_bar(len(rows), f"features of {split}", "images", quiet=config.quiet) as bar,
    ):
        for batch in batches:
            with precision.autocast():
                output = backbone(preprocess(batch.pixels, None))
            features[batch.picks] = output.float().cpu().numpy()
            bar.update(len(batch.picks))
    features.flush()
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def no_preprocessing(features: torch.Tensor, _: torch.Tensor | None) -> torch.Tensor:
    """Return features, float32 [B, D], unchanged: takes the place of `Preprocess` in a training on features."""
    return features


def _description(dataset: ShardedDataset, config: ResolvedConfig) -> dict[str, str | None]:
    """Return everything that features depend on."""
    path = Path(config.weights)
    return {
        "content_sha256": dataset.manifest["content_sha256"],
        "model": config.model,
        "weights": config.weights,
        "weights_sha256": sha256_file(path) if path.is_file() else None,
        "amp": config.amp,
        **({} if config.pool == "avg" else {"pool": config.pool}),
        **({} if config.conventions == "tensorflow" else {"conventions": config.conventions}),
    }
