"""Optimisers, learning-rate schedules, averaged weights and gradient clipping."""

import math
from collections.abc import Iterator
from itertools import chain

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from lmk_train.config.training import Schedule
from lmk_train.models.heads import Classifier

_MOMENTUM = 0.9
_STEPS_DOWN, _STEP_FACTOR = (0.8, 0.9), 0.01  # epochs 160 and 180 of 200 (Cao et al. 2019)


def lr_factor(step: int, num_steps: int, warmup_steps: int, schedule: Schedule) -> float:
    """Return the factor of the peak learning rates at a step: a linear warm-up, then the schedule.

    `step` counts from 0. `cosine` falls to 0 by a half cosine, `step` to a hundredth at 80 % of the training and again
    at 90 %.
    """
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    if schedule == "cosine":
        progress = (step - warmup_steps) / max(1, num_steps - warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return math.prod(_STEP_FACTOR if step >= share * num_steps else 1.0 for share in _STEPS_DOWN)


def make_optimizer(
    model: Classifier, name: str, *, lr: float, head_lr: float, weight_decay: float
) -> torch.optim.Optimizer:
    """Return SGD (Nesterov momentum 0.9) or AdamW, fused, over four groups: backbone, and neck and head, with and
    without decay.

    Normalisation parameters and biases (parameters of one dimension) do not decay. Each group has its peak learning
    rate under `peak_lr`.

    Args:
        model: whose trainable parameters are optimised.
        name: `sgd` or `adamw`.
        lr: peak learning rate of the backbone.
        head_lr: peak learning rate of neck and head.
        weight_decay: of the groups with decay.
    """
    groups = []
    top = [*model.neck.parameters(), *model.head.parameters()]
    for part, rate in ((list(model.backbone.parameters()), lr), (top, head_lr)):
        for decays in (True, False):
            parameters = [p for p in part if p.requires_grad and (p.ndim > 1) == decays]
            if parameters:
                decay = weight_decay if decays else 0.0
                groups.append({"params": parameters, "lr": rate, "peak_lr": rate, "weight_decay": decay})
    if name == "sgd":
        sgd = torch.optim.SGD(groups, momentum=_MOMENTUM, nesterov=True, fused=True)
        for parameter in (p for group in sgd.param_groups for p in group["params"]):
            # Equals the first step of torch, which leaves the buffer uninitialised if an overflow skips that step.
            sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return sgd
    return torch.optim.AdamW(groups, fused=True)


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set the learning rate of each group to its peak times `factor`."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor


def averaged_model(model: Classifier) -> AveragedModel:
    """Return a copy of the model, which `update_average` updates."""
    return AveragedModel(model, use_buffers=True)


@torch.no_grad()
def update_average(averaged: AveragedModel, model: Classifier, decay: float) -> None:
    """Update the exponential moving average of the model's weights and buffers, without waiting for the device.

    After t updates the average decays by min(decay, (1 + t) / (10 + t)). `AveragedModel.update_parameters` is not used
    because it copies its count to the device and waits for that.
    """
    updates = int(averaged.n_averaged)  # on the host
    share = 1 - min(decay, (1 + updates) / (10 + updates)) if updates else 1.0
    pairs = list(zip(_tensors(averaged.module), _tensors(model), strict=True))
    moving = [pair for pair in pairs if pair[0].is_floating_point()]
    counts = [pair for pair in pairs if not pair[0].is_floating_point()]
    torch._foreach_lerp_([own for own, _ in moving], [current for _, current in moving], share)
    if counts:
        torch._foreach_copy_([own for own, _ in counts], [current for _, current in counts])
    averaged.n_averaged += 1


def clip_gradients(model: nn.Module, max_norm: float | None) -> torch.Tensor:
    """Return the norm of all gradients, float32 []; scale them down if it is above `max_norm`.

    Does not wait for the device. None for `max_norm` does not scale.
    """
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    if max_norm is not None:
        nn.utils.clip_grads_with_norm_(model.parameters(), max_norm, norm)
    return norm


def _tensors(module: nn.Module) -> Iterator[torch.Tensor]:
    return chain(module.parameters(), module.buffers())
