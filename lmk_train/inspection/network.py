"""The network whose features an inspection compares: that of a run, or a named one with published weights."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lmk_data.dataset import ShardedDataset
from lmk_data.errors import UserError
from lmk_train.config.commands import InspectConfig
from lmk_train.config.defaults import ModelName
from lmk_train.config.training import ResolvedConfig, TrainConfig
from lmk_train.models.heads import Classifier
from lmk_train.models.registry import ARCHITECTURES, Normalization, build_model, make_backbone
from lmk_train.models.state_dicts import state_sha256
from lmk_train.models.weights import conventions_in, load_weights
from lmk_train.runs.checkpoint import load_checkpoint, weights_to_evaluate
from lmk_train.runs.folder import RunFolder, stored_dataset
from lmk_train.runs.tensor_file import restore_weights

_MODEL: ModelName = "efficientnet-lite0"


@dataclass(frozen=True)
class FeatureNetwork:
    """A network that turns pictures float32 [B, 3, H, W] into features float32 [B, D].

    Attributes:
        module: the network, on the CPU.
        model: name of its backbone.
        weights: where its weights are from, for people.
        num_features: D.
    """

    module: nn.Module
    model: str
    weights: str
    num_features: int

    @property
    def normalization(self) -> Normalization:
        """The normalisation of its input."""
        return ARCHITECTURES[self.model].normalization

    @property
    def weights_sha256(self) -> str:
        """The hash of all its weights and buffers."""
        return state_sha256(self.module.state_dict())


class _BackboneAndNeck(nn.Module):
    """The features that the head of a run with a neck compares; the neck computes in float32, as in training."""

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.backbone, self.neck = model.backbone, model.neck

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        features = self.backbone(pictures)
        with torch.autocast(features.device.type, enabled=False):
            described: torch.Tensor = self.neck(features.float())
        return described


class RunToInspect:
    """The checkpoint of a run, and the dataset that it names."""

    def __init__(self, run: Path, checkpoint: str) -> None:
        """Read the checkpoint; raise UserError if it is absent or damaged."""
        self._run, self._checkpoint = run, checkpoint
        self._state: dict[str, Any] = load_checkpoint(run, checkpoint)
        self._trained = ResolvedConfig.from_json(self._state["config"])

    @property
    def dataset(self) -> str:
        """The dataset that the run was trained on; UserError if that is behind a URL, which nobody named."""
        return stored_dataset(self._run, self._trained.shards)

    def network(self, picture_size: int) -> FeatureNetwork:
        """Return backbone and neck of the checkpoint, for pictures of `picture_size` pixels a side.

        The neck belongs to it, where there is one: the head of the run sees nothing else, and compares cosines there.
        """
        trained, path = self._trained, RunFolder(self._run).checkpoint(self._checkpoint)
        model = build_model(trained, len(self._state["classes"]), picture_size)
        restore_weights(model, weights_to_evaluate(self._state), path)
        module = model.backbone if trained.neck is None else _BackboneAndNeck(model)
        num_features = trained.neck or ARCHITECTURES[trained.model].num_features
        return FeatureNetwork(module, trained.model, f"the checkpoint {path}", num_features)


def published_network(config: InspectConfig, dataset: ShardedDataset) -> FeatureNetwork:
    """Return the backbone `--model` with `--weights`, by default those of ImageNet.

    Raises:
        UserError: there are no such weights.
    """
    model: ModelName = config.model or _MODEL
    if config.weights is None and ARCHITECTURES[model].imagenet_weights is None:
        raise UserError(f"--model {model}: has no ImageNet weights; inspect with a run of it, or give another model")
    weights = config.weights or "imagenet"
    conventions = conventions_in(weights, model)
    chosen = TrainConfig(dataset.location, model=model, weights=weights, conventions=conventions).resolved()
    backbone = make_backbone(chosen, dataset.recipe.size)
    source = load_weights(backbone, model, weights, conventions).removesuffix("; the head is new")
    return FeatureNetwork(backbone, model, source, ARCHITECTURES[model].num_features)
