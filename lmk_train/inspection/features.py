"""The features of all pictures of a dataset on disk: float16, L2-normalised, computed once for each network."""

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lmk_data.dataset import ShardedDataset
from lmk_data.dataset.inspection import FEATURES
from lmk_data.errors import UserError
from lmk_data.system.files import check_no_link, make_folder
from lmk_train.config.commands import InspectConfig
from lmk_train.data.augment import Augmentation, Preprocess
from lmk_train.data.feature_pass import FeatureFile, FeaturePass
from lmk_train.data.reader import SplitReader
from lmk_train.inspection.network import FeatureNetwork
from lmk_train.inspection.rows import SplitFeatures
from lmk_train.runtime.precision import Precision, resolve_device

_KEY_DIGITS = 16
_SPARE_BYTES = 64 << 20  # for tables, pages and records beside the features


@dataclass(frozen=True)
class FeatureStore:
    """The features of a dataset's splits under `folder/<key>/<split>.npy`.

    Attributes:
        folder: of all features of an inspection.
        dataset: the dataset.
        num_features: D.
        source: everything that the features depend on.
    """

    folder: Path
    dataset: ShardedDataset
    num_features: int
    source: dict[str, Any]

    @classmethod
    def of(cls, out: Path, dataset: ShardedDataset, network: FeatureNetwork, precision: Precision) -> "FeatureStore":
        """Return the store of a network's features in the folder of an inspection."""
        source = {
            "dataset": dataset.manifest["content_sha256"],
            "model": network.model,
            "weights": network.weights_sha256,
            "dim": network.num_features,
            "precision": str(precision),
        }
        return cls(out / FEATURES, dataset, network.num_features, source)

    @property
    def key(self) -> str:
        """16 hex digits that stand for `source`."""
        return hashlib.sha256(json.dumps(self.source, sort_keys=True).encode()).hexdigest()[:_KEY_DIGITS]

    def file(self, split: str) -> FeatureFile:
        """Return the file of a split's features."""
        shape = (self.dataset.num_samples(split), self.num_features)
        return FeatureFile(self.folder / self.key / f"{split}.npy", shape, np.float16, self.source)

    def compute(
        self, network: FeatureNetwork, precision: Precision, splits: Sequence[str], config: InspectConfig
    ) -> None:
        """Compute what is not on disk yet.

        Raises:
            UserError: the disk has no room for it, or a feature is not finite.
        """
        folder = self.folder / self.key
        check_no_link(self.folder)
        check_no_link(folder)
        make_folder(folder)
        self._check_room(splits)
        module = network.module.to(precision.device).to(memory_format=torch.channels_last).eval()
        dtype = precision.dtype or torch.float32
        preprocess = Preprocess(network.normalization, Augmentation(), precision.device, dtype)
        feature_pass = FeaturePass(module, preprocess, precision, config.workers)
        for split in splits:
            with closing(SplitReader(self.dataset, split, config.cache.resolved())) as reader:
                self.file(split).write(feature_pass, reader, convert=_unit_vectors(str(precision)), quiet=config.quiet)

    def read(self, splits: Sequence[str]) -> SplitFeatures:
        """Return the features of splits; raise UserError if a file is not whole."""
        return SplitFeatures([self.file(split).read() for split in splits])

    def missing_rows(self, splits: Sequence[str]) -> int:
        """Return how many pictures have no features on disk yet."""
        return sum(self.dataset.num_samples(split) - self.file(split).num_done() for split in splits)

    def _check_room(self, splits: Sequence[str]) -> None:
        missing = self.missing_rows(splits) * self.num_features * np.dtype(np.float16).itemsize
        free = shutil.disk_usage(self.folder).free
        if missing and missing + _SPARE_BYTES > free:
            raise UserError(
                f"--out {self.folder.parent}: the features take {missing / 1e9:.1f} GB more, and {free / 1e9:.1f} GB "
                "are free there; name a folder on a disk with more room"
            )


def open_precision(config: InspectConfig) -> Precision:
    """Return the device and the precision of an inspection; raise UserError if there is no such device."""
    return Precision.resolve(config.amp, resolve_device(config.device))


def _unit_vectors(precision: str) -> Callable[[NDArray[np.float32]], NDArray[np.float16]]:
    """Return the function that divides features, float32 [B, D], by their lengths; zeros stay zeros."""

    def convert(features: NDArray[np.float32]) -> NDArray[np.float16]:
        lengths = np.linalg.norm(features.astype(np.float64), axis=1, keepdims=True)
        if not np.isfinite(lengths).all():
            raise UserError(f"the features are not finite in {precision}; give --amp off, or other weights")
        unit: NDArray[np.float16] = (features / np.maximum(lengths, 1e-12)).astype(np.float16)
        return unit

    return convert
