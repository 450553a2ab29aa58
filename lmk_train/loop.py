"""The training step, the epoch, checkpoints and resuming; the only module that knows every part."""

import json
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from lmk_data.dataset import ShardedDataset
from lmk_data.errors import UserError
from lmk_data.files import sha256_file, write_bytes
from lmk_data.terminal import progress_bar
from lmk_train.augment import Augmentation, Preprocess, augmentation_draws
from lmk_train.checkpoint import BEST, FOLDER, LAST, checkpoint_path, load_checkpoint, save_checkpoint
from lmk_train.config import TrainConfig
from lmk_train.evaluation import (
    CONFIG,
    Classes,
    Evaluation,
    check_classes,
    dataset_state,
    evaluate_model,
    model_of,
    predict_split,
)
from lmk_train.features import FeatureStore, as_they_are
from lmk_train.losses import LDAM, BalancedSoftmax, CrossEntropy, drw_weights, ldam_margins, log_prior
from lmk_train.metrics import LOWER_IS_BETTER, Predictions, summarize
from lmk_train.models import ARCHITECTURES, Classifier, load_weights, num_parameters, set_bn_momentum
from lmk_train.optim import averaged_model, clip_gradients, make_optimizer, set_lr, update_average
from lmk_train.options import EvalConfig
from lmk_train.order import Rows, counter_hash, epoch_length, num_batches, share
from lmk_train.precision import Precision, resolve_device
from lmk_train.record import EVENTS, METRICS, Record, buffers
from lmk_train.report import write_run_report
from lmk_train.stream import Batch, BatchStream, Reader, SplitReader
from lmk_train.trainer import NONFINITE, Progress, Sums, Trainer
from lmk_train.world import World, joined_world, under_torchrun

MAY_CHANGE_ON_RESUME = {
    "shards",
    "out",
    "device",
    "workers",
    "grad_accum",
    "cache",
    "cache_gb",
    "checkpoint_minutes",
    "dry_run",
    "profile_input",
    "resume",
    "quiet",
}


@dataclass(frozen=True)
class TrainResult:
    """How training ended: the test evaluation (None without a test split), the best epoch and the validation metric
    that it is the best by (None without a validation split: then the last epoch counts as the best). `rank` is this
    process's."""

    run: Path
    rank: int
    test: Evaluation | None
    best_epoch: int
    best_metric: float | None
    seconds: float


def train(
    config: TrainConfig,
    announce: Callable[[str], None] = lambda _: None,
    *,
    features: Path | None = None,
    evaluate_test: bool = True,
) -> TrainResult:
    """Train from the start, or go on with a run, and evaluate its best checkpoint on the test split.

    `announce` is given one line about the model before training starts. With `features`, a folder of those of the same
    dataset and backbone, which the configuration freezes, no picture is read and none is augmented.

    Raises UserError for a configuration or dataset that does not work, TrainingError if the loss is no longer
    finite, KeyboardInterrupt after a checkpoint when interrupted.
    """
    config = config.resolved()
    assert config.out is not None
    run = config.out
    device = resolve_device(config.device)
    with joined_world(device) as world, ShardedDataset.open(config.shards) as dataset:
        config = check_run(run, config)
        world.wait()
        store = None if features is None else FeatureStore.open(features, dataset, config)
        trainer = make_trainer(config, run, dataset, device, world, world.first_only(announce), store)
        with closing(trainer.train):
            if config.resume:
                _restore(trainer)
            elif world.is_first:
                _start(trainer, announce)
            with Record(trainer) as log, _stopping_gently(under_torchrun()) as stop:
                _train_epochs(trainer, log, stop)
        test = _evaluate_best(trainer) if evaluate_test else None
        if test is not None and world.is_first:
            write_run_report(run, dataset, test.split)
        best = _sign(config) * trainer.progress.best_metric if dataset.num_samples("val") else None
    return TrainResult(run, world.rank, test, trainer.progress.best_epoch, best, trainer.progress.seconds)


def check_run(run: Path, config: TrainConfig) -> TrainConfig:
    """The configuration to train with: where a run ended before its first checkpoint, --resume starts it anew too.

    Raises UserError for a folder that the run can neither start nor go on in.
    """
    if run.exists() and not run.is_dir():
        raise UserError(f"--out {run}: is not a folder; name another")
    if _ended_before_a_checkpoint(run):
        return replace(config, resume=False)
    can_go_on = checkpoint_path(run, LAST).exists()
    if config.resume and not can_go_on:
        raise UserError(f"--resume: {run} has no checkpoint to go on from; leave --resume out to start")
    if not config.resume and run.exists() and any(run.iterdir()):
        what = "holds a run; go on with --resume or name another folder" if can_go_on else "is not empty; name another"
        raise UserError(f"--out {run}: {what}")
    return config


def _ended_before_a_checkpoint(run: Path) -> bool:
    """Whether a folder holds what a training leaves before its first checkpoint, and nothing else."""
    if not (run / CONFIG).exists() or b'"shards"' not in (run / CONFIG).read_bytes():
        return False
    others = {path.name for path in run.iterdir()} - {CONFIG, METRICS, EVENTS, NONFINITE, FOLDER}
    return not others and not any((run / FOLDER).glob("*.pt"))


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
        preprocess=_preprocess(config, precision) if features is None else as_they_are,
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
    model = model_of(config, dataset.num_classes, dataset.recipe.size)
    if not config.resume:
        said = load_weights(model, config.model, config.weights)
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


def _train_epochs(trainer: Trainer, log: Record, stop: "_Stop") -> None:
    config, progress = trainer.config, trainer.progress
    stream = batch_stream(trainer)
    description, quiet = f"training {config.model}", config.quiet or not trainer.world.is_first
    with progress_bar(trainer.num_steps, description, "steps", quiet=quiet, initial=progress.step) as bar:
        while progress.step < trainer.num_steps:
            epoch, first = divmod(progress.step, trainer.steps_per_epoch)
            with closing(stream(micro_batches(trainer, epoch, first))) as batches:
                for _ in range(first, trainer.steps_per_epoch):
                    training_step(trainer, batches)
                    log.after_step(epoch, stream.wait_seconds, stream.copy_seconds)
                    bar.update()
                    bar.set_postfix_str(log.postfix, refresh=False)
                    # The last step of an epoch is saved with its validation, so that resuming cannot skip that.
                    if progress.step % trainer.steps_per_epoch and stop.agreed(trainer.world, log.checkpoint_due()):
                        log.save()
                        stop.heed(progress.step)
            _finish_epoch(trainer, log, epoch + 1)
            stop.agreed(trainer.world, False)
            stop.heed(progress.step)


def batch_stream(trainer: Trainer) -> BatchStream:
    """A stream of this process's micro-batches."""
    config = trainer.config
    assert config.batch_size is not None
    largest = -(-config.batch_size // (trainer.world.size * config.grad_accum)) + 1
    return BatchStream(trainer.train, trainer.precision.device, largest, config.workers)


def micro_batches(trainer: Trainer, epoch: int, first: int) -> Iterator[Rows]:
    """What this process reads from step `first` of an epoch on: its share of each global batch, in micro-batches."""
    config, start = trainer.config, epoch * trainer.steps_per_epoch
    assert config.batch_size is not None
    trainer.train.expect(trainer.order(epoch)[first * config.batch_size :])
    for step in range(start + first, start + trainer.steps_per_epoch):
        picks = trainer.world.share(trainer.global_batch(step))
        for part in range(config.grad_accum):
            yield share(picks, part, config.grad_accum)


def training_step(trainer: Trainer, batches: Iterator[Batch]) -> None:
    """One update of the weights, of the next micro-batches; nothing in it waits for the device."""
    config, forward = trainer.config, trainer.forward()
    set_lr(trainer.optimizer, trainer.rate_factor(trainer.progress.step))
    trainer.optimizer.zero_grad(set_to_none=True)
    for part in range(config.grad_accum):
        is_last = part == config.grad_accum - 1
        with nullcontext() if is_last or trainer.world.size == 1 else forward.no_sync():  # type: ignore[operator]
            _accumulate(trainer, forward, next(batches), part)
    if config.clip_grad is not None or trainer.scaler.is_enabled():
        trainer.scaler.unscale_(trainer.optimizer)
        norm = clip_gradients(trainer.model, config.clip_grad)
        trainer.epoch_sums.skipped += ~norm.isfinite() if trainer.scaler.is_enabled() else 0
    trainer.scaler.step(trainer.optimizer)
    trainer.scaler.update()
    if trainer.averaged is not None:
        assert trainer.config.ema is not None
        update_average(trainer.averaged, trainer.model, trainer.config.ema)
    trainer.progress.step += 1


def _accumulate(trainer: Trainer, forward: nn.Module, batch: Batch, part: int) -> None:
    """Add the gradient of one micro-batch, each sample by its share of the global batch."""
    config, world, step = trainer.config, trainer.world, trainer.progress.step
    assert config.batch_size is not None
    # For dropout: a function of where training stands, so that no random state is saved.
    torch.manual_seed(int(counter_hash(config.seed, step, world.rank, part, 4) >> np.uint64(1)))
    pictures = trainer.preprocess(batch.pixels, augmentation_draws(batch.picks, config.seed, trainer.epoch))
    with trainer.precision.autocast():
        logits = forward(pictures)
    losses = trainer.criterion(logits, batch.labels)
    weights = trainer.sample_weights(batch.labels)
    loss = losses.sum() if weights is None else (losses * weights).sum()
    # The processes' gradients are averaged, not added: hence their number.
    trainer.scaler.scale(loss * (world.size / config.batch_size)).backward()
    correct = (logits.detach().argmax(dim=1) == batch.labels).sum()
    trainer.epoch_sums.add(loss.detach(), correct, len(batch.picks))
    bad = trainer.first_bad_step
    bad.copy_(torch.where(loss.detach().isfinite(), bad, bad.clamp_max(step)))


def _finish_epoch(trainer: Trainer, log: Record, epoch: int) -> None:
    """Validate, keep the best weights, and save; `epoch` counts from 1."""
    config, progress, dataset = trainer.config, trainer.progress, trainer.dataset
    line: dict[str, Any] = {"kind": "epoch", "epoch": epoch, "step": progress.step}
    sums = trainer.sums()
    line |= {
        f"train_{to}": sums[name] / sums["num_samples"] for name, to in (("loss", "loss"), ("correct", "accuracy"))
    }
    trainer.require_finite_weights()
    trainer.world.average_buffers(trainer.model)
    if trainer.averaged is not None:
        trainer.world.average_buffers(trainer.evaluated)
    if dataset.num_samples("val"):
        predictions = _validate(trainer)
        if not predictions.is_finite:
            raise trainer.not_finite("the validation loss is", progress.step - 1)
        metrics = summarize(predictions, dataset.classes["train"].to_numpy(np.int64))
        line |= {f"val_{name}": value for name, value in metrics.items() if name != "num_samples"}
        metric = metrics[config.best_by]
        if metric is None:
            raise UserError(f"--best-by {config.best_by}: the validation split has no class that it is about")
        metric *= _sign(config)
    else:
        metric = float(epoch)  # nothing to judge by: the last epoch counts as the best
    if metric > progress.best_metric:
        progress.best_metric, progress.best_epoch = metric, epoch
        state = {"model": trainer.evaluated.state_dict(), "config": config.json(), **dataset_state(dataset)}
        if trainer.world.is_first:
            save_checkpoint(trainer.run, BEST, state)
    trainer.epoch_sums = Sums.zero(trainer.precision.device)
    log.line(line)
    log.save()


def _validate(trainer: Trainer) -> Predictions:
    config, world, device = trainer.config, trainer.world, trainer.precision.device
    assert config.batch_size is not None
    with closing(trainer.open_reader("val")) as reader:
        return predict_split(
            trainer.evaluated,
            reader,
            BatchStream(reader, device, world.largest_share(config.batch_size), config.workers),
            trainer.preprocess,
            trainer.precision,
            config.batch_size,
            world=world,
        )


def _sign(config: TrainConfig) -> int:
    """What the metric that decides is multiplied by, so that more is better."""
    return -1 if config.best_by in LOWER_IS_BETTER else 1


def _evaluate_best(trainer: Trainer) -> Evaluation | None:
    """Test metrics of the best checkpoint, None without a test split."""
    if not trainer.dataset.num_samples("test"):
        return None
    trainer.evaluated.load_state_dict(load_checkpoint(trainer.run, BEST)["model"])
    config = trainer.config
    evaluated = EvalConfig(
        trainer.run,
        amp=config.amp,
        device=config.device,
        workers=config.workers,
        cache=config.cache,
        cache_gb=config.cache_gb,
        quiet=True,
    )
    device = trainer.precision.device
    classes = Classes.of_dataset(trainer.dataset)
    return evaluate_model(trainer.evaluated, trainer.dataset, classes, config, evaluated, device, trainer.world)


def _start(trainer: Trainer, announce: Callable[[str], None]) -> None:
    """Make the run's folder; everything that could be refused has been checked by now."""
    run = trainer.run
    try:
        if (run / CONFIG).exists():
            announce(f"{run}: the training there ended before its first checkpoint; it starts anew")
            for name in (METRICS, NONFINITE):
                (run / name).unlink(missing_ok=True)
            for name in (EVENTS, FOLDER):
                shutil.rmtree(run / name, ignore_errors=True)
        run.mkdir(parents=True, exist_ok=True)
        write_bytes(run / CONFIG, json.dumps(trainer.config.json(), indent=2).encode() + b"\n")
    except OSError as error:
        raise UserError(f"--out {run}: cannot be written: {error.strerror}") from error


def _restore(trainer: Trainer) -> None:
    """Go on where the last checkpoint stands; refuse what would make it another training."""
    state = load_checkpoint(trainer.run, LAST)
    earlier, now = state["config"], trainer.config.json()
    changed = [name for name in now if name not in MAY_CHANGE_ON_RESUME and earlier.get(name) != now[name]]
    trainer.weights_sha256 = state.get("weights_sha256")
    if "weights" in changed and _has_sha256(Path(now["weights"]), trainer.weights_sha256):
        changed.remove("weights")  # the same file lies elsewhere now
    if changed:
        shown = "; ".join(f"--{name.replace('_', '-')} was {earlier.get(name)}, is {now[name]}" for name in changed)
        raise UserError(f"--resume: {shown}; give the run's own settings, or start another run with --out")
    check_classes(trainer.dataset, state["classes"])
    if state["content_sha256"] != trainer.dataset.manifest["content_sha256"]:
        raise UserError(f"--resume: {trainer.dataset.location} is not the dataset that the run was trained on")
    trainer.model.load_state_dict(state["model"])
    if trainer.averaged is not None:
        trainer.averaged.load_state_dict(state["averaged"])
    _restore_buffers(trainer, state["buffers"])
    trainer.optimizer.load_state_dict(state["optimizer"])
    if state["scaler"]:  # empty where the run did not scale its gradients
        trainer.scaler.load_state_dict(state["scaler"])
    trainer.epoch_sums.load_skipped(state["epoch_sums"])
    if trainer.world.is_first:
        trainer.epoch_sums.load(state["epoch_sums"])
    trainer.progress = Progress(**state["progress"])


def _has_sha256(path: Path, sha256: str | None) -> bool:
    return sha256 is not None and path.is_file() and sha256_file(path) == sha256


def _restore_buffers(trainer: Trainer, saved: list[dict[str, torch.Tensor]]) -> None:
    """Each process's own running statistics, or where there are now more or fewer processes, their mean."""
    for name, buffer in buffers(trainer).items():
        values = [part[name] for part in saved]
        if len(values) == trainer.world.size:
            buffer.copy_(values[trainer.world.rank])
        elif buffer.is_floating_point():
            buffer.copy_(torch.stack([value.double() for value in values]).mean(dim=0))
        else:
            buffer.copy_(values[0])


class _Stop:
    """Set by the first Ctrl-C or SIGTERM; the step in hand is finished and saved."""

    requested = False

    def agreed(self, world: World, save_is_due: bool) -> bool:
        """Whether to save at this step: one process asked to stop stops all; the first says when a save is due."""
        asked = world.most(2 if self.requested else int(save_is_due and world.is_first))
        self.requested = asked == 2
        return asked > 0

    def heed(self, step: int) -> None:
        """Interrupt if that was requested; everything up to `step` is saved."""
        if self.requested:
            raise KeyboardInterrupt(f"give the same command with --resume to go on at step {step}")


@contextmanager
def _stopping_gently(under_torchrun: bool) -> Iterator[_Stop]:
    """Turn SIGINT or SIGTERM into a request; a second Ctrl-C, which only a person gives, interrupts at once.

    A scheduler's SIGTERM may come twice, to the whole job and forwarded by torchrun; so may Ctrl-C under torchrun.
    """
    stop = _Stop()
    previous: dict[int, Any] = {}

    def request(number: int, _: object) -> None:
        stop.requested = True
        if number == signal.SIGINT and not under_torchrun:
            signal.signal(number, previous[number])

    for number in (int(signal.SIGINT), int(signal.SIGTERM)):
        previous[number] = signal.signal(number, request)
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
