"""Optimisers and learning-rate schedules."""

import math

import numpy as np
import pytest
import torch

from lmk_train.training.optim import lr_factor, make_optimizer
from tests.train.networks import network


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_an_update_that_overflows_leaves_no_trace(name: str) -> None:
    def updated(overflows: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        model = network("resnet32", 3, 32)
        optimizer = make_optimizer(model, name, lr=0.1, head_lr=0.1, weight_decay=1e-3)
        scaler = torch.amp.GradScaler("cpu", init_scale=1.0, backoff_factor=1.0 - 2**-20)
        dirty = [torch.full_like(parameter, torch.nan) for parameter in model.parameters()]
        del dirty  # what is allocated next is most often this memory
        for step in range(overflows + 2):
            loss = sum((p * p).sum() for p in model.parameters()) * (torch.inf if step < overflows else 1.0)
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        return model.state_dict()

    expected, found = updated(0), updated(3)
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_norms_and_biases_do_not_decay_and_the_head_has_its_own_rate(name: str) -> None:
    model = network("resnet50", 3, 64)
    optimizer = make_optimizer(model, name, lr=0.1, head_lr=0.2, weight_decay=0.3)
    found = {id(p): (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(found)
    expected = {}
    for module_name, module in model.named_modules():
        plain = isinstance(module, torch.nn.modules.batchnorm._BatchNorm)
        for parameter_name, parameter in module.named_parameters(recurse=False):
            decay = 0.0 if plain or parameter_name == "bias" else 0.3
            expected[id(parameter)] = (0.2 if module_name.startswith("head") else 0.1, decay)
    assert found == expected
    assert set(expected.values()) == {(rate, decay) for rate in (0.1, 0.2) for decay in (0.0, 0.3)}


def test_learning_rate_schedules() -> None:
    cosine = [lr_factor(step, 100, 10, "cosine") for step in range(100)]
    assert np.all(np.diff(cosine[:11]) > 0)
    assert cosine[10] == 1.0
    assert np.all(np.diff(cosine[10:]) < 0)
    assert 0 < cosine[-1] < 0.001
    steps = [lr_factor(step, 100, 0, "step") for step in range(100)]
    assert steps[:80] == [1.0] * 80
    assert steps[80:90] == pytest.approx([0.01] * 10)
    assert steps[90:] == pytest.approx([0.0001] * 10)
    assert math.isclose(lr_factor(0, 100, 4, "cosine"), 0.2)
