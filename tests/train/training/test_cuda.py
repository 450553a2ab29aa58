"""Trainings on a CUDA device: 16 bits, fused optimisers, compiling, torchrun. The CPU runs the same tests."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import torch

from lmk_data.dataset import ShardedDataset
from lmk_train.config.training import TrainConfig
from lmk_train.runtime.precision import resolve_device
from lmk_train.runtime.world import SINGLE
from lmk_train.training.assembly import make_trainer
from lmk_train.training.loop import batch_stream, micro_batches, train, training_step
from tests.ports import free_port
from tests.train.devices import ON_CUDA, every_device, every_precision, skip_without_bfloat16


def training(dataset: Path, run: Path, **changes: object) -> list[dict[str, float]]:
    """Epoch lines of a training."""
    chosen: dict[str, object] = {"model": "resnet32", "weights": "none", "epochs": 3, "batch_size": 10, "quiet": True}
    train(TrainConfig(str(dataset), run, **{**chosen, **changes}), evaluate_test=False)  # type: ignore[arg-type]
    read = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in read if line["kind"] == "epoch"]


@pytest.mark.slow
@every_precision
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_every_precision_and_optimizer_learns(
    dataset_path: Path, tmp_path: Path, device: str, amp: str, optimizer: str
) -> None:
    skip_without_bfloat16(device, amp)
    epochs = 8 if device == "cuda" else 2
    fixed = {"ema": 0.9, "clip_grad": 5.0, "lr": 1e-3, "head_lr": 1e-2, "epochs": epochs}
    lines = training(dataset_path, tmp_path / "run", device=device, amp=amp, optimizer=optimizer, **fixed)
    assert lines[-1]["train_loss"] < lines[0]["train_loss"]


@pytest.mark.slow
@every_device
@pytest.mark.parametrize("model", ["efficientnet-b0", "resnet32"])
def test_float32_trains_as_on_the_cpu(dataset_path: Path, tmp_path: Path, device: str, model: str) -> None:
    """A frozen backbone and no dropout leave nothing but rounding between the devices."""
    fixed = {"model": model, "amp": "off", "freeze_backbone_epochs": 3, "drop_rate": 0.0, "optimizer": "sgd"}
    there = training(dataset_path, tmp_path / "there", device=device, head_lr=0.05, **fixed)
    here = training(dataset_path, tmp_path / "here", device="cpu", head_lr=0.05, **fixed)
    assert [line["train_loss"] for line in there] == pytest.approx([line["train_loss"] for line in here], rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("device", [pytest.param("cuda", marks=ON_CUDA)])
@pytest.mark.filterwarnings("default")  # the compiler has warnings of its own, for instance of TF32, which is off
def test_a_compiled_backbone_trains(dataset_path: Path, tmp_path: Path, device: str) -> None:
    lines = training(dataset_path, tmp_path / "run", device=device, model="efficientnet-b0", lr=1e-3, compile=True)
    assert lines[-1]["train_loss"] < lines[0]["train_loss"]


@pytest.mark.slow
@pytest.mark.parametrize("device", [pytest.param("cuda", marks=ON_CUDA)])
@pytest.mark.parametrize("more", [[], ["--sync-bn", "--grad-accum", "2"]])
def test_one_process_under_torchrun_trains(dataset_path: Path, tmp_path: Path, device: str, more: list[str]) -> None:
    words = ["-m", "torch.distributed.run", "--nproc-per-node=1", f"--master-port={free_port()}", "-m", "lmk_train.cli"]
    words += ["--shards", str(dataset_path), "--out", str(tmp_path / "run"), "--model", "resnet32", "--epochs", "2"]
    words += ["--device", device, "--batch-size", "10", *more]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


@contextmanager
def waiting_is_an_error(device: str) -> Iterator[None]:
    """Have PyTorch raise an error whenever the host waits for a CUDA device."""
    if device != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@every_precision
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_steps_between_two_lines_never_wait_for_the_device(
    dataset_path: Path, tmp_path: Path, device: str, amp: str
) -> None:
    skip_without_bfloat16(device, amp)
    epochs, steps = (9, 8) if device == "cuda" else (2, 1)
    chosen = {"model": "resnet32", "loss": "ldam", "clip_grad": 5.0, "drw_start": 0.0, "grad_accum": 2, "ema": 0.9}
    config = TrainConfig(str(dataset_path), tmp_path, device=device, amp=amp, batch_size=10, epochs=epochs, **chosen)  # type: ignore[arg-type]
    resolve_device(device)
    with ShardedDataset.open(dataset_path) as dataset:
        trainer = make_trainer(config.resolved(), dataset, SINGLE, lambda _: None)
        picks = (picks for epoch in range(epochs) for picks in micro_batches(trainer, epoch, 0))
        with closing(trainer.train), closing(batch_stream(trainer)(picks)) as batches:
            for _ in range(steps):  # the first steps allocate
                training_step(trainer, batches)
            with waiting_is_an_error(device):
                for _ in range(steps):
                    training_step(trainer, batches)
