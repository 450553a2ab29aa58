"""Parameter groups, and the learning rate as a pure function of the step."""

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
    """What the peak learning rates are multiplied by at a step (0-based): a linear warm-up, then the schedule."""
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    if schedule == "cosine":
        progress = (step - warmup_steps) / max(1, num_steps - warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return math.prod(_STEP_FACTOR if step >= share * num_steps else 1.0 for share in _STEPS_DOWN)


def make_optimizer(
    model: Classifier, name: str, *, lr: float, head_lr: float, weight_decay: float
) -> torch.optim.Optimizer:
    """SGD (Nesterov momentum 0.9) or AdamW, fused, over four groups: backbone and head, with decay and without.

    Norms and biases (parameters of one dimension) do not decay. Each group carries its peak rate as `peak_lr`.
    """
    groups = []
    for part, rate in ((model.backbone, lr), (model.head, head_lr)):
        for decays in (True, False):
            chosen = [p for p in part.parameters() if p.requires_grad and (p.ndim > 1) == decays]
            if chosen:
                decay = weight_decay if decays else 0.0
                groups.append({"params": chosen, "lr": rate, "peak_lr": rate, "weight_decay": decay})
    if name == "sgd":
        sgd = torch.optim.SGD(groups, momentum=_MOMENTUM, nesterov=True, fused=True)
        for parameter in (p for group in sgd.param_groups for p in group["params"]):
            # The same as torch's own first step, which leaves the buffer uninitialised where an overflow skips it.
            sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return sgd
    return torch.optim.AdamW(groups, fused=True)


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set each group's rate to its peak times `factor`."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor


def averaged_model(model: Classifier) -> AveragedModel:
    """A copy of the model, for `update_average` to have follow it."""
    return AveragedModel(model, use_buffers=True)


@torch.no_grad()
def update_average(averaged: AveragedModel, model: Classifier, decay: float) -> None:
    """Have the copy follow the model's weights and buffers: after t updates by min(decay, (1 + t) / (10 + t)).

    `AveragedModel.update_parameters` copies its count to the device, and waits for it.
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
    """The norm of all gradients, which are scaled down if it is above `max_norm`; does not wait for the device."""
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    if max_norm is not None:
        nn.utils.clip_grads_with_norm_(model.parameters(), max_norm, norm)
    return norm


def _tensors(module: nn.Module) -> Iterator[torch.Tensor]:
    return chain(module.parameters(), module.buffers())
