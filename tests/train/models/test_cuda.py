"""Models on a CUDA device: the head of every landmark, NCCL. The CPU runs the same tests, with gloo."""

import copy
from typing import get_args

import numpy as np
import pytest
import torch
from torch import distributed, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from lmk_train.config.training import LossName, TrainConfig
from lmk_train.models.heads import CosineHead
from lmk_train.models.losses import LDAM, ldam_margins
from lmk_train.models.registry import ARCHITECTURES, build_model
from lmk_train.runtime.precision import resolve_device
from lmk_train.runtime.world import World
from lmk_train.training.assembly import make_criterion
from tests.ports import free_port
from tests.train.devices import every_device
from tests.train.networks import network


@every_device
def test_the_head_of_every_landmark_steps_in_float32(device: str) -> None:
    num_classes = 57042 if device == "cuda" else 570
    head, counts = CosineHead(1280, num_classes, 30.0).to(device), np.arange(1, num_classes + 1)
    criterion = LDAM(ldam_margins(counts, 0.5), 30.0).to(device)
    features, labels = torch.randn(64, 1280, device=device), torch.randint(0, num_classes, (64,), device=device)
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1, momentum=0.9, fused=True)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        with torch.autocast(device, enabled=False):
            loss = criterion(head(features), labels).mean()
        assert loss.dtype == torch.float32
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@every_device
def test_the_cosine_head_has_the_gradients_of_its_formula(device: str) -> None:
    """On CUDA the weights are one part, on the CPU several."""
    resolve_device(device)  # TF32 off
    head = CosineHead(640, 4000, 30.0).to(device)
    features = torch.randn(16, 640, device=device, requires_grad=True)
    towards = torch.randn(16, 4000, device=device)
    plain = 30 * nn.functional.normalize(features, dim=1) @ nn.functional.normalize(head.weight, dim=1).T
    expected = torch.autograd.grad(plain, [features, head.weight], towards)
    found = torch.autograd.grad(head(features), [features, head.weight], towards)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=1e-3)


@every_device
def test_a_group_of_one_computes_what_the_bare_model_does(device: str) -> None:
    """Its gradients go through NCCL, or gloo; with one process, the mean is what went in."""
    here = resolve_device(device)
    bare = network("resnet32", 5, 32, "cosine").to(device)
    converted = copy.deepcopy(bare)
    if device == "cuda":  # on the CPU it refuses its input
        converted = nn.SyncBatchNorm.convert_sync_batchnorm(converted)
    pictures, labels = torch.randn(8, 3, 32, 32, device=device), torch.randint(0, 5, (8,), device=device)
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    address = f"tcp://127.0.0.1:{free_port()}"
    distributed.init_process_group(backend, init_method=address, rank=0, world_size=1)
    try:
        together = World(0, 2).wrap(converted, here)  # a group of one, wrapped as one of two
        with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
            for model in (bare, together):
                nn.functional.cross_entropy(model(pictures), labels).backward()
    finally:
        distributed.destroy_process_group()
    for (name, ours), theirs in zip(bare.named_parameters(), converted.parameters(), strict=True):
        torch.testing.assert_close(
            ours.grad, theirs.grad, atol=1e-5, rtol=1e-3, msg=lambda said, at=name: f"{at}: {said}"
        )
    for ours, theirs in zip(bare.buffers(), converted.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("model", "loss"),
    [
        *(("resnet32", loss) for loss in get_args(LossName)),
        *(pytest.param(model, "ldam", marks=pytest.mark.slow) for model in ARCHITECTURES if model != "resnet32"),
    ],
)
def test_every_tensor_of_a_forward_pass_is_on_the_device(model: str, loss: str) -> None:
    """By tensors without data, which need no device: one that stayed on the host would raise."""
    config = TrainConfig("none", model=model, loss=loss).resolved()  # type: ignore[arg-type]
    criterion = make_criterion(config, np.arange(1, 12))
    with FakeTensorMode(allow_non_fake_inputs=True):
        with torch.device("cuda"):
            made = build_model(config, 11, 64)
        pictures = torch.zeros(4, 3, 64, 64, device="cuda")
        losses = criterion.to("cuda")(made(pictures), torch.zeros(4, dtype=torch.int64, device="cuda"))
    assert losses.device.type == "cuda"
    assert losses.shape == (4,)
