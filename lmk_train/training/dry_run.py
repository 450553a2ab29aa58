"""What a training would be: sizes, steps, memory, the expected initial loss; one batch is run through the model."""

import math
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from lmk_data.dataset import ShardedDataset
from lmk_train.config.training import ResolvedConfig, TrainConfig
from lmk_train.data.augment import augmentation_draws
from lmk_train.data.stream import Batch
from lmk_train.models.losses import arcface_margins, ldam_margins, log_prior
from lmk_train.models.registry import ARCHITECTURES, num_parameters
from lmk_train.runs.folder import check_run
from lmk_train.runtime.precision import resolve_device
from lmk_train.runtime.world import joined_world
from lmk_train.training.assembly import make_trainer
from lmk_train.training.loop import batch_stream, micro_batches
from lmk_train.training.trainer import Trainer

_FLOAT32 = 4
_OPTIMIZER_FLOATS = {"sgd": 1, "adamw": 2}


@dataclass(frozen=True)
class DryRun:
    """Sizes are numbers of parameters; memory is in bytes of one rank on the training device.

    `expected_loss` is that of random features under the new head; `first_loss` is the mean of the first micro-batch.
    """

    rank: int
    backbone_parameters: int
    head_parameters: int
    num_steps: int
    steps_per_epoch: int
    micro_batch: int
    weights_bytes: int
    activations_bytes: int
    expected_loss: float
    first_loss: float


def dry_run(asked: TrainConfig, announce: Callable[[str], None]) -> DryRun:
    """Put a training together and run its first micro-batch through the model; nothing is written.

    Raises what `train` raises before its first step, but does not read a checkpoint to resume from.
    """
    config = asked.resolved()
    with (
        joined_world(resolve_device(config.device)) as world,
        ShardedDataset.open(config.shards, base=config.base) as dataset,
    ):
        config = check_run(config.out, config)
        trainer = make_trainer(config, dataset, world, world.first_only(announce))
        trainer.model.freeze(config.freeze_backbone_epochs >= config.epochs)
        with closing(trainer.train), closing(batch_stream(trainer)(micro_batches(trainer, 0, 0))) as batches:
            batch = next(batches)
            activations, first_loss = _one_pass(trainer, batch)
        backbone = num_parameters(trainer.model.backbone)
        head = num_parameters(trainer.model) - backbone
        trained = sum(parameter.numel() for parameter in trainer.model.parameters() if parameter.requires_grad)
        floats = backbone + head + trained * (1 + _OPTIMIZER_FLOATS[config.optimizer])
        floats += (backbone + head) * (config.ema is not None)
        counts = dataset.classes["train"].to_numpy(np.int64)
        return DryRun(
            rank=world.rank,
            backbone_parameters=backbone,
            head_parameters=head,
            num_steps=trainer.num_steps,
            steps_per_epoch=trainer.steps_per_epoch,
            micro_batch=len(batch.picks),
            weights_bytes=floats * _FLOAT32,
            activations_bytes=activations,
            expected_loss=expected_loss(config, counts),
            first_loss=first_loss,
        )


def expected_loss(config: ResolvedConfig, train_counts: NDArray[np.int64]) -> float:
    """Return the mean loss over the training split, int64 [K] images, under a head that has learnt nothing.

    A linear head's logits are about 0: log K, or under balanced softmax the entropy of the class prior. Random cosines
    have a variance of 1 / D: s^2 / 2D more, and what the largest of several centres adds. LDAM adds its margins, s
    times each under the cosine head; ArcFace turns a right angle by its margins.
    """
    share = train_counts / train_counts.sum()
    if config.loss == "balanced-softmax":
        base = -float(share @ log_prior(train_counts).double().numpy())
    else:
        base = math.log(len(train_counts))
    if config.cosine_scale is not None:
        num_features = config.neck or ARCHITECTURES[config.model].num_features
        num_centers = config.subcenters if config.loss == "arcface" else 1
        base += _spread_of_largest(config.cosine_scale / math.sqrt(num_features), num_centers)
    if config.loss == "ldam":
        margins = ldam_margins(train_counts, config.ldam_max_margin).double().numpy()
        base += (config.cosine_scale or 1.0) * float(share @ margins)
    if config.loss == "arcface":
        angles = arcface_margins(train_counts, config.arcface_margin, config.arcface_min_margin).double().numpy()
        base += (config.cosine_scale or 1.0) * float(share @ np.sin(angles))
    return base


def _spread_of_largest(deviation: float, number: int) -> float:
    """Return log E exp(m) - E m of the largest m of so many normal values around 0; deviation^2 / 2 for one."""
    values = torch.linspace(-10, 10, 2001, dtype=torch.float64)
    density = torch.exp(-(values**2) / 2) * torch.special.ndtr(values) ** (number - 1)
    density /= density.sum()
    return float((density @ torch.exp(deviation * values)).log() - deviation * (density @ values))


def _one_pass(trainer: Trainer, batch: Batch) -> tuple[int, float]:
    """Return the bytes that a forward pass keeps for its backward pass, pixels included, and the mean loss."""
    own = {parameter.untyped_storage().data_ptr() for parameter in trainer.model.parameters()}
    kept: dict[int, int] = {}

    def remember(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    pictures = trainer.preprocess(batch.pixels, augmentation_draws(batch.picks, trainer.config.seed, 0))
    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        with trainer.precision.autocast():
            logits = trainer.model(pictures)
        losses = trainer.criterion(logits, batch.labels)
    gradient_of_logits = logits.numel() * _FLOAT32
    return sum(kept.values()) + batch.pixels.nbytes + gradient_of_logits, losses.mean().item()
