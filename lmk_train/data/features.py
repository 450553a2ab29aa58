"""Features of a frozen backbone for every picture of a dataset, computed once, so that heads train in seconds."""

import json
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
from lmk_data.system.files import check_no_link, make_folder, sha256_file, write_bytes
from lmk_train.config.training import ResolvedConfig
from lmk_train.data.augment import Augmentation, Preprocess
from lmk_train.data.feature_pass import FeatureFile, FeaturePass, require_room
from lmk_train.data.reader import SplitReader
from lmk_train.models.registry import ARCHITECTURES, make_backbone
from lmk_train.models.state_dicts import state_sha256
from lmk_train.models.weights import load_weights
from lmk_train.runs.plain_file import read_bounded
from lmk_train.runtime.precision import Precision, resolve_device

CACHED_SPLITS = ("train", "val")
_DESCRIPTION = "features.json"


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
class CachedFeatures:
    """A folder with the features of a dataset's training and validation splits, one memory-mapped `.npy` for each."""

    folder: Path
    dataset: ShardedDataset
    config: ResolvedConfig

    @classmethod
    def open(cls, folder: Path, dataset: ShardedDataset, config: ResolvedConfig) -> "CachedFeatures":
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
        features = _feature_file(self.folder, self.dataset, split, self.config).read()
        return FeatureReader(pictures, features)


def has_features(config: ResolvedConfig, folder: Path) -> bool:
    """Return whether the features of a configuration are in a folder; raise UserError if those of another are."""
    if not (folder / _DESCRIPTION).exists():
        return False
    with ShardedDataset.open(config.shards, base=config.base) as dataset:
        CachedFeatures.open(folder, dataset, config)
    return True


def compute_features(config: ResolvedConfig, folder: Path, announce: Callable[[str], None]) -> None:
    """Run the training and validation split through the backbone of a resolved configuration, unless this was done.

    Writes `<split>.npy`, float32 [N, D] in row order, and at the end the description that says the folder is finished.
    What an interrupted call computed is not computed again.
    """
    if has_features(config, folder):
        return
    with ShardedDataset.open(config.shards, base=config.base) as dataset:
        backbone = make_backbone(config, dataset.recipe.size)
        source = load_weights(backbone, config.model, config.weights, config.conventions)
        announce(f"{config.model}: {source}; computing its features once")
        network = {"network_sha256": state_sha256(backbone.state_dict())}
        feature_pass = _feature_pass(backbone, config)
        check_no_link(folder)
        make_folder(folder)
        splits = [split for split in CACHED_SPLITS if dataset.num_samples(split)]
        files = {split: _feature_file(folder, dataset, split, config, **network) for split in splits}
        require_room(folder, files.values(), f"{folder}: the features take", "make room, or name another --out")
        for split, file in files.items():
            with closing(SplitReader(dataset, split, config.cache.resolved())) as reader:
                file.write(feature_pass, reader, quiet=config.quiet)
        write_bytes(folder / _DESCRIPTION, json.dumps(_description(dataset, config), indent=2).encode() + b"\n")


def _feature_file(
    folder: Path, dataset: ShardedDataset, split: str, config: ResolvedConfig, **source: str
) -> FeatureFile:
    """Return the file of a split; `source` is what its features depend on beside the description."""
    shape = (dataset.num_samples(split), ARCHITECTURES[config.model].num_features)
    return FeatureFile(folder / f"{split}.npy", shape, np.float32, {**_description(dataset, config), **source})


def _feature_pass(backbone: nn.Module, config: ResolvedConfig) -> FeaturePass:
    """Return the pass of a backbone, which is moved to the device, in the precision of the configuration."""
    device = resolve_device(config.device)
    precision = Precision.resolve(config.amp, device)
    backbone.to(device).to(memory_format=torch.channels_last).eval()
    normalization, dtype = ARCHITECTURES[config.model].normalization, precision.dtype or torch.float32
    return FeaturePass(backbone, Preprocess(normalization, Augmentation(), device, dtype), precision, config.workers)


def no_preprocessing(features: torch.Tensor, _: torch.Tensor | None) -> torch.Tensor:
    """Return features, float32 [B, D], unchanged: takes the place of `Preprocess` in a training on features."""
    return features


def _description(dataset: ShardedDataset, config: ResolvedConfig) -> dict[str, Any]:
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
