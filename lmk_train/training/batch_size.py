"""The batch size that a training takes by itself: the model's default, or what the memory of a CUDA device allows."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from lmk_data.dataset import ShardedDataset
from lmk_train.config.training import ResolvedConfig, TrainConfig
from lmk_train.models.registry import ARCHITECTURES
from lmk_train.runs.folder import stored_config
from lmk_train.runtime.world import World

_LARGEST, _SMALLEST = 4, 8  # times the model's default; pictures of one rank at once
_FEWEST_UPDATES = 200  # of an epoch: a larger batch would leave too few
# Shares of the memory: a larger batch leaves room, because the calculation has not been compared with a card yet.
_FITS, _FITS_WITH_ROOM = 0.9, 0.75
# Estimates: what a CUDA context with the kernels of cuDNN and cuBLAS takes, the workspaces of both, NCCL's channels.
_CONTEXT_BYTES, _WORKSPACE_BYTES, _NCCL_BYTES = 512 << 20, 256 << 20, 256 << 20
FLOAT32 = 4  # bytes
OPTIMIZER_FLOATS = {"sgd": 1, "adamw": 2}
_LOGITS = 5  # copies of the logits while the loss and its gradient are computed
_SUBPIXEL_BYTES = 14  # while a batch is augmented: two of uint8, three of float32


@dataclass(frozen=True)
class Need:
    """Bytes that a training takes on its device: in any case, and for each picture of a micro-batch."""

    fixed: int
    picture: int

    @classmethod
    def of(cls, config: ResolvedConfig, num_classes: int, picture_size: int, value_bytes: int, ranks: int) -> "Need":
        """Return the need of a training.

        Args:
            config: its model, neck, head, centres, optimiser, averaging and micro-batches count.
            num_classes: outputs of the head.
            picture_size: pixels on each side of its pictures.
            value_bytes: of an activation: 2 under autocast, otherwise 4.
            ranks: that train together.
        """
        architecture = ARCHITECTURES[config.model]
        width = config.neck or architecture.num_features
        neck = 0 if config.neck is None else (architecture.num_features + 2) * width
        centres = config.subcenters if config.loss == "arcface" else 1
        head = num_classes * (centres * width + (config.head == "linear"))  # with a bias
        floats = 2 + OPTIMIZER_FLOATS[config.optimizer] + (config.ema is not None)  # of each parameter
        second_gradient = head if ranks > 1 or config.grad_accum > 1 else 0
        parameters = architecture.num_parameters + neck + head
        pixel = architecture.pixel_bytes * value_bytes // FLOAT32 + 3 * _SUBPIXEL_BYTES
        return cls(
            fixed=overhead_bytes(ranks) + (parameters * floats + second_gradient) * FLOAT32,
            picture=picture_size**2 * pixel + centres * num_classes * FLOAT32 * _LOGITS,
        )


def overhead_bytes(ranks: int) -> int:
    """Return what a training takes of a CUDA device whatever its size, an estimate."""
    return _CONTEXT_BYTES + _WORKSPACE_BYTES + _NCCL_BYTES * (ranks > 1)


def largest_batch(need: Need, memory_bytes: int, config: ResolvedConfig, num_images: int, ranks: int) -> int:
    """Return the batch of all ranks together for devices of this memory: the model's default, doubled or halved.

    Args:
        need: of the training.
        memory_bytes: of the smallest device of the ranks.
        config: whose batch size is the model's default.
        num_images: of the training split.
        ranks: that train together.
    """
    parts, batch = ranks * config.grad_accum, config.batch_size

    def fits(size: int, share: float) -> bool:
        return need.fixed + need.picture * -(-size // parts) <= share * memory_bytes

    while not fits(batch, _FITS) and batch // 2 >= _SMALLEST * parts:
        batch //= 2
    most = min(_LARGEST * config.batch_size, num_images // _FEWEST_UPDATES)
    while batch * 2 <= most and fits(batch * 2, _FITS_WITH_ROOM):
        batch *= 2
    return batch


def resolved_for(
    asked: TrainConfig,
    dataset: ShardedDataset,
    world: World,
    memory_bytes: int | None,
    announce: Callable[[str], None],
) -> ResolvedConfig:
    """Return the configuration with every default filled in, the batch size by the memory of the device.

    Default learning rates follow such a batch size. A run that is resumed keeps the size that was chosen for it.

    Args:
        asked: the configuration, with defaults still to be filled in.
        dataset: to train on.
        world: the ranks that train together; their smallest device decides.
        memory_bytes: of this rank's device; None keeps the model's default.
        announce: called with a line if the batch size is not the model's default.
    """
    config = asked.resolved()
    if asked.batch_size is not None:
        return config
    if config.resume and (size := _size_chosen_before(asked, config)) is not None:
        return _with_batch(asked, size)
    if memory_bytes is None:
        return config
    memory, size = world.min(memory_bytes), dataset.recipe.size
    need = Need.of(config, dataset.num_classes, size, FLOAT32 if config.amp == "off" else 2, world.size)
    batch = largest_batch(need, memory, config, dataset.num_samples("train"), world.size)
    if batch == config.batch_size:
        return config
    chosen = _with_batch(asked, batch)
    announce(
        f"batches of {batch} pictures, for {memory / 1e9:.0f} GB of memory; learning rates {chosen.lr:.2g} and "
        f"{chosen.head_lr:.2g} for the head; give --batch-size for another (the model's default is {config.batch_size})"
    )
    return chosen


def device_memory(device: torch.device) -> int | None:
    """Return the bytes of a CUDA device; None for the CPU."""
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None


def _with_batch(asked: TrainConfig, size: int) -> ResolvedConfig:
    """Return the configuration with this batch size, and with default learning rates that suit it.

    They grow with the size for SGD (Goyal et al. 2017) and with its square root for AdamW.
    """
    config = asked.resolved()
    ratio = size / config.batch_size
    factor = ratio if config.optimizer == "sgd" else math.sqrt(ratio)
    lr, head_lr = asked.lr or config.lr * factor, asked.head_lr or config.head_lr * factor
    return replace(asked, batch_size=size, lr=lr, head_lr=head_lr).resolved()


def _size_chosen_before(asked: TrainConfig, config: ResolvedConfig) -> int | None:
    """Return the batch size of the run in `config.out` if its memory decided it, as its learning rates show."""
    stored = stored_config(config.out) or {}
    size = stored.get("batch_size")
    if type(size) is not int or size < 1:
        return None
    chosen = _with_batch(asked, size)
    return size if (chosen.lr, chosen.head_lr) == (stored.get("lr"), stored.get("head_lr")) else None
