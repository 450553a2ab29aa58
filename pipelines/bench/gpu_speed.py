"""Measure one training on a device: with the reader, on one fixed batch, other people's loops, and its memory."""

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from itertools import repeat
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn

from lmk_data.dataset import ShardedDataset
from lmk_data.errors import UserError
from lmk_data.options import PlanRule, Recipe
from lmk_train.config.training import ResolvedConfig, TrainConfig
from lmk_train.data.stream import Batch
from lmk_train.runtime.oom import is_out_of_memory
from lmk_train.runtime.precision import Precision
from lmk_train.runtime.world import SINGLE
from lmk_train.training.assembly import make_trainer
from lmk_train.training.loop import training_step
from lmk_train.training.memory import estimate, forward_pass
from lmk_train.training.profile_input import endless_batches
from pipelines.bench.full_scale import make_dataset
from pipelines.bench.train_step import network_step, synchronize

_WARM_UP = 3  # updates: the first ones choose algorithms and allocate
_DECODED = 4  # batches that are ready when the reader alone begins
_MANY_EPOCHS = 1000  # so that no measurement reaches the end of its training
_PEERS = {
    "resnet50": (torchvision.models.resnet50, "resnet50"),
    "efficientnet-b0": (torchvision.models.efficientnet_b0, "efficientnet_b0"),
}


@dataclass(frozen=True)
class Case:
    """What is measured."""

    model: str
    num_classes: int
    batch_size: int
    amp: str
    compiled: bool = False


@dataclass(frozen=True)
class Speed:
    """Images a second, and bytes; None for what was not measured, and why in `note`.

    Attributes:
        both: training with the reader, augmented.
        threads: the same with threads that decode in place of processes.
        fixed: the same updates on one batch that is on the device.
        reader: reading and decoding alone.
        torchvision: the plain loop around torchvision's model, on one fixed batch that is normalised already.
        timm: the same around timm's model, with as many outputs.
        allocated: the most bytes of tensors at once during `both`.
        reserved: the most bytes that PyTorch held during `both`.
        estimated: the sum that `--dry-run` prints.
        overhead: the part of it that PyTorch does not count: the CUDA context, workspaces.
        note: why something is missing.
    """

    both: float | None = None
    threads: float | None = None
    fixed: float | None = None
    reader: float | None = None
    torchvision: float | None = None
    timm: float | None = None
    allocated: int | None = None
    reserved: int | None = None
    estimated: int | None = None
    overhead: int | None = None
    note: str = ""

    @property
    def share(self) -> float | None:
        """The share of the device's own limit that the training reaches."""
        return None if self.both is None or self.fixed is None else self.both / self.fixed

    def json(self) -> dict[str, Any]:
        """Return plain values."""
        return {**asdict(self), "share": self.share}


def draw_dataset(folder: Path, num_classes: int, num_images: int, size: int) -> Path:
    """Make a dataset of made-up pictures of `size` pixels a side and return its path; classes have at least 3."""
    folder.mkdir(parents=True)
    per_class = max(3, num_images // num_classes)
    rows = (f"{row:016x},{row // per_class}" for row in range(num_classes * per_class))
    labels = folder / "train.csv"
    labels.write_text("\n".join(["id,landmark_id", *rows]) + "\n")
    make_dataset(str(labels), folder / "shards", 0.0, PlanRule(min_samples=1), Recipe(size=size))
    return folder / "shards"


def training_config(case: Case, dataset: Path, device: torch.device, **changes: Any) -> TrainConfig:
    """Return the configuration of a case: the model's defaults, augmented; keywords change it."""
    chosen: dict[str, Any] = {
        "shards": str(dataset),
        "out": dataset.parent / "run",
        "model": case.model,
        "weights": "none",
        "epochs": _MANY_EPOCHS,
        "batch_size": case.batch_size,
        "amp": case.amp,
        "compile": case.compiled,
        "device": device.type,
        "quiet": True,
    }
    return TrainConfig(**{**chosen, **changes})


def measure(case: Case, dataset: Path, device: torch.device, seconds: float) -> Speed:
    """Measure a case for so many seconds a figure; out of memory is a note and leaves out what comes after it."""
    speed = Speed()
    try:
        for part in (_training, _torchvision, _timm):
            speed = part(case, dataset, device, seconds, speed)
            release(device)
    except UserError as error:  # bfloat16 on a card that has none
        speed = replace(speed, note=str(error).split(";")[0])
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        speed = replace(speed, note=str(error).splitlines()[0])
    release(device)
    return speed


def release(device: torch.device) -> None:
    """Give back the memory of what is not used any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _training(case: Case, dataset: Path, device: torch.device, seconds: float, speed: Speed) -> Speed:
    config = training_config(case, dataset, device).resolved()
    with ShardedDataset.open(dataset) as opened, ExitStack() as closing_all:
        trainer = make_trainer(config, opened, SINGLE, lambda _: None)
        trainer.forward()
        closing_all.enter_context(closing(trainer.train))
        with closing(endless_batches(trainer, processes=True)) as batches:
            activations, _ = forward_pass(trainer, next(batches))
            memory = estimate(trainer, activations)
            speed = replace(speed, estimated=memory.total, overhead=memory.overhead)
            for _ in range(_WARM_UP):
                training_step(trainer, batches)
            release(device)
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            both = _rate(lambda: training_step(trainer, batches), config, seconds, device)
            if device.type == "cuda":
                allocated, reserved = torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
                speed = replace(speed, allocated=allocated, reserved=reserved)
            for _ in range(_DECODED):
                next(batches)
            reader = _rate(lambda: next(batches), config, seconds, device)
            one = next(batches)
            fixed = repeat(Batch(one.pixels.clone(), one.labels.clone(), one.picks))
        rate = _rate(lambda: training_step(trainer, fixed), config, seconds, device)
        with closing(endless_batches(trainer, processes=False)) as batches:
            for _ in range(_WARM_UP):
                training_step(trainer, batches)
            threads = _rate(lambda: training_step(trainer, batches), config, seconds, device)
    return replace(speed, both=both, threads=threads, fixed=rate, reader=reader)


def _torchvision(case: Case, dataset: Path, device: torch.device, seconds: float, speed: Speed) -> Speed:
    if case.model not in _PEERS:
        return speed
    network = _PEERS[case.model][0](weights=None, num_classes=case.num_classes)
    return replace(speed, torchvision=_plain_rate(network, case, dataset, device, seconds))


def _timm(case: Case, dataset: Path, device: torch.device, seconds: float, speed: Speed) -> Speed:
    if case.model not in _PEERS or find_spec("timm") is None:
        return replace(speed, note="timm is not installed") if case.model in _PEERS else speed
    import timm

    network = timm.create_model(_PEERS[case.model][1], pretrained=False, num_classes=case.num_classes)
    return replace(speed, timm=_plain_rate(network, case, dataset, device, seconds))


def _plain_rate(network: nn.Module, case: Case, dataset: Path, device: torch.device, seconds: float) -> float:
    """Return the images a second of the plain loop, with the optimiser and precision of ours."""
    config = training_config(case, dataset, device).resolved()
    with ShardedDataset.open(dataset) as opened:
        size = opened.recipe.size
    network.to(device).to(memory_format=torch.channels_last).train()
    pictures = torch.randn(case.batch_size, 3, size, size, device=device).to(memory_format=torch.channels_last)
    targets = torch.randint(0, case.num_classes, (case.batch_size,), device=device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)
    step = network_step(network, pictures, targets, Precision.resolve(case.amp, device), optimizer)
    for _ in range(_WARM_UP):
        step()
    return _rate(step, config, seconds, device)


def _rate(step: Callable[[], object], config: ResolvedConfig, seconds: float, device: torch.device) -> float:
    """Return the images a second of a step that is warm, over at least one."""
    synchronize(device)
    started = time.perf_counter()
    num_steps = sum(1 for _ in _until(started + seconds, step))
    synchronize(device)
    return num_steps * config.batch_size / (time.perf_counter() - started)


def _until(deadline: float, step: Callable[[], object]) -> Iterator[None]:
    while True:
        step()
        yield
        if time.perf_counter() >= deadline:
            return
