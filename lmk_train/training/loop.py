"""A training step, an epoch and a whole training."""

from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from lmk_data.dataset import ShardedDataset
from lmk_data.system.terminal import progress_bar
from lmk_train.config.commands import EvalConfig
from lmk_train.config.training import ResolvedConfig, TrainConfig
from lmk_train.data.features import CachedFeatures
from lmk_train.data.order import counter_hash
from lmk_train.data.stream import Batch, BatchStream
from lmk_train.evaluation.calibration import fit_run
from lmk_train.evaluation.evaluate import Evaluation, evaluate_split, make_evaluator
from lmk_train.evaluation.inference import Evaluator
from lmk_train.evaluation.metrics import LOWER_IS_BETTER, summarize
from lmk_train.models.state_dicts import state_sha256
from lmk_train.runs.checkpoint import BEST, load_checkpoint, save_checkpoint, weights_to_evaluate
from lmk_train.runs.classes import Classes, dataset_state
from lmk_train.runs.folder import RunFolder, check_run, is_run, refuse_links, refuse_unwritable_name, training_lock
from lmk_train.runs.tensor_file import restore_weights
from lmk_train.runtime.compiling import clear_gradients, compiler_failures, is_compiled
from lmk_train.runtime.precision import resolve_device
from lmk_train.runtime.seeding import seed_generators
from lmk_train.runtime.stopping import StopRequest, stop_requests
from lmk_train.runtime.world import joined_world, share, under_torchrun
from lmk_train.training.assembly import make_trainer
from lmk_train.training.batch_size import device_memory, resolved_for
from lmk_train.training.optim import clip_gradients, is_skipped, set_lr
from lmk_train.training.record import Record
from lmk_train.training.resume import restore_run, start_run
from lmk_train.training.trainer import Sums, Trainer


@dataclass(frozen=True)
class TrainResult:
    """The end of a training.

    Attributes:
        run: its folder.
        rank: of this process.
        test: the evaluation of the test split; None without one.
        best_epoch: counted from 1; the last epoch without a validation split.
        best_metric: the value of `--best-by` in that epoch; None without a validation split.
        seconds: spent on training, over all resumptions.
    """

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
    """Train from the start, or resume a run, and evaluate its best checkpoint on the test split.

    Args:
        asked: the configuration, with defaults still to be filled in.
        announce: called with a line about the model before the first step.
        features: a folder of cached features of the same dataset and backbone, to train on in place of pictures; the
            configuration has to freeze the backbone throughout.
        evaluate_test: whether to evaluate the test split at the end.

    Raises:
        UserError: the configuration or the dataset does not work.
        TrainingError: the loss or the weights are no longer finite, or torch cannot compile the backbone.
        KeyboardInterrupt: interrupted; a checkpoint has been saved.
    """
    config = asked.resolved()
    run = config.out
    refuse_unwritable_name(run)
    device = resolve_device(config.device)
    with (
        joined_world(device) as world,
        ShardedDataset.open(config.shards, base=config.base) as dataset,
        training_lock(run) as hold,
    ):
        refuse_links(run)
        if world.is_first and is_run(run):
            hold()
        say = world.first_only(announce)
        memory = device_memory(device) if features is None else None
        config = check_run(run, resolved_for(asked, dataset, world, memory, say))
        world.barrier()
        store = None if features is None else CachedFeatures.open(features, dataset, config)
        trainer = make_trainer(config, dataset, world, say, store)
        with closing(trainer.train):
            if config.resume:
                restore_run(trainer)
            elif world.is_first:
                start_run(trainer, hold, announce)
            with Record(trainer) as log, stop_requests(under_torchrun()) as stop, compiler_failures():
                _train_epochs(trainer, log, stop)
        test = _evaluate_best(trainer) if evaluate_test else None
        if test is not None and world.is_first:
            from lmk_train.evaluation.report import write_run_report  # plots take a while to import

            write_run_report(run, dataset, test.split)
        best = _sign(config) * trainer.progress.best_metric if dataset.num_samples("val") else None
    return TrainResult(run, world.rank, test, trainer.progress.best_epoch, best, trainer.progress.seconds)


def _train_epochs(trainer: Trainer, log: Record, stop: StopRequest) -> None:
    """Train from the current step to the last one; save at intervals and when asked to stop."""
    config, progress = trainer.config, trainer.progress
    stream = batch_stream(trainer)
    description, quiet = f"training {config.model}", config.quiet or not trainer.world.is_first
    with progress_bar(trainer.num_steps, description, "steps", quiet=quiet, initial=progress.step) as bar:
        if trainer.validation_is_due():
            _finish_epoch(trainer, log, stop)
        while progress.step < trainer.num_steps:
            epoch, first = divmod(progress.step, trainer.steps_per_epoch)
            with closing(stream(micro_batches(trainer, epoch, first))) as batches:
                for _ in range(first, trainer.steps_per_epoch):
                    training_step(trainer, batches)
                    log.after_step(epoch)
                    bar.update()
                    bar.set_postfix_str(log.postfix, refresh=False)
                    if not progress.step % trainer.steps_per_epoch:
                        continue  # saved with the validation of the epoch
                    if stop.should_save(trainer.world, log.checkpoint_due()):
                        log.save()
                        stop.raise_if_stopping(progress.step)
            _finish_epoch(trainer, log, stop)


def batch_stream(trainer: Trainer, *, processes: bool | None = None) -> BatchStream:
    """Return a stream for the micro-batches of this rank; `processes` is that of `BatchStream`."""
    config = trainer.config
    largest = -(-config.batch_size // (trainer.world.size * config.grad_accum)) + 1
    device = trainer.precision.device
    return BatchStream(trainer.train, device, largest, config.workers, trainer.times, processes=processes)


def micro_batches(trainer: Trainer, epoch: int, first: int) -> Iterator[NDArray[np.int64]]:
    """Yield the picks of this rank's micro-batches, int64 [B], from step `first` of an epoch on."""
    config, start = trainer.config, epoch * trainer.steps_per_epoch
    for step in range(start + first, start + trainer.steps_per_epoch):
        picks = trainer.world.share(trainer.global_batch(step))
        for part in range(config.grad_accum):
            yield share(picks, part, config.grad_accum)


def training_step(trainer: Trainer, batches: Iterator[Batch]) -> None:
    """Update the weights by the next `grad_accum` micro-batches, without waiting for the device."""
    config, forward = trainer.config, trainer.forward()
    set_lr(trainer.optimizer, trainer.rate_factor(trainer.progress.step))
    if is_compiled(trainer.model.backbone) and config.grad_accum > 1:
        for other in (trainer.model.neck, trainer.model.head):
            other.zero_grad(set_to_none=True)
        clear_gradients(trainer.model.backbone)
    else:
        trainer.optimizer.zero_grad(set_to_none=True)
    for part in range(config.grad_accum):
        is_last = part == config.grad_accum - 1
        with nullcontext() if is_last or trainer.world.size == 1 else forward.no_sync():  # type: ignore[operator]
            _accumulate(trainer, forward, next(batches), part)
    if config.clip_grad is not None:
        trainer.scaler.unscale_(trainer.optimizer)
        clip_gradients(trainer.parameters, config.clip_grad)
    trainer.scaler.step(trainer.optimizer)
    if trainer.scaler.is_enabled():
        trainer.epoch_sums.skipped += is_skipped(trainer.scaler, trainer.optimizer)
    trainer.scaler.update()
    if trainer.averaging is not None and config.ema is not None:
        trainer.averaging.update(config.ema)
    trainer.progress.step += 1


def _accumulate(trainer: Trainer, forward: nn.Module, batch: Batch, part: int) -> None:
    """Add the gradient of micro-batch number `part`: the sum over its samples, divided by the global batch size."""
    config, world, step = trainer.config, trainer.world, trainer.progress.step
    # Dropout is a function of the step, the rank and the micro-batch, so that no random state has to be saved.
    seed = int(counter_hash(config.seed, step, world.rank, part, 4) >> np.uint64(1))
    seed_generators(seed, trainer.precision.device)
    pictures, mix = trainer.inputs(batch)
    with trainer.precision.autocast():
        logits = forward(pictures)
    loss, correct = trainer.loss(logits, batch.labels, mix)
    # The ranks' gradients are averaged, not added: hence the factor of the world size.
    trainer.scaler.scale(loss * (world.size / config.batch_size)).backward()  # type: ignore[no-untyped-call]
    trainer.epoch_sums.add(loss.detach(), correct, len(batch.picks))
    bad = trainer.first_bad_step
    bad.copy_(torch.where(loss.detach().isfinite(), bad, bad.clamp_max(step)))


def _finish_epoch(trainer: Trainer, log: Record, stop: StopRequest) -> None:
    """Validate, keep the weights if they are the best so far, and save a checkpoint; end there if asked to stop.

    A checkpoint is saved before the validation as well: if that fails, resuming begins with it.
    """
    config, progress, dataset = trainer.config, trainer.progress, trainer.dataset
    trainer.times.begin(None)
    epoch = trainer.epoch  # of the next step, counted from 0; of the last one, counted from 1
    line: dict[str, Any] = {"kind": "epoch", "epoch": epoch, "step": progress.step}
    sums = trainer.sums()
    line |= {
        "train_loss": sums["loss"] / sums["num_samples"],
        "train_accuracy": sums["correct"] / sums["num_samples"],
    }
    trainer.require_finite_weights()
    validates = dataset.num_samples("val") > 0
    with log.saved_until_validated() if validates else nullcontext():
        trainer.world.average_buffers(trainer.model)
        if trainer.averaged is not None:
            trainer.world.average_buffers(trainer.evaluated)
        metrics = _validate(trainer) if validates else {}
    line |= {f"val_{name}": value for name, value in metrics.items() if name != "num_samples"}
    metric = float(epoch)  # without a validation split the last epoch counts as the best
    if validates:
        judged = metrics[config.best_by]
        assert judged is not None, "check_metric refuses a metric of no class before the training"
        metric = judged * _sign(config)
    if metric > progress.best_metric:
        progress.best_metric, progress.best_epoch = metric, epoch
        state = {"model": trainer.evaluated.state_dict(), "config": config.public_json(), **dataset_state(dataset)}
        if trainer.world.is_first:
            save_checkpoint(trainer.run, BEST, state)
    trainer.epoch_sums = Sums.zero(trainer.precision.device)
    log.line(line)
    log.save()
    stop.should_save(trainer.world, False)  # has just been saved
    stop.raise_if_stopping(progress.step)


def _validate(trainer: Trainer) -> dict[str, float | int | None]:
    """Return the metrics of the validation split, of the weights that would be kept.

    Raises TrainingError if a loss is not finite.
    """
    config = trainer.config
    evaluator = Evaluator(
        model=trainer.evaluated,
        preprocess=trainer.preprocess,
        precision=trainer.precision,
        batch_size=config.pictures_at_once,
        workers=config.workers,
        world=trainer.world,
    )
    with closing(trainer.open_reader("val")) as reader:
        predictions = evaluator.predict(reader)
    if not predictions.is_finite:
        raise trainer.divergence("the validation loss is", trainer.progress.step - 1)
    return summarize(predictions, trainer.dataset.classes["train"].to_numpy(np.int64))


def _sign(config: ResolvedConfig) -> int:
    """Return the factor of the metric that decides on the best epoch, which makes higher better."""
    return -1 if config.best_by in LOWER_IS_BETTER else 1


def _evaluate_best(trainer: Trainer) -> Evaluation | None:
    """Calibrate the best checkpoint on the validation split and evaluate it on the test split, as far as there are.

    Returns None without a test split.
    """
    dataset, config = trainer.dataset, trainer.config
    if not dataset.num_samples("test") and not dataset.num_samples("val"):
        return None
    state = load_checkpoint(trainer.run, BEST)
    restore_weights(trainer.evaluated, state["model"], RunFolder(trainer.run).checkpoint(BEST))
    evaluation = EvalConfig(
        trainer.run,
        amp=config.amp,
        device=config.device,
        workers=config.workers,
        cache=config.cache,
        quiet=True,
    )
    evaluator = make_evaluator(trainer.evaluated, config, evaluation, trainer.precision.device, trainer.world)
    classes, weights_sha256 = Classes.of_dataset(dataset), state_sha256(weights_to_evaluate(state))
    calibration = fit_run(evaluator, dataset, classes, evaluation, weights_sha256)
    if not dataset.num_samples("test"):
        return None
    temperature = None if calibration is None else calibration.temperature
    return evaluate_split(evaluator, dataset, classes, evaluation, temperature)
