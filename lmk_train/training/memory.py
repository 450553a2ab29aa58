"""The memory that a training takes on its device: calculated from its parts, and measured on CUDA by two updates."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lmk_train.data.mixing import mixed_losses
from lmk_train.data.stream import Batch
from lmk_train.training.batch_size import FLOAT32, OPTIMIZER_FLOATS, overhead_bytes
from lmk_train.training.loop import batch_stream, micro_batches, training_step
from lmk_train.training.trainer import Trainer

_UPDATES = 2  # the state of the optimiser is there from the end of the first on


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank on the training device, at the moment of an update that takes most.

    Attributes:
        weights: parameters and running statistics, and their moving average.
        gradients: of the parameters that are trained.
        optimizer: its state.
        buckets: in which DistributedDataParallel averages the gradients, if they are copies.
        second_gradient: of the largest parameter, until it is added to the first one or copied to its bucket.
        activations: what a forward pass keeps for its backward pass, pixels and gradients of the logits included.
        overhead: the CUDA context, workspaces and NCCL, as an estimate; 0 on the CPU.
    """

    weights: int
    gradients: int
    optimizer: int
    buckets: int
    second_gradient: int
    activations: int
    overhead: int

    @property
    def total(self) -> int:
        """The sum of all parts."""
        return sum(vars(self).values())


@dataclass(frozen=True)
class Measured:
    """Bytes on a CUDA device after updates: the most that PyTorch reserved, and what is used and there in all.

    `used` includes the CUDA context, and what other programs hold.
    """

    reserved: int
    used: int
    there: int


def estimate(trainer: Trainer, activations: int) -> Memory:
    """Return the memory of a training whose forward pass keeps so many bytes; the model is as the step trains it."""
    config, model, forward = trainer.config, trainer.model, trainer.forward()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gradients = FLOAT32 * sum(parameter.numel() for parameter in trained)
    averaged = isinstance(forward, DistributedDataParallel)
    views = averaged and bool(forward.gradient_as_bucket_view)
    twice = config.grad_accum > 1 or views
    return Memory(
        weights=_bytes(model) * (1 if config.ema is None else 2),
        gradients=gradients,
        optimizer=gradients * OPTIMIZER_FLOATS[config.optimizer],
        buckets=gradients if averaged and not views else 0,
        second_gradient=max(parameter.nbytes for parameter in trained) if twice else 0,
        activations=activations,
        overhead=overhead_bytes(trainer.world.size) if trainer.precision.device.type == "cuda" else 0,
    )


def forward_pass(trainer: Trainer, batch: Batch) -> tuple[int, float]:
    """Return the bytes of `Memory.activations` for a micro-batch, and its mean loss."""
    own = {tensor.untyped_storage().data_ptr() for tensor in _tensors(trainer.model)}
    kept: dict[int, int] = {}

    def remember(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # the tensor itself would keep the graph alive for ever

    pictures, mix = trainer.inputs(batch)
    remember(pictures)
    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        with trainer.precision.autocast():
            logits = trainer.model(pictures)
        losses = mixed_losses(partial(trainer.criterion, logits), batch.labels, mix)
    # The cosine heads scale the gradient, and multiply it by the logits, while it is there.
    gradients_of_logits = logits.nbytes * (1 if isinstance(trainer.model.head, nn.Linear) else 3)
    return sum(kept.values()) + batch.pixels.nbytes + gradients_of_logits, losses.mean().item()


def run_updates(trainer: Trainer) -> None:
    """Make two updates from the trainer's step on; nothing is written."""
    epoch = trainer.epoch
    picks = chain(*(micro_batches(trainer, epoch + later, 0) for later in range(_UPDATES)))
    with closing(batch_stream(trainer)(islice(picks, _UPDATES * trainer.config.grad_accum))) as batches:
        for _ in range(_UPDATES):
            training_step(trainer, batches)


def measure(trainer: Trainer) -> Measured | None:
    """Return what two updates take on a CUDA device; None on the CPU, where they are not made."""
    device = trainer.precision.device
    if device.type != "cuda":
        return None
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    run_updates(trainer)
    torch.cuda.synchronize(device)
    free, there = torch.cuda.mem_get_info(device)
    return Measured(torch.cuda.max_memory_reserved(device), there - free, there)


def _bytes(model: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in _tensors(model))


def _tensors(model: nn.Module) -> Iterator[torch.Tensor]:
    return chain(model.parameters(), model.buffers())
