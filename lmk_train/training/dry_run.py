"""What a training would be: sizes, steps, memory, the expected initial loss."""

import math
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from lmk_data.dataset import ShardedDataset
from lmk_train.config.training import ResolvedConfig, TrainConfig
from lmk_train.data.order import class_picks
from lmk_train.models.losses import arcface_margins, ldam_margins, log_prior
from lmk_train.models.registry import ARCHITECTURES, num_parameters
from lmk_train.runs.folder import check_run
from lmk_train.runtime.precision import resolve_device
from lmk_train.runtime.world import joined_world
from lmk_train.training.assembly import make_trainer
from lmk_train.training.batch_size import device_memory, resolved_for
from lmk_train.training.loop import batch_stream, micro_batches
from lmk_train.training.memory import Measured, Memory, estimate, forward_pass, measure


@dataclass(frozen=True)
class DryRun:
    """Numbers of parameters and updates, and the memory of one rank.

    `micro_batch` is the number of pictures at once. `measured` is None on the CPU. `expected_loss` is that of random
    features under the new head; `first_loss` is the mean of the first micro-batch.
    """

    rank: int
    backbone_parameters: int
    head_parameters: int
    num_steps: int
    steps_per_epoch: int
    micro_batch: int
    memory: Memory
    measured: Measured | None
    expected_loss: float
    first_loss: float


def dry_run(asked: TrainConfig, announce: Callable[[str], None]) -> DryRun:
    """Put a training together and run its first micro-batch through the model, on CUDA two updates; write nothing.

    Raises what `train` raises before its first step, but does not read a checkpoint to resume from.
    """
    config = asked.resolved()
    device = resolve_device(config.device)
    with joined_world(device) as world, ShardedDataset.open(config.shards, base=config.base) as dataset:
        say = world.first_only(announce)
        config = check_run(config.out, resolved_for(asked, dataset, world, device_memory(device), say))
        trainer = make_trainer(config, dataset, world, say)
        if config.freeze_backbone_epochs < config.epochs:  # the epoch that takes most: the first with all gradients
            trainer.progress.step = config.freeze_backbone_epochs * trainer.steps_per_epoch
        trainer.forward()  # freezes the backbone, or not
        with closing(trainer.train):
            with closing(batch_stream(trainer)(micro_batches(trainer, trainer.epoch, 0))) as batches:
                batch = next(batches)
                activations, first_loss = forward_pass(trainer, batch)
            memory = estimate(trainer, activations)
            measured = measure(trainer)
        counts = dataset.classes["train"].to_numpy(np.int64)
        backbone = num_parameters(trainer.model.backbone)
        return DryRun(
            rank=world.rank,
            backbone_parameters=backbone,
            head_parameters=num_parameters(trainer.model) - backbone,
            num_steps=trainer.num_steps,
            steps_per_epoch=trainer.steps_per_epoch,
            micro_batch=len(batch.picks),
            memory=memory,
            measured=measured,
            expected_loss=expected_loss(config, counts),
            first_loss=first_loss,
        )


def expected_loss(config: ResolvedConfig, train_counts: NDArray[np.int64]) -> float:
    """Return the mean loss over the training split, int64 [K] images, under a head that has learnt nothing.

    A linear head's logits are about 0: log K, or under balanced softmax the entropy of the class prior. Random cosines
    have a variance of 1 / D: s^2 / 2D more, and what the largest of several centres adds. LDAM adds its margins, s
    times each under the cosine head; ArcFace turns a right angle by its margins.
    """
    picks = class_picks(train_counts, config.sampling)
    share = picks / picks.sum()
    if config.loss == "balanced-softmax":
        base = -float(share @ log_prior(picks).double().numpy())
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
