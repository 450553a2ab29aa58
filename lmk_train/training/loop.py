"""The training step, the epoch, and a whole training."""

from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from lmk_data.dataset import ShardedDataset
from lmk_data.system.terminal import progress_bar
from lmk_train.config.commands import EvalConfig
from lmk_train.config.training import ResolvedConfig, TrainConfig
from lmk_train.data.augment import augmentation_draws
from lmk_train.data.features import FeatureStore
from lmk_train.data.order import counter_hash
from lmk_train.data.stream import Batch, BatchStream
from lmk_train.evaluation.evaluate import Evaluation, evaluate_model
from lmk_train.evaluation.metrics import LOWER_IS_BETTER, Predictions, summarize
from lmk_train.evaluation.predictions import predict_split
from lmk_train.evaluation.report import write_run_report
from lmk_train.runs.checkpoint import BEST, load_checkpoint, save_checkpoint
from lmk_train.runs.classes import Classes, dataset_state
from lmk_train.runs.folder import check_run, is_run, training_lock
from lmk_train.runtime.precision import resolve_device
from lmk_train.runtime.stopping import Stop, stopping_gently
from lmk_train.runtime.world import Rows, joined_world, share, under_torchrun
from lmk_train.training.assembly import make_trainer
from lmk_train.training.optim import clip_gradients, set_lr, update_average
from lmk_train.training.record import Record
from lmk_train.training.resume import restore_run, start_run
from lmk_train.training.trainer import Sums, Trainer


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
    asked: TrainConfig,
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
    config = asked.resolved()
    run = config.out
    device = resolve_device(config.device)
    with (
        joined_world(device) as world,
        ShardedDataset.open(config.shards) as dataset,
        training_lock(run) as hold,
    ):
        if world.is_first and is_run(run):
            hold()
        config = check_run(run, config)
        world.wait()
        store = None if features is None else FeatureStore.open(features, dataset, config)
        trainer = make_trainer(config, dataset, world, world.first_only(announce), store)
        with closing(trainer.train):
            if config.resume:
                restore_run(trainer)
            elif world.is_first:
                start_run(trainer, hold, announce)
            with Record(trainer) as log, stopping_gently(under_torchrun()) as stop:
                _train_epochs(trainer, log, stop)
        test = _evaluate_best(trainer) if evaluate_test else None
        if test is not None and world.is_first:
            write_run_report(run, dataset, test.split)
        best = _sign(config) * trainer.progress.best_metric if dataset.num_samples("val") else None
    return TrainResult(run, world.rank, test, trainer.progress.best_epoch, best, trainer.progress.seconds)


def _train_epochs(trainer: Trainer, log: Record, stop: Stop) -> None:
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
    largest = -(-config.batch_size // (trainer.world.size * config.grad_accum)) + 1
    return BatchStream(trainer.train, trainer.precision.device, largest, config.workers)


def micro_batches(trainer: Trainer, epoch: int, first: int) -> Iterator[Rows]:
    """What this process reads from step `first` of an epoch on: its share of each global batch, in micro-batches."""
    config, start = trainer.config, epoch * trainer.steps_per_epoch
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
    if trainer.averaged is not None and config.ema is not None:
        update_average(trainer.averaged, trainer.model, config.ema)
    trainer.progress.step += 1


def _accumulate(trainer: Trainer, forward: nn.Module, batch: Batch, part: int) -> None:
    """Add the gradient of one micro-batch, each sample by its share of the global batch."""
    config, world, step = trainer.config, trainer.world, trainer.progress.step
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
        assert metric is not None, "a metric of no class was refused at the start"
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


def _sign(config: ResolvedConfig) -> int:
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
        quiet=True,
    )
    device = trainer.precision.device
    classes = Classes.of_dataset(trainer.dataset)
    return evaluate_model(trainer.evaluated, trainer.dataset, classes, config, evaluated, device, trainer.world)
