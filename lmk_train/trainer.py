"""Everything that a training step touches, and the sums that it adds to."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lmk_data.dataset import ShardedDataset
from lmk_train.augment import Preprocess
from lmk_train.config import TrainConfig
from lmk_train.models import Classifier
from lmk_train.precision import Precision
from lmk_train.stream import SplitReader
from lmk_train.world import World


@dataclass
class Sums:
    """Running sums since the last line and since the start of the epoch, on the device until they are read."""

    loss: torch.Tensor
    correct: torch.Tensor
    num_samples: int = 0

    @classmethod
    def zero(cls, device: torch.device) -> "Sums":
        return cls(
            torch.zeros((), dtype=torch.float64, device=device), torch.zeros((), dtype=torch.int64, device=device)
        )

    def add(self, loss: torch.Tensor, correct: torch.Tensor, num_samples: int) -> None:
        self.loss += loss.double() * num_samples
        self.correct += correct
        self.num_samples += num_samples

    def state(self, world: World) -> dict[str, float | int]:
        """The sums of all processes, as plain values; waits for the device and for the other processes."""
        loss, correct, num_samples = world.add(self.loss.item(), self.correct.item(), self.num_samples)
        return {"loss": loss, "correct": int(correct), "num_samples": int(num_samples)}

    def load(self, state: dict[str, Any]) -> None:
        self.loss.fill_(state["loss"])
        self.correct.fill_(state["correct"])
        self.num_samples = int(state["num_samples"])


@dataclass
class Progress:
    """Where training stands: updates done, the best validation so far, seconds spent."""

    step: int = 0
    best_metric: float = -math.inf
    best_epoch: int = 0
    seconds: float = 0.0


@dataclass
class Trainer:
    """A run in the making: everything that a training step touches.

    `forward` is `model`, wrapped so that gradients are averaged over the processes of `world`.
    """

    config: TrainConfig
    run: Path
    dataset: ShardedDataset
    world: World
    model: Classifier
    forward: nn.Module
    criterion: nn.Module
    optimizer: torch.optim.Optimizer
    precision: Precision
    scaler: torch.amp.GradScaler
    preprocess: Preprocess
    train: SplitReader
    steps_per_epoch: int
    progress: Progress = field(default_factory=Progress)
    epoch_sums: Sums = field(init=False)

    def __post_init__(self) -> None:
        self.epoch_sums = Sums.zero(self.precision.device)

    def sums(self) -> dict[str, float | int]:
        """The sums of the epoch so far, of all processes; waits for the device and for the other processes."""
        return self.epoch_sums.state(self.world)

    @property
    def num_steps(self) -> int:
        """Updates of the whole training."""
        assert self.config.epochs is not None
        return self.config.epochs * self.steps_per_epoch
