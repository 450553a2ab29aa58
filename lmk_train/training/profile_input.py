"""What limits training: the reader alone, the model alone and both, measured on the run that was asked for."""

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import count, repeat

import torch

from lmk_data.dataset import ShardedDataset
from lmk_train.config.training import TrainConfig
from lmk_train.data.stream import Batch
from lmk_train.runtime.precision import resolve_device
from lmk_train.runtime.world import Rows, joined_world
from lmk_train.training.assembly import make_trainer
from lmk_train.training.loop import batch_stream, micro_batches, training_step
from lmk_train.training.trainer import Trainer

_WARM_UP_STEPS, _SECONDS = 2, 8.0
_AS_FAST = 0.95


@dataclass(frozen=True)
class InputProfile:
    """Images a second of one process: read and decoded, trained on one batch in memory, and the real training."""

    rank: int
    reader: float
    model: float
    both: float

    def verdict(self) -> str:
        """Which one limits, and what to do."""
        if self.both >= _AS_FAST * self.model:
            return f"the model limits; the reader could feed {self.reader / self.model:.1f} times as much"
        if self.reader < self.model:
            return "the reader limits: give it more --workers, or shards on a faster disk"
        return (
            "reader and model compete for the same processor: each alone is faster than training is "
            f"({1 - self.both / self.model:.0%} lost)"
        )


def profile_input(asked: TrainConfig, announce: Callable[[str], None]) -> InputProfile:
    """Measure for about half a minute; nothing is written. Raises what `train` raises before it starts."""
    config = asked.resolved()
    device = resolve_device(config.device)
    with joined_world(device) as world, ShardedDataset.open(config.shards) as dataset:
        trainer = make_trainer(config, dataset, world, world.first_only(announce))
        images = config.batch_size / world.size
        stream = batch_stream(trainer)
        with closing(trainer.train), closing(stream(_endless(trainer))) as batches:
            reader = _rate(trainer, lambda: _read_step(trainer, batches), images)
            both = _rate(trainer, lambda: training_step(trainer, batches), images)
            fixed = _copied(next(batches))
        model = _rate(trainer, lambda: training_step(trainer, repeat(fixed)), images)
    return InputProfile(world.rank, reader, model, both)


def _endless(trainer: Trainer) -> Iterator[Rows]:
    for epoch in count():
        yield from micro_batches(trainer, epoch, 0)


def _read_step(trainer: Trainer, batches: Iterator[Batch]) -> None:
    for _ in range(trainer.config.grad_accum):
        next(batches)


def _copied(batch: Batch) -> Batch:
    """A batch of its own memory, which the stream does not fill again."""
    return Batch(batch.pixels.clone(), batch.labels.clone(), batch.picks)


def _rate(trainer: Trainer, step: Callable[[], None], images: float) -> float:
    """Images a second of a step, after a warm-up; a step of all processes, so that they agree on when it is enough."""
    for _ in range(_WARM_UP_STEPS):
        step()
    _finish(trainer)
    started, steps = time.perf_counter(), 0
    while trainer.world.most(int(time.perf_counter() - started < _SECONDS)):
        step()
        steps += 1
    _finish(trainer)
    return steps * images / (time.perf_counter() - started)


def _finish(trainer: Trainer) -> None:
    if trainer.precision.device.type == "cuda":
        torch.cuda.synchronize()
