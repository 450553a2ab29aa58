"""The optimiser of the LDAM paper's code, which `pipelines.cifar10_lt` also trains with."""

import pytest
import torch
from torch import nn

from pipelines.bench.reference_sgd import reference_sgd
from tests.train.networks import network


def test_every_parameter_decays_and_the_momentum_is_plain() -> None:
    """Three updates beside the formula: v = 0.9 v + (g + 0.1 w), w = w - 0.5 v."""
    model = network("resnet32", 5, 32, "cosine")
    optimizer = reference_sgd(model, "sgd", lr=0.5, head_lr=0.5, weight_decay=0.1)
    (group,) = optimizer.param_groups
    assert group["peak_lr"] == 0.5
    assert len(group["params"]) == len(list(model.parameters()))
    weights = {name: parameter.detach().clone().double() for name, parameter in model.named_parameters()}
    momentum = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for seed in range(3):
        for number, (name, parameter) in enumerate(model.named_parameters()):
            gradient = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1000 * seed + number))
            parameter.grad = gradient
            momentum[name] = 0.9 * momentum[name] + gradient.double() + 0.1 * weights[name]
            weights[name] = weights[name] - 0.5 * momentum[name]
        optimizer.step()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach().double(), weights[name], atol=1e-4, rtol=1e-4)


def test_a_frozen_backbone_stays_and_other_settings_are_refused() -> None:
    model = network("resnet32", 5, 32, "linear")
    for parameter in model.backbone.parameters():
        parameter.requires_grad_(False)
    (group,) = reference_sgd(model, "sgd", lr=0.1, head_lr=0.1, weight_decay=0.0).param_groups
    assert [parameter.shape for parameter in group["params"]] == [torch.Size([5, 64]), torch.Size([5])]
    assert isinstance(model.head, nn.Linear)
    with pytest.raises(ValueError, match="not adamw"):
        reference_sgd(model, "adamw", lr=0.1, head_lr=0.1, weight_decay=0.0)
