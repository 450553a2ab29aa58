"""What limits a training: the reader alone, the model alone and both together, measured with its own settings."""

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import count, repeat

import torch

from lmk_data.dataset import ShardedDataset
from lmk_train.config.training import TrainConfig
from lmk_train.data.stream import Batch
from lmk_train.runtime.precision import resolve_device
from lmk_train.runtime.world import joined_world
from lmk_train.training.assembly import make_trainer
from lmk_train.training.batch_size import device_memory, resolved_for
from lmk_train.training.loop import batch_stream, micro_batches, training_step
from lmk_train.training.trainer import Trainer

_WARM_UP_STEPS, _SECONDS = 2, 8.0
_AS_FAST = 0.95


@dataclass(frozen=True)
class InputProfile:
    """Images a second of one rank.

    Attributes:
        rank: of this process.
        reader: reading and decoding alone.
        model: training on one batch in memory.
        both: the real training.
    """

    rank: int
    reader: float
    model: float
    both: float

    def verdict(self) -> str:
        """Return which of the two limits, and what to do."""
        if self.both >= _AS_FAST * self.model:
            return f"the model limits; the reader could feed {self.reader / self.model:.1f} times as much"
        if self.reader < self.model:
            return "the reader limits: give it more --workers, or shards on a faster disk"
        return (
            "reader and model compete for the same processor: each alone is faster than training is "
            f"({1 - self.both / self.model:.0%} lost)"
        )


def profile_input(asked: TrainConfig, announce: Callable[[str], None]) -> InputProfile:
    """Measure for about half a minute; write nothing. Raises what `train` raises before its first step."""
    config = asked.resolved()
    device = resolve_device(config.device)
    with joined_world(device) as world, ShardedDataset.open(config.shards, base=config.base) as dataset:
        say = world.first_only(announce)
        config = resolved_for(asked, dataset, world, device_memory(device), say)
        trainer = make_trainer(config, dataset, world, say)
        images = config.batch_size / world.size
        with closing(trainer.train), closing(endless_batches(trainer)) as batches:
            reader = _rate(trainer, lambda: _read_step(trainer, batches), images)
            both = _rate(trainer, lambda: training_step(trainer, batches), images)
            fixed = _copy(next(batches))
        model = _rate(trainer, lambda: training_step(trainer, repeat(fixed)), images)
    return InputProfile(world.rank, reader, model, both)


def endless_batches(trainer: Trainer, *, processes: bool | None = None) -> Generator[Batch, None, None]:
    """Yield this rank's micro-batches of one epoch after the other; closing it stops what decodes them.

    `processes` is that of `BatchStream`.
    """
    stream = batch_stream(trainer, processes=processes)
    for epoch in count():
        yield from stream(micro_batches(trainer, epoch, 0))


def _read_step(trainer: Trainer, batches: Iterator[Batch]) -> None:
    for _ in range(trainer.config.grad_accum):
        next(batches)


def _copy(batch: Batch) -> Batch:
    """Return a batch in memory of its own, which the stream does not overwrite."""
    return Batch(batch.pixels.clone(), batch.labels.clone(), batch.picks)


def _rate(trainer: Trainer, step: Callable[[], None], images: float) -> float:
    """Return the images a second of a step, after a warm-up; all ranks take the same number of steps."""
    for _ in range(_WARM_UP_STEPS):
        step()
    _synchronize(trainer)
    started, steps = time.perf_counter(), 0
    while trainer.world.max(int(time.perf_counter() - started < _SECONDS)):
        step()
        steps += 1
    _synchronize(trainer)
    return steps * images / (time.perf_counter() - started)


def _synchronize(trainer: Trainer) -> None:
    if trainer.precision.device.type == "cuda":
        torch.cuda.synchronize()
