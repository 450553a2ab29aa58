"""A training put together: dataset, model, loss and optimiser on their device."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from lmk_data.dataset import ShardedDataset
from lmk_data.errors import UserError
from lmk_data.system.files import sha256_file
from lmk_train.config.training import TrainConfig
from lmk_train.data.augment import Augmentation, Preprocess
from lmk_train.data.features import FeatureStore, no_preprocessing
from lmk_train.data.order import epoch_length, num_batches
from lmk_train.data.reader import Reader, SplitReader
from lmk_train.evaluation.evaluate import check_metric
from lmk_train.models.heads import Classifier
from lmk_train.models.losses import LDAM, BalancedSoftmax, CrossEntropy, drw_weights, ldam_margins, log_prior
from lmk_train.models.registry import ARCHITECTURES, build_model, num_parameters, set_bn_momentum
from lmk_train.models.weights import load_weights
from lmk_train.runtime.precision import Precision
from lmk_train.runtime.world import World
from lmk_train.training.optim import averaged_model, make_optimizer
from lmk_train.training.trainer import Trainer


def make_trainer(
    config: TrainConfig,
    run: Path,
    dataset: ShardedDataset,
    device: torch.device,
    world: World,
    announce: Callable[[str], None],
    features: FeatureStore | None = None,
) -> Trainer:
    """Dataset, model, loss and optimiser put together on the device."""
    if not dataset.num_samples("train"):
        raise UserError(f"{dataset.location}: has no training split")
    assert config.batch_size is not None
    assert features is None or config.freeze_backbone_epochs >= (config.epochs or 0), "features are of one backbone"
    pictures = partial(SplitReader, dataset, cache=config.shard_cache)
    open_reader: Callable[[str], Reader] = pictures if features is None else features.reader
    reader = open_reader("train")
    steps_per_epoch = num_batches(epoch_length(reader.labels, config.sampling), config.batch_size, drop_last=True)
    if not steps_per_epoch:
        raise UserError(f"--batch-size {config.batch_size}: more than the {len(reader)} training images")
    if config.batch_size < world.size * config.grad_accum:
        parts = f"{world.size} processes times {config.grad_accum} micro-batches"
        raise UserError(f"--batch-size {config.batch_size}: less than {parts}")
    _check_batch_normalization(config, dataset.recipe.size, world)
    if dataset.num_samples("val"):
        check_metric(f"--best-by {config.best_by}", config.best_by, dataset)
    if config.sync_bn and device.type != "cuda":
        raise UserError("--sync-bn: works on CUDA only")
    model = _make_model(config, dataset, device, world, announce)
    assert config.optimizer is not None
    assert config.lr is not None
    assert config.head_lr is not None
    assert config.weight_decay is not None
    optimizer = make_optimizer(
        model, config.optimizer, lr=config.lr, head_lr=config.head_lr, weight_decay=config.weight_decay
    )
    precision = Precision.resolve(config.amp, device)
    train_counts = dataset.classes["train"].to_numpy(np.int64)
    assert config.weights is not None
    starts_from_a_file = config.weights not in ("imagenet", "none")
    return Trainer(
        config=config,
        run=run,
        dataset=dataset,
        world=world,
        model=model,
        criterion=make_criterion(config, train_counts).to(device),
        optimizer=optimizer,
        precision=precision,
        scaler=precision.grad_scaler(),
        preprocess=_preprocess(config, precision) if features is None else no_preprocessing,
        open_reader=open_reader,
        train=reader,
        steps_per_epoch=steps_per_epoch,
        averaged=None if config.ema is None else averaged_model(model),
        class_weights=None if config.drw_start is None else drw_weights(train_counts),
        weights_sha256=sha256_file(Path(config.weights)) if starts_from_a_file and not config.resume else None,
    )


def _make_model(
    config: TrainConfig, dataset: ShardedDataset, device: torch.device, world: World, announce: Callable[[str], None]
) -> Classifier:
    """The model on its device, with the weights that it starts from unless a checkpoint brings them."""
    assert config.weights is not None
    torch.manual_seed(config.seed)
    model = build_model(config, dataset.num_classes, dataset.recipe.size)
    if not config.resume:
        said = load_weights(model.backbone, config.model, config.weights)
        announce(_headline(config, dataset, model, said))
    if config.sync_bn and world.size > 1:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    set_bn_momentum(model, config.bn_momentum)
    model.to(device).to(memory_format=torch.channels_last).train()
    if config.compile:
        model.backbone.compile()
    return model


def _check_batch_normalization(config: TrainConfig, picture_size: int, world: World) -> None:
    """Refuse micro-batches of one picture of which the backbone's last map has one place: there is nothing to
    normalise."""
    assert config.batch_size is not None
    smallest = config.batch_size // (world.size * config.grad_accum)
    trains = config.freeze_backbone_epochs < (config.epochs or 0)
    together = config.sync_bn and world.size > 1
    if trains and smallest == 1 and not together and picture_size <= ARCHITECTURES[config.model].stride:
        raise UserError(
            f"--batch-size {config.batch_size}: leaves micro-batches of one picture, whose {picture_size} pixels "
            f"{config.model} brings down to one: batch normalisation needs two; give more"
        )


def _preprocess(config: TrainConfig, precision: Precision) -> Preprocess:
    augmentation = Augmentation(
        hflip=config.hflip,
        color_jitter=config.color_jitter,
        crop_padding=config.crop_padding,
        random_resized_crop=config.random_resized_crop,
        random_erasing=config.random_erasing,
    )
    normalization = ARCHITECTURES[config.model].normalization
    return Preprocess(normalization, augmentation, precision.device, precision.dtype or torch.float32)


def make_criterion(config: TrainConfig, train_counts: "np.ndarray[tuple[int], np.dtype[np.int64]]") -> nn.Module:
    """The loss of a resolved configuration, for the class counts of the training split."""
    if config.loss == "ce":
        return CrossEntropy(config.label_smoothing)
    if config.loss == "balanced-softmax":
        return BalancedSoftmax(log_prior(train_counts))
    return LDAM(ldam_margins(train_counts, config.ldam_max_margin), config.cosine_scale or 1.0)


def _headline(config: TrainConfig, dataset: ShardedDataset, model: Classifier, weights: str) -> str:
    backbone, head = num_parameters(model.backbone), num_parameters(model.head)
    return (
        f"{config.model}: {backbone / 1e6:.1f} M parameters ({weights}) + {head / 1e6:.2f} M in a {config.head} head "
        f"of {dataset.num_classes:,} classes; {config.loss} on {dataset.num_samples('train'):,} images"
    )
