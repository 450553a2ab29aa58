"""The features of all pictures of a dataset on disk: float16, L2-normalised, computed once for each network."""

import hashlib
import json
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lmk_data.dataset import ShardedDataset
from lmk_data.dataset.inspection import FEATURES
from lmk_data.system.files import check_no_link, make_folder
from lmk_train.config.commands import InspectConfig
from lmk_train.data.augment import Augmentation, Preprocess
from lmk_train.data.feature_pass import FeatureFile, FeaturePass, require_room, unit_vectors_in
from lmk_train.data.reader import SplitReader
from lmk_train.inspection.network import FeatureNetwork
from lmk_train.inspection.rows import SplitFeatures
from lmk_train.runtime.precision import Precision, resolve_device

_KEY_DIGITS = 16


@dataclass(frozen=True)
class InspectedFeatures:
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
    def of(
        cls, out: Path, dataset: ShardedDataset, network: FeatureNetwork, precision: Precision
    ) -> "InspectedFeatures":
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
        what, advice = f"--out {self.folder.parent}: the features take", "name a folder on a disk with more room"
        require_room(self.folder, map(self.file, splits), what, advice)
        module = network.module.to(precision.device).to(memory_format=torch.channels_last).eval()
        dtype = precision.dtype or torch.float32
        preprocess = Preprocess(network.normalization, Augmentation(), precision.device, dtype)
        feature_pass = FeaturePass(module, preprocess, precision, config.workers)
        for split in splits:
            with closing(SplitReader(self.dataset, split, config.cache.resolved())) as reader:
                self.file(split).write(feature_pass, reader, convert=unit_vectors_in(precision), quiet=config.quiet)

    def read(self, splits: Sequence[str]) -> SplitFeatures:
        """Return the features of splits; raise UserError if a file is not whole."""
        return SplitFeatures([self.file(split).read() for split in splits])

    def missing_rows(self, splits: Sequence[str]) -> int:
        """Return how many pictures have no features on disk yet."""
        return sum(self.dataset.num_samples(split) - self.file(split).num_done() for split in splits)


def open_precision(config: InspectConfig) -> Precision:
    """Return the device and the precision of an inspection; raise UserError if there is no such device."""
    return Precision.resolve(config.amp, resolve_device(config.device))
