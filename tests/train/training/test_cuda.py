"""Trainings on a CUDA device: 16 bits, fused optimisers, compiling, torchrun."""

import json
import socket
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
import torch

from lmk_data.dataset import ShardedDataset
from lmk_train.config.training import TrainConfig
from lmk_train.runtime.world import SINGLE
from lmk_train.training.assembly import make_trainer
from lmk_train.training.loop import batch_stream, micro_batches, train, training_step

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
        trainer = make_trainer(config.resolved(), dataset, SINGLE, lambda _: None)
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
