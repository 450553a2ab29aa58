"""What to change in a command that ran out of memory."""

from typing import Any

from lmk_train.config.commands import EvalConfig, PredictConfig
from lmk_train.config.training import TrainConfig

_MIXED = 2  # pictures that --mixup and --cutmix put together, of the same micro-batch


def memory_advice(config: Any, ranks: int) -> str:
    """Return what needs less memory than a command's configuration, as the end of a sentence.

    A training that is resumed is told only what may change then. `ranks` is the number of its processes.
    """
    if isinstance(config, TrainConfig):
        return _training_advice(config, ranks)
    if isinstance(config, EvalConfig | PredictConfig):
        return "a smaller --batch-size needs less"
    return "run it where more memory is free"


def _training_advice(config: TrainConfig, ranks: int) -> str:
    parts = 2 * config.grad_accum
    batch_size, mixes = config.resolved().batch_size, config.mixup is not None or config.cutmix is not None
    if batch_size < ranks * parts or (mixes and batch_size % (_MIXED * ranks * parts)):
        more = "more ranks, or a device with more memory"
        return f"resume it with {more}" if config.resume else f"take a smaller --model, {more}"
    if config.resume:
        return f"resume it with --grad-accum {parts}, whose updates are nearly the same"
    same_updates = f"--grad-accum {parts} needs less, with nearly the same updates, also on --resume"
    return f"{same_updates}; a new run may take a smaller --batch-size"
