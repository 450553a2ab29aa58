"""`lmk-train` that writes down what micro-batches were made of and what it fetched.

Tests fork it, or start it by torchrun: python -m tests.train.training.recorded_training LOG STOP_AFTER [options of
lmk-train]. After STOP_AFTER steps the last rank sends itself SIGTERM, or another signal (`3 SIGKILL` is one argument);
0: none.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import BinaryIO

import torch
from torch import nn

from lmk_data.dataset import ShardedDataset
from lmk_train.cli import train_main
from lmk_train.data import order
from lmk_train.data.augment import augmentation_draws
from lmk_train.data.stream import Batch
from lmk_train.training import loop
from lmk_train.training.trainer import Trainer


def main(words: list[str]) -> int:
    log = Path(f"{words[0]}.{os.environ.get('RANK', '0')}")
    stop_after, name = [*words[1].split(), "SIGTERM"][:2]
    torch.set_num_threads(1)
    accumulate = loop._accumulate

    def recording(trainer: Trainer, forward: nn.Module, batch: Batch, part: int) -> None:
        draws = augmentation_draws(batch.picks, trainer.config.seed, trainer.epoch)
        pictures = trainer.preprocess(batch.pixels, draws).double().sum(dim=(1, 2, 3))
        line = {
            "place": [trainer.progress.step, trainer.world.rank, part],
            "picks": batch.picks.tolist(),
            "labels": batch.labels.tolist(),
            "pictures": pictures.tolist(),
        }
        with open(log, "a") as file:
            file.write(json.dumps(line) + "\n")
        accumulate(trainer, forward, batch, part)
        is_last = trainer.world.rank == trainer.world.size - 1 and part == trainer.config.grad_accum - 1
        if trainer.progress.step + 1 == int(stop_after) and is_last:
            os.kill(os.getpid(), signal.Signals[name])

    copy = ShardedDataset.copy_shard

    def counted(self: ShardedDataset, name: str, file: BinaryIO) -> None:
        with open(f"{words[0]}-fetched", "a") as fetched:
            fetched.write(f"{name}\n")
        copy(self, name, file)

    loop._accumulate = recording
    ShardedDataset.copy_shard = counted  # type: ignore[method-assign]
    return train_main(words[2:])


def main_with_windows_of_one_shard(words: list[str]) -> int:
    """The same, with samples shuffled within a shard only, so that shards are due one after the other."""
    order.WINDOW_SHARDS = order.WINDOW_SAMPLES = 1
    return main(words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
