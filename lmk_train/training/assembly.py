"""Assemble a training: dataset, model, loss and optimiser on the device."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.optim.swa_utils import AveragedModel

from lmk_data.dataset import ShardedDataset
from lmk_data.errors import UserError
from lmk_data.system.files import sha256_file
from lmk_data.system.terminal import counted
from lmk_train.config.training import ResolvedConfig
from lmk_train.data.augment import Augmentation, Preprocess
from lmk_train.data.features import CachedFeatures, no_preprocessing
from lmk_train.data.mixing import PAIR, Mixing
from lmk_train.data.order import class_picks, epoch_length, num_batches
from lmk_train.data.reader import Reader, SplitReader
from lmk_train.evaluation.evaluate import check_metric
from lmk_train.models.heads import Classifier
from lmk_train.models.losses import (
    LDAM,
    ArcFace,
    BalancedSoftmax,
    CrossEntropy,
    arcface_margins,
    drw_weights,
    ldam_margins,
    log_prior,
)
from lmk_train.models.registry import ARCHITECTURES, build_model, num_parameters, set_bn_momentum
from lmk_train.models.weights import load_weights
from lmk_train.runtime.backend import set_backend_flags
from lmk_train.runtime.compiling import compile_in_place
from lmk_train.runtime.precision import Precision, resolve_device
from lmk_train.runtime.world import World
from lmk_train.training.optim import averaged_model, make_optimizer
from lmk_train.training.trainer import Trainer


def make_trainer(
    config: ResolvedConfig,
    dataset: ShardedDataset,
    world: World,
    announce: Callable[[str], None],
    features: CachedFeatures | None = None,
) -> Trainer:
    """Put dataset, model, loss and optimiser together on the device.

    Args:
        config: what to train.
        dataset: the opened dataset; it stays open as long as the trainer is used.
        world: the ranks that train together.
        announce: is given one line about the model.
        features: cached features to train the head on instead of pictures; the configuration freezes the backbone.

    Raises UserError if configuration, dataset and number of ranks do not fit together.
    """
    assert features is None or config.freeze_backbone_epochs >= config.epochs, "the backbone of features is frozen"
    device = resolve_device(config.device)
    set_backend_flags(config.deterministic)
    pictures = partial(SplitReader, dataset, cache=config.cache.resolved())
    open_reader: Callable[[str], Reader] = pictures if features is None else features.reader
    if not dataset.num_samples("train"):
        raise UserError(f"{dataset.location}: has no training split; build it again with another --split")
    reader = open_reader("train")
    steps_per_epoch = num_batches(epoch_length(reader.labels, config.sampling), config.batch_size, drop_last=True)
    if not steps_per_epoch:
        raise UserError(
            f"--batch-size {config.batch_size}: more than the {len(reader)} training images; give a smaller one"
        )
    _check(config, dataset, device, world)
    mixing = _mixing(config, world) if features is None else None
    model = _make_model(config, dataset, device, world, announce)
    optimizer = make_optimizer(
        model, config.optimizer, lr=config.lr, head_lr=config.head_lr, weight_decay=config.weight_decay
    )
    precision = Precision.resolve(config.amp, device)
    train_counts = dataset.classes["train"].to_numpy(np.int64)
    starts_from_a_file = config.weights not in ("imagenet", "none")
    return Trainer(
        config=config,
        run=config.out,
        dataset=dataset,
        world=world,
        model=model,
        criterion=make_criterion(config, train_counts).to(device),
        optimizer=optimizer,
        precision=precision,
        scaler=precision.grad_scaler(),
        preprocess=_preprocess(config, precision) if features is None else no_preprocessing,
        mixing=mixing,
        open_reader=open_reader,
        train=reader,
        steps_per_epoch=steps_per_epoch,
        averaged=None if config.ema is None else _averaged(model, config, device),
        class_weights=None if config.drw_start is None else drw_weights(train_counts),
        weights_sha256=sha256_file(Path(config.weights)) if starts_from_a_file and not config.resume else None,
    )


def _make_model(
    config: ResolvedConfig, dataset: ShardedDataset, device: torch.device, world: World, announce: Callable[[str], None]
) -> Classifier:
    """Return the model on its device, with its initial weights unless a checkpoint will replace them."""
    torch.manual_seed(config.seed)
    model = build_model(config, dataset.num_classes, dataset.recipe.size)
    if not config.resume:
        loaded = load_weights(model.backbone, config.model, config.weights, config.conventions)
        announce(_headline(config, dataset, model, loaded))
    if config.sync_bn and world.size > 1:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    set_bn_momentum(model, config.bn_momentum)
    model.to(device).to(memory_format=torch.channels_last).train()
    if config.compile:
        compile_in_place(model.backbone, device)
    return model


def _averaged(model: Classifier, config: ResolvedConfig, device: torch.device) -> AveragedModel:
    averaged = averaged_model(model)
    if config.compile:  # a copy of a compiled module is not compiled
        compile_in_place(cast(Classifier, averaged.module).backbone, device)
    return averaged


def _check(config: ResolvedConfig, dataset: ShardedDataset, device: torch.device, world: World) -> None:
    """Raise UserError for options that do not fit the dataset, the device or the number of ranks."""
    if config.batch_size < world.size * config.grad_accum:
        parts = f"{world.size} ranks times {config.grad_accum} micro-batches"
        raise UserError(f"--batch-size {config.batch_size}: less than {parts}; give a larger one")
    _check_batch_normalization(config, dataset.recipe.size, world)
    if dataset.num_samples("val"):
        check_metric(f"--best-by {config.best_by}", config.best_by, dataset)
    if config.sync_bn and device.type != "cuda":
        raise UserError("--sync-bn: works on CUDA only; leave it out")


def _check_batch_normalization(config: ResolvedConfig, picture_size: int, world: World) -> None:
    """Raise UserError for micro-batches of one picture whose last feature map, or whose neck, is a single pixel.

    Batch normalisation would have a single value per channel, and nothing to normalise.
    """
    smallest = config.batch_size // (world.size * config.grad_accum)
    trains = config.freeze_backbone_epochs < config.epochs
    together = config.sync_bn and world.size > 1
    if smallest > 1 or together:
        return
    if config.neck is not None:
        raise UserError(
            f"--batch-size {config.batch_size}: leaves micro-batches of one picture, and the batch normalisation of "
            "--neck needs two; give a larger batch"
        )
    if trains and picture_size <= ARCHITECTURES[config.model].stride:
        raise UserError(
            f"--batch-size {config.batch_size}: leaves micro-batches of one picture, whose {picture_size} pixels "
            f"{config.model} reduces to one: batch normalisation needs two; give a larger batch"
        )


def _preprocess(config: ResolvedConfig, precision: Precision) -> Preprocess:
    augmentation = Augmentation(
        hflip=config.hflip,
        color_jitter=config.color_jitter,
        crop_padding=config.crop_padding,
        random_resized_crop=config.random_resized_crop,
        random_erasing=config.random_erasing,
    )
    normalization = ARCHITECTURES[config.model].normalization
    return Preprocess(normalization, augmentation, precision.device, precision.dtype or torch.float32)


def _mixing(config: ResolvedConfig, world: World) -> Mixing | None:
    """Return how pictures are mixed, None if they are not.

    Raises UserError if a pair of a batch would be divided between ranks or micro-batches.
    """
    if config.mixup is None and config.cutmix is None:
        return None
    flag, multiple = "--mixup" if config.mixup is not None else "--cutmix", PAIR * world.size * config.grad_accum
    if config.batch_size % multiple:
        parts = f"{world.size} ranks times {config.grad_accum} micro-batches"
        raise UserError(
            f"{flag}: mixes pairs, which --batch-size {config.batch_size} would divide among {parts}; give a multiple "
            f"of {multiple}"
        )
    return Mixing(config.mixup, config.cutmix)


def make_criterion(config: ResolvedConfig, train_counts: NDArray[np.int64]) -> nn.Module:
    """Return the loss for the class counts of the training split, int64 [K].

    The prior that balanced softmax corrects for is that of the samples as they are drawn.
    """
    if config.loss == "ce":
        return CrossEntropy(config.label_smoothing)
    if config.loss == "balanced-softmax":
        return BalancedSoftmax(log_prior(class_picks(train_counts, config.sampling)))
    if config.loss == "arcface":
        margins = arcface_margins(train_counts, config.arcface_margin, config.arcface_min_margin)
        return ArcFace(margins, config.cosine_scale or 1.0)
    return LDAM(ldam_margins(train_counts, config.ldam_max_margin), config.cosine_scale or 1.0)


def _headline(config: ResolvedConfig, dataset: ShardedDataset, model: Classifier, weights: str) -> str:
    backbone = num_parameters(model.backbone)
    head = num_parameters(model) - backbone
    return (
        f"{config.model}: {backbone / 1e6:.1f} M parameters ({weights}) + {head / 1e6:.2f} M in a {config.head} head "
        f"of {counted(dataset.num_classes, 'class')}; {config.loss} on {counted(dataset.num_samples('train'), 'image')}"
    )
