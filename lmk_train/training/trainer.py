"""Everything that a training step touches, and the sums that it adds to."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from lmk_data.dataset import ShardedDataset
from lmk_data.errors import TrainingError
from lmk_data.system.files import write_bytes
from lmk_train.config.training import ResolvedConfig
from lmk_train.data.order import batch_picks, epoch_order
from lmk_train.data.stream import Reader
from lmk_train.models.heads import Classifier
from lmk_train.runs.folder import RunFolder
from lmk_train.runtime.precision import Precision
from lmk_train.runtime.world import Rows, World
from lmk_train.training.optim import lr_factor

_NEVER = 2**62
_KEYS_SHOWN = 8


@dataclass
class Sums:
    """Running sums since the start of the epoch, on the device until they are read.

    `skipped` counts updates that were left out because float16 gradients overflowed (the same in every process).
    """

    loss: torch.Tensor
    correct: torch.Tensor
    skipped: torch.Tensor
    num_samples: int = 0

    @classmethod
    def zero(cls, device: torch.device) -> "Sums":
        zero = torch.zeros((), dtype=torch.int64, device=device)
        return cls(zero.double(), zero.clone(), zero)

    def add(self, loss: torch.Tensor, correct: torch.Tensor, num_samples: int) -> None:
        """Add a micro-batch: `loss` is the sum over its samples."""
        self.loss += loss.double()
        self.correct += correct
        self.num_samples += num_samples

    def state(self, world: World) -> dict[str, float | int]:
        """The sums of all processes, as plain values; waits for the device and for the other processes."""
        loss, correct, num_samples = world.add(self.loss.item(), self.correct.item(), self.num_samples)
        skipped = int(self.skipped.item())
        return {"loss": loss, "correct": int(correct), "num_samples": int(num_samples), "skipped": skipped}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        self.loss.fill_(state["loss"])
        self.correct.fill_(state["correct"])
        self.num_samples = int(state["num_samples"])

    def load_skipped(self, state: dict[str, Any]) -> None:
        """Go on counting skipped updates, which every process does."""
        self.skipped.fill_(state["skipped"])


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

    `class_weights`, float32 [K] on the host, weigh the samples in the loss from the share `drw_start` of training on.
    `averaged` follows the weights if they are averaged. `open_reader` opens a split to read, `train` is that of the
    training split. `weights_sha256` is the hash of the file that the backbone started from, None without one.
    """

    config: ResolvedConfig
    run: Path
    dataset: ShardedDataset
    world: World
    model: Classifier
    criterion: nn.Module
    optimizer: torch.optim.Optimizer
    precision: Precision
    scaler: torch.amp.GradScaler
    preprocess: Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]
    open_reader: Callable[[str], Reader]
    train: Reader
    steps_per_epoch: int
    averaged: AveragedModel | None
    class_weights: torch.Tensor | None
    weights_sha256: str | None
    progress: Progress = field(default_factory=Progress)
    epoch_sums: Sums = field(init=False)
    first_bad_step: torch.Tensor = field(init=False)
    _device_class_weights: torch.Tensor | None = field(init=False, default=None)
    _forward: nn.Module | None = field(init=False, default=None)
    _is_frozen: bool | None = field(init=False, default=None)
    _order: tuple[int, Rows] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        device = self.precision.device
        self.epoch_sums = Sums.zero(device)
        self.first_bad_step = torch.full((), _NEVER, dtype=torch.int64, device=device)
        if self.class_weights is not None:
            self._device_class_weights = self.class_weights.to(device)

    def sums(self) -> dict[str, float | int]:
        """The sums of the epoch so far, of all processes; waits for the device and for the other processes.

        Raises TrainingError that names the first step whose loss was not finite, if there was one.
        """
        bad = self.world.least(int(self.first_bad_step.item()))
        if bad != _NEVER:
            raise self.not_finite("the loss is", bad)
        return self.epoch_sums.state(self.world)

    def require_finite_weights(self) -> None:
        """Raise TrainingError unless weights and running statistics of all processes are finite; waits for them."""
        values = [value for value in self.model.state_dict().values() if value.is_floating_point()]
        finite = torch.stack([value.isfinite().all() for value in values]).all()
        if not self.world.least(int(finite.item())):
            raise self.not_finite("the weights are", self.progress.step - 1)

    def not_finite(self, what: str, step: int) -> TrainingError:
        """The error of a training that diverged at a step; nonfinite.json has the pictures of its whole batch."""
        keys = [str(key) for key in self.train.keys(self.global_batch(step) % len(self.train))]
        rate, path = self.learning_rate(step), RunFolder(self.run).nonfinite
        if self.world.is_first:
            said = {"step": step, "learning_rate": rate, "keys": keys}
            write_bytes(path, json.dumps(said, indent=2).encode() + b"\n")
        more = f" and {len(keys) - _KEYS_SHOWN} more" if len(keys) > _KEYS_SHOWN else ""
        shown = ", ".join(keys[:_KEYS_SHOWN]) + more
        return TrainingError(
            f"{what} not finite at step {step} (learning rate {rate:.3g}, pictures {shown}); {path} names them all; "
            "lower --lr or give --clip-grad, and start again or --resume from the last checkpoint"
        )

    def forward(self) -> nn.Module:
        """The model as the step in hand trains it, its gradients averaged over the processes."""
        frozen = self.epoch < self.config.freeze_backbone_epochs
        if self._forward is None or frozen != self._is_frozen:
            self.model.freeze(frozen)
            self._forward = None  # its hooks go before others come
            self._forward, self._is_frozen = self.world.wrap(self.model, self.precision.device), frozen
        return self._forward

    def order(self, epoch: int) -> Rows:
        """The global order of an epoch; that of the last epoch asked for is kept."""
        if self._order is None or self._order[0] != epoch:
            config, reader = self.config, self.train
            self._order = (epoch, epoch_order(reader.labels, reader.shard_of_row, config.seed, epoch, config.sampling))
        return self._order[1]

    def global_batch(self, step: int) -> Rows:
        """What all processes together pick at a step of the training."""
        epoch, in_epoch = divmod(step, self.steps_per_epoch)
        return batch_picks(self.order(epoch), in_epoch, self.config.batch_size)

    def sample_weights(self, labels: torch.Tensor) -> torch.Tensor | None:
        """Weights of samples in the loss at the step in hand, float32 [B], adding up to the batch size over the
        global batch; None while all weigh the same."""
        start = self.config.drw_start
        if (
            self.class_weights is None
            or self._device_class_weights is None
            or start is None
            or self.progress.step < start * self.num_steps
        ):
            return None
        picks = self.global_batch(self.progress.step)
        total = self.class_weights[self.train.labels[picks % len(self.train)]].sum(dtype=torch.float64)
        return self._device_class_weights[labels] * float(len(picks) / total)

    @property
    def epoch(self) -> int:
        """The epoch that the step in hand belongs to."""
        return self.progress.step // self.steps_per_epoch

    @property
    def evaluated(self) -> Classifier:
        """The model whose weights are evaluated and kept: averaged, if weights are averaged."""
        return self.model if self.averaged is None else cast(Classifier, self.averaged.module)

    @property
    def num_steps(self) -> int:
        """Updates of the whole training."""
        return self.config.epochs * self.steps_per_epoch

    def rate_factor(self, step: int) -> float:
        """What the peak learning rates are multiplied by at a step."""
        config = self.config
        warmup = round(config.warmup_epochs * self.steps_per_epoch)
        return lr_factor(step, self.num_steps, warmup, config.schedule)

    def learning_rate(self, step: int) -> float:
        """The backbone's learning rate at a step."""
        return self.config.lr * self.rate_factor(step)
