"""The state of a training: everything that a step uses, and the sums that it adds to."""

import gc
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.optim.swa_utils import AveragedModel

from lmk_data.dataset import ShardedDataset
from lmk_data.errors import TrainingError
from lmk_data.system.files import write_bytes
from lmk_train.config.training import ResolvedConfig
from lmk_train.data.augment import augmentation_draws
from lmk_train.data.mixing import Mix, Mixing, main_labels, mix_pictures, mixed_losses, partners
from lmk_train.data.order import batch_picks, epoch_order, rows_of
from lmk_train.data.reader import Reader
from lmk_train.data.stream import Batch
from lmk_train.models.heads import Classifier
from lmk_train.runs.folder import RunFolder
from lmk_train.runtime.clock import TimeShares
from lmk_train.runtime.precision import Precision
from lmk_train.runtime.world import World
from lmk_train.training.optim import Averaging, lr_factor

_NEVER = 2**62
_KEYS_SHOWN = 8


@dataclass
class Sums:
    """Running sums since the start of the epoch, on the device until they are read.

    Attributes:
        loss: sum over the samples of this rank, float64 [].
        correct: correct answers of this rank, int64 [].
        skipped: updates that were skipped because float16 gradients overflowed, int64 []; the same on all ranks.
        num_samples: of this rank.
    """

    loss: torch.Tensor
    correct: torch.Tensor
    skipped: torch.Tensor
    num_samples: int = 0

    @classmethod
    def zero(cls, device: torch.device) -> "Sums":
        """Return sums of nothing."""
        zero = torch.zeros((), dtype=torch.int64, device=device)
        return cls(zero.double(), zero.clone(), zero)

    def add(self, loss: torch.Tensor, correct: torch.Tensor, num_samples: int) -> None:
        """Add a micro-batch, without waiting for the device; `loss` is the sum over its samples."""
        self.loss += loss.double()
        self.correct += correct
        self.num_samples += num_samples

    def state(self, world: World) -> dict[str, float | int]:
        """Return the sums over all ranks as plain values; waits for the device and for the other ranks."""
        loss, correct, num_samples = world.sum(self.loss.item(), self.correct.item(), self.num_samples)
        skipped = int(self.skipped.item())
        return {"loss": loss, "correct": int(correct), "num_samples": int(num_samples), "skipped": skipped}

    def load(self, state: dict[str, Any]) -> None:
        """Continue from what `state` returned, except for the skipped updates."""
        self.loss.fill_(state["loss"])
        self.correct.fill_(state["correct"])
        self.num_samples = int(state["num_samples"])

    def load_skipped(self, state: dict[str, Any]) -> None:
        """Continue to count skipped updates, as every rank does."""
        self.skipped.fill_(state["skipped"])


@dataclass
class Progress:
    """Where a training stands: updates done, the best validation so far (higher is better), seconds spent."""

    step: int = 0
    best_metric: float = -math.inf
    best_epoch: int = 0
    seconds: float = 0.0


@dataclass
class Trainer:
    """The state of a training.

    Attributes:
        config: resolved.
        run: its folder.
        dataset: opened.
        world: the ranks that train together.
        model: on the device of `precision`.
        criterion: logits float32 [B, K] and targets int64 [B] to losses [B].
        optimizer: of the parameters of `model`.
        precision: device and dtype of the forward pass.
        scaler: of gradients; disabled except for float16.
        preprocess: turns pixels and augmentation draws into network input.
        mixing: mixes it; None if pictures are not mixed.
        open_reader: opens a split by name.
        train: the reader of the training split.
        steps_per_epoch: updates of an epoch.
        averaged: follows the weights if `--ema` is given, else None.
        class_weights: of the loss from the share `drw_start` of the training on, float32 [K] on the host; else None.
        weights_sha256: hash of the file that the backbone started from; None without one.
        progress: updates done so far, and the best validation.
        epoch_sums: of the epoch so far.
        parameters: of `model`.
        averaging: makes `averaged` follow `model`; None without it.
        first_bad_step: the first step whose loss was not finite, int64 [] on the device.
        times: what the time of the device goes into.
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
    mixing: Mixing | None
    open_reader: Callable[[str], Reader]
    train: Reader
    steps_per_epoch: int
    averaged: AveragedModel | None
    class_weights: torch.Tensor | None
    weights_sha256: str | None
    progress: Progress = field(default_factory=Progress)
    epoch_sums: Sums = field(init=False)
    parameters: list[nn.Parameter] = field(init=False)
    averaging: Averaging | None = field(init=False)
    first_bad_step: torch.Tensor = field(init=False)
    times: TimeShares = field(init=False)
    _device_class_weights: torch.Tensor | None = field(init=False, default=None)
    _forward: nn.Module | None = field(init=False, default=None)
    _is_frozen: bool | None = field(init=False, default=None)
    _order: tuple[int, NDArray[np.int64]] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        device = self.precision.device
        self.epoch_sums, self.times = Sums.zero(device), TimeShares.of(device)
        self.parameters = list(self.model.parameters())
        self.averaging = None if self.averaged is None else Averaging(self.averaged, self.model)
        self.first_bad_step = torch.full((), _NEVER, dtype=torch.int64, device=device)
        if self.class_weights is not None:
            self._device_class_weights = self.class_weights.to(device)

    def sums(self) -> dict[str, float | int]:
        """Return the sums of the epoch so far over all ranks; waits for the device and for the other ranks.

        Raises:
            TrainingError: a loss was not finite; names the first such step.
        """
        bad = self.world.min(int(self.first_bad_step.item()))
        if bad != _NEVER:
            raise self.divergence("the loss is", bad)
        return self.epoch_sums.state(self.world)

    def require_finite_weights(self) -> None:
        """Raise TrainingError unless the weights and running statistics of all ranks are finite; waits for them."""
        values = [value for value in self.model.state_dict().values() if value.is_floating_point()]
        finite = torch.stack([value.isfinite().all() for value in values]).all()
        if not self.world.min(int(finite.item())):
            raise self.divergence("the weights are", self.progress.step - 1)

    def divergence(self, what: str, step: int) -> TrainingError:
        """Return the error of a training that diverged at `step`, after writing nonfinite.json.

        `what` begins the message ("the loss is"). nonfinite.json has the keys of the whole global batch.
        """
        keys = [str(key) for key in self.train.keys(rows_of(self.global_batch(step), len(self.train)))]
        rate, path = self.learning_rate(step), RunFolder(self.run).nonfinite
        if self.world.is_first:
            content = {"step": step, "learning_rate": rate, "keys": keys}
            write_bytes(path, json.dumps(content, indent=2).encode() + b"\n")
        more = f" and {len(keys) - _KEYS_SHOWN} more" if len(keys) > _KEYS_SHOWN else ""
        shown = ", ".join(keys[:_KEYS_SHOWN]) + more
        return TrainingError(
            f"{what} not finite at step {step} (learning rate {rate:.3g}, pictures {shown}); {path} names them all; "
            "start another run (--out) with a lower --lr or with --clip-grad"
        )

    def forward(self) -> nn.Module:
        """Return the model as the current step trains it: frozen or not, its gradients averaged over the ranks."""
        frozen = self.epoch < self.config.freeze_backbone_epochs
        if self._forward is None or frozen != self._is_frozen:
            self.model.freeze(frozen)
            self.optimizer.zero_grad(set_to_none=True)  # gradients are views of the memory of the earlier one
            if self._forward is not None:
                self._forward = None
                gc.collect()  # frees that memory, which cycles of references hold, before there is another
            self._forward, self._is_frozen = self.world.wrap(self.model, self.precision.device), frozen
            if self.world.size > 1 and not self.config.compile:  # another size would be compiled for it
                self._settle(self._forward)
        return self._forward

    def _settle(self, forward: nn.Module) -> None:
        """Run one black picture through a model that was wrapped for several ranks, and back; changes no weights.

        From its second forward pass on, DDP sums gradients in the order in which the first backward pass had them. A
        training that is resumed would otherwise sum its first update in another order than an uninterrupted one, and
        with three or more ranks round differently.
        """
        self.model.eval()  # leaves running statistics and random states as they are
        pictures = torch.zeros(1, *self.train.shape, device=self.precision.device)
        if pictures.ndim > 2:
            pictures = pictures.permute(0, 3, 1, 2).to(self.precision.dtype or torch.float32)
        with self.precision.autocast():
            logits = forward(pictures)
        logits.sum().backward()
        self.optimizer.zero_grad(set_to_none=True)
        self.model.train()

    def order(self, epoch: int) -> NDArray[np.int64]:
        """Return the global order of an epoch, picks int64 [P]; keeps that of the last epoch asked for."""
        if self._order is None or self._order[0] != epoch:
            config, reader = self.config, self.train
            self._order = (epoch, epoch_order(reader.labels, reader.shard_of_row, config.seed, epoch, config.sampling))
        return self._order[1]

    def global_batch(self, step: int) -> NDArray[np.int64]:
        """Return the picks of all ranks together at a step of the training, int64 [batch_size]."""
        epoch, in_epoch = divmod(step, self.steps_per_epoch)
        return batch_picks(self.order(epoch), in_epoch, self.config.batch_size)

    def inputs(self, batch: Batch) -> tuple[torch.Tensor, Mix | None]:
        """Return a micro-batch as network input [B, 3, H, W], and how its samples are mixed; None if they are not.

        A training on features has features, float32 [B, D]. The input is valid until the next call.
        """
        config = self.config
        pictures = self.preprocess(batch.pixels, augmentation_draws(batch.picks, config.seed, self.epoch))
        mix = self._mix_of(batch.picks)
        if mix is not None:
            mix_pictures(pictures, mix)
        return pictures, mix

    def loss(self, logits: torch.Tensor, labels: torch.Tensor, mix: Mix | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the loss of a micro-batch, summed over its samples, and how many it answers rightly, int64 [].

        `logits` are float32 [B, K], `labels` int64 [B], and `mix` is what `inputs` returned.
        """
        losses = mixed_losses(partial(self._weighted_losses, logits), labels, mix)
        return losses.sum(), (logits.detach().argmax(dim=1) == main_labels(labels, mix)).sum()

    def _mix_of(self, picks: NDArray[np.int64]) -> Mix | None:
        if self.mixing is None:
            return None
        height, width = self.train.shape[:2]
        return self.mixing.of(picks, self.config.seed, self.epoch, (width, height))

    def _weighted_losses(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        losses: torch.Tensor = self.criterion(logits, labels)
        weights = self.sample_weights(labels)
        return losses if weights is None else losses * weights

    def sample_weights(self, labels: torch.Tensor) -> torch.Tensor | None:
        """Return the weights of labels in the loss of the current step; None while all weigh the same.

        `labels` int64 [B] of a micro-batch, to float32 [B]; over the global batch they sum to the batch size, those of
        mixed samples by their shares.
        """
        start = self.config.drw_start
        if (
            self.class_weights is None
            or self._device_class_weights is None
            or start is None
            or self.progress.step < start * self.num_steps
        ):
            return None
        picks = self.global_batch(self.progress.step)
        each, mix = self.class_weights[self.train.labels[rows_of(picks, len(self.train))]], self._mix_of(picks)
        if mix is not None:
            own = torch.from_numpy(mix.own)
            each = own * each + (1 - own) * partners(each)
        total = each.sum(dtype=torch.float64)
        return self._device_class_weights[labels] * float(len(picks) / total)

    @property
    def epoch(self) -> int:
        """The epoch of the current step, counted from 0."""
        return self.progress.step // self.steps_per_epoch

    @property
    def evaluated(self) -> Classifier:
        """The model whose weights are evaluated and kept: the averaged one if weights are averaged."""
        return self.model if self.averaged is None else cast(Classifier, self.averaged.module)

    @property
    def num_steps(self) -> int:
        """The number of updates of the whole training."""
        return self.config.epochs * self.steps_per_epoch

    def validation_is_due(self) -> bool:
        """Return whether the last epoch was trained, but its validation failed; waits for the other ranks.

        The sums of an epoch are zero once it has been validated.
        """
        at_an_end = not self.progress.step % self.steps_per_epoch
        return at_an_end and self.world.sum(self.epoch_sums.num_samples)[0] > 0

    def rate_factor(self, step: int) -> float:
        """Return the factor of the peak learning rates at a step."""
        config = self.config
        warmup = round(config.warmup_epochs * self.steps_per_epoch)
        return lr_factor(step, self.num_steps, warmup, config.schedule)

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of the backbone at a step."""
        return self.config.lr * self.rate_factor(step)
