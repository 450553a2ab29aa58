"""Models on a CUDA device: the head of every landmark, NCCL."""

import copy
import socket

import numpy as np
import pytest
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from lmk_train.models.heads import CosineHead
from lmk_train.models.losses import LDAM, ldam_margins
from tests.train.networks import network

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


CUDA, CPU = torch.device("cuda"), torch.device("cpu")


def test_the_head_of_every_landmark_steps_in_float32() -> None:
    head, counts = CosineHead(1280, 57042, 30.0).to(CUDA), np.arange(1, 57043)
    criterion = LDAM(ldam_margins(counts, 0.5), 30.0).to(CUDA)
    features, labels = torch.randn(64, 1280, device=CUDA), torch.randint(0, 57042, (64,), device=CUDA)
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1, momentum=0.9, fused=True)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        with torch.autocast("cuda", enabled=False):
            loss = criterion(head(features), labels).mean()
        assert loss.dtype == torch.float32
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_a_group_of_one_computes_over_nccl_what_the_bare_model_does() -> None:
    """Its gradients go through NCCL; with one process, the mean is what went in."""
    bare = network("resnet32", 5, 32, "cosine").to(CUDA)
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(bare))
    pictures, labels = torch.randn(8, 3, 32, 32, device=CUDA), torch.randint(0, 5, (8,), device=CUDA)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    distributed.init_process_group("cpu:gloo,cuda:nccl", init_method=address, rank=0, world_size=1)
    try:
        together = DistributedDataParallel(converted, device_ids=[0], broadcast_buffers=False)
        with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
            for model in (bare, together):
                nn.functional.cross_entropy(model(pictures), labels).backward()
        torch.cuda.synchronize()
    finally:
        distributed.destroy_process_group()
    for (name, ours), theirs in zip(bare.named_parameters(), converted.parameters(), strict=True):
        torch.testing.assert_close(
            ours.grad, theirs.grad, atol=1e-5, rtol=1e-3, msg=lambda said, at=name: f"{at}: {said}"
        )
    for ours, theirs in zip(bare.buffers(), converted.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs)
