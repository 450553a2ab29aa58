"""What only a CUDA device can show: 16-bit training, the pinned ring, fused optimisers, NCCL, compiling."""

import copy
import json
import socket
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from lmk_data.dataset import ShardedDataset
from lmk_train.assembly import make_trainer
from lmk_train.augment import Augmentation, Normalization, Preprocess, augmentation_draws
from lmk_train.cache import Cache
from lmk_train.config import TrainConfig
from lmk_train.loop import batch_stream, micro_batches, train, training_step
from lmk_train.losses import LDAM, ldam_margins
from lmk_train.models import CosineHead, build_model
from lmk_train.stream import BatchStream, SplitReader
from lmk_train.world import ALONE

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

CUDA, CPU = torch.device("cuda"), torch.device("cpu")


def training(dataset: Path, run: Path, **changes: object) -> list[dict[str, float]]:
    """Epoch lines of a training on the device."""
    chosen: dict[str, object] = {"model": "efficientnet-lite0", "weights": "none", "epochs": 3, "batch_size": 10}
    train(TrainConfig(str(dataset), run, device="cuda", quiet=True, **{**chosen, **changes}))  # type: ignore[arg-type]
    read = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in read if line["kind"] == "epoch"]


@pytest.mark.parametrize("amp", ["fp16", "bf16", "off"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_every_precision_and_optimizer_learns(dataset_path: Path, tmp_path: Path, amp: str, optimizer: str) -> None:
    lines = training(dataset_path, tmp_path / "run", amp=amp, optimizer=optimizer, ema=0.9, clip_grad=5.0, lr=1e-3)
    assert lines[-1]["train_loss"] < lines[0]["train_loss"]


def test_float32_trains_as_on_the_cpu(dataset_path: Path, tmp_path: Path) -> None:
    """A frozen backbone and no dropout leave nothing but rounding between the devices."""
    fixed = {"amp": "off", "freeze_backbone_epochs": 3, "drop_rate": 0.0, "optimizer": "sgd", "head_lr": 0.05}
    there = training(dataset_path, tmp_path / "cuda", **fixed)
    here = training(dataset_path, tmp_path / "cpu", device="cpu", **fixed)
    assert [line["train_loss"] for line in there] == pytest.approx([line["train_loss"] for line in here], rel=1e-3)


def test_the_pinned_ring_never_overwrites_a_batch_that_is_being_copied(dataset_path: Path) -> None:
    with ShardedDataset.open(dataset_path) as dataset:
        reader = SplitReader(dataset, "train", Cache(dataset_path, 0))
        batches = [np.random.default_rng(number).integers(0, len(reader), 16) for number in range(60)]
        slow = torch.empty(4096, 4096, device=CUDA)
        with closing(BatchStream(reader, CUDA, 16, 4)(batches)) as stream:
            sums = []
            for batch in stream:
                torch.mm(slow, slow)  # so that copies wait in the queue while the host runs ahead
                sums.append(batch.pixels.sum(dim=(1, 2, 3), dtype=torch.int64))
        with closing(BatchStream(reader, CPU, 16, 4)(batches)) as stream:
            expected = [batch.pixels.sum(dim=(1, 2, 3), dtype=torch.int64) for batch in stream]
        reader.close()
    assert all(torch.equal(there.cpu(), here) for there, here in zip(sums, expected, strict=True))


def test_augmentation_is_the_cpus(dataset_path: Path) -> None:
    pixels = torch.randint(0, 256, (8, 64, 64, 3), dtype=torch.uint8)
    draws = augmentation_draws(np.arange(8), seed=0, epoch=0)
    chosen = Augmentation(0.5, 0.4, 4, 0.3, 0.5)
    normalization = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    here = Preprocess(normalization, chosen, CPU)(pixels, draws)
    there = Preprocess(normalization, chosen, CUDA)(pixels.to(CUDA), draws)
    torch.testing.assert_close(there.cpu(), here, atol=1e-4, rtol=1e-4)


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


@pytest.mark.slow
def test_a_compiled_backbone_trains(dataset_path: Path, tmp_path: Path) -> None:
    lines = training(dataset_path, tmp_path / "run", compile=True, epochs=2)
    assert lines[-1]["train_loss"] < lines[0]["train_loss"]


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--sync-bn", "--grad-accum", "2"]])
def test_one_process_under_torchrun_trains(dataset_path: Path, tmp_path: Path, more: list[str]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["-m", "torch.distributed.run", "--nproc-per-node=1", f"--master-port={port}", "-m", "lmk_train.cli"]
    words += ["--shards", str(dataset_path), "--out", str(tmp_path / "run"), "--model", "resnet32", "--epochs", "2"]
    done = subprocess.run([sys.executable, *words, "--batch-size", "10", *more], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_group_of_one_computes_over_nccl_what_the_bare_model_does() -> None:
    """Its gradients go through NCCL; with one process, the mean is what went in."""
    bare = build_model("resnet32", 5, head="cosine", scale=30.0, picture_size=32).to(CUDA)
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


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("amp", ["fp16", "bf16", "off"])
def test_steps_between_two_lines_never_wait_for_the_device(dataset_path: Path, tmp_path: Path, amp: str) -> None:
    chosen = {
        "model": "resnet32",
        "loss": "ldam",
        "clip_grad": 5.0,
        "drw_start": 0.0,
        "grad_accum": 2,
        "epochs": 9,
        "ema": 0.9,
    }
    config = TrainConfig(str(dataset_path), tmp_path, device="cuda", amp=amp, batch_size=10, **chosen)  # type: ignore[arg-type]
    with ShardedDataset.open(dataset_path) as dataset:
        trainer = make_trainer(config.resolved(), tmp_path, dataset, CUDA, ALONE, lambda _: None)
        picks = (picks for epoch in range(9) for picks in micro_batches(trainer, epoch, 0))
        with closing(batch_stream(trainer)(picks)) as batches:
            for _ in range(8):  # the first steps allocate
                training_step(trainer, batches)
            torch.cuda.set_sync_debug_mode("error")
            try:
                for _ in range(8):
                    training_step(trainer, batches)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        trainer.train.close()


def test_layers_are_channels_last_on_the_device(dataset_path: Path) -> None:
    pixels = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8, device=CUDA)
    normalization = Normalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    out = Preprocess(normalization, Augmentation(), CUDA, torch.float16)(pixels, None)
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert nn.Conv2d(3, 8, 3).to(CUDA).half()(out).dtype == torch.float16
