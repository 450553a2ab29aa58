"""Compare training steps: reader or one fixed batch, our EfficientNet-B0 or torchvision's, LDAM or cross entropy.

    python -m pipelines.bench.train_step DATASET [--batch-size 16] [--pairs 9] [--classes 57042]

Each comparison alternates the two steps; the median ratio of the pairs is reported. Prints a table.
"""

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import repeat
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torchvision.models import efficientnet_b0

from lmk_data.dataset import ShardedDataset
from lmk_train.config.training import TrainConfig
from lmk_train.data.stream import Batch
from lmk_train.models.heads import CosineHead
from lmk_train.models.registry import build_model, set_bn_momentum
from lmk_train.runtime.precision import Precision, resolve_device
from lmk_train.runtime.world import SINGLE
from lmk_train.training.assembly import make_criterion, make_trainer
from lmk_train.training.loop import training_step
from lmk_train.training.profile_input import endless_batches

_WARM_UP = 2
_STEPS_WITH_READER = 4  # in a row: a single step would take a batch that was decoded before it started
Step = Callable[[], None]


def median_ratio(first: Step, second: Step, pairs: int, device: torch.device) -> tuple[float, float, float]:
    """Return the median milliseconds of both steps and the median of first / second, in alternating pairs."""
    for _ in range(_WARM_UP):
        first()
        second()
    times = [(_milliseconds(first, device), _milliseconds(second, device)) for _ in range(pairs)]
    ratio = statistics.median(a / b for a, b in times)
    return statistics.median(a for a, _ in times), statistics.median(b for _, b in times), ratio


def _milliseconds(step: Step, device: torch.device) -> float:
    synchronize(device)
    started = time.perf_counter()
    step()
    synchronize(device)
    return 1000 * (time.perf_counter() - started)


def synchronize(device: torch.device) -> None:
    """Wait until a CUDA device has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def reader_against_fixed_batch(
    dataset: Path, model: str, batch_size: int, pairs: int, device: torch.device
) -> tuple[float, float, float]:
    """Return `median_ratio` of the training step with the reader against one batch in memory."""
    config = TrainConfig(
        str(dataset),
        Path("none"),
        model=model,  # type: ignore[arg-type]
        weights="none",
        batch_size=batch_size,
        epochs=1000,
        device=device.type,  # type: ignore[arg-type]
    ).resolved()
    with ShardedDataset.open(dataset) as opened:
        trainer = make_trainer(config, opened, SINGLE, lambda _: None)
        with closing(endless_batches(trainer)) as batches:
            one = next(batches)
            fixed = repeat(Batch(one.pixels.clone(), one.labels.clone(), one.picks))

            def steps_of(source: Iterator[Batch]) -> Step:
                def run() -> None:
                    for _ in range(_STEPS_WITH_READER):
                        training_step(trainer, source)

                return run

            read, held, ratio = median_ratio(steps_of(batches), steps_of(fixed), pairs, device)
        trainer.train.close()
    return read / _STEPS_WITH_READER, held / _STEPS_WITH_READER, ratio


def network_step(
    network: nn.Module,
    pictures: torch.Tensor,
    targets: torch.Tensor,
    precision: Precision,
    optimizer: torch.optim.Optimizer,
) -> Step:
    """Return the step that everybody writes: forward, cross entropy, backward, gradient scaling, update."""
    scaler = precision.grad_scaler()

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        with precision.autocast():
            logits = network(pictures)
        loss = nn.functional.cross_entropy(logits.float(), targets)
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        scaler.step(optimizer)
        scaler.update()

    return run


def head_step(head: nn.Module, criterion: nn.Module, features: torch.Tensor, targets: torch.Tensor) -> Step:
    """Return a step: forward and backward of a head and a loss."""

    def run() -> None:
        head.zero_grad(set_to_none=True)
        criterion(head(features), targets).mean().backward()

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--classes", type=int, default=57042)
    arguments = parser.parse_args()
    device, size, pairs = resolve_device("auto"), arguments.batch_size, arguments.pairs
    precision = Precision.resolve("auto", device)
    rows: list[tuple[str, str, tuple[float, float, float]]] = []
    for model in ("resnet50", "efficientnet-b0", "efficientnet-lite0"):
        found = reader_against_fixed_batch(arguments.dataset, model, size, pairs, device)
        rows.append((f"{model} with the reader", "one fixed batch", found))

    pictures = torch.randn(size, 3, 224, 224, device=device).to(memory_format=torch.channels_last)
    targets = torch.randint(0, 1000, (size,), device=device)
    ours = build_model(TrainConfig("none", model="efficientnet-b0", head="linear", drop_rate=0.2).resolved(), 1000, 224)
    theirs = efficientnet_b0(weights=None, stochastic_depth_prob=0.2)
    set_bn_momentum(ours, 0.1)
    steps = []
    for network in (ours, theirs):
        network.to(device).to(memory_format=torch.channels_last).train()
        optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9, fused=True)
        steps.append(network_step(network, pictures, targets, precision, optimizer))
    rows.append(("efficientnet-b0", "torchvision's", median_ratio(steps[0], steps[1], pairs, device)))

    counts = np.maximum(1, 6272 / np.arange(1, arguments.classes + 1) ** 0.7).astype(np.int64)
    features = torch.randn(32, 1280, device=device, requires_grad=True)
    labels = torch.randint(0, arguments.classes, (32,), device=device)
    heads = {
        "cosine": CosineHead(1280, arguments.classes, 30.0).to(device),
        "linear": nn.Linear(1280, arguments.classes).to(device),
    }

    def loss(name: str) -> nn.Module:
        return make_criterion(TrainConfig("none", loss=name, cosine_scale=None).resolved(), counts).to(device)  # type: ignore[arg-type]

    ldam, ce = loss("ldam"), loss("ce")
    with_ldam, with_ce = (head_step(heads["cosine"], criterion, features, labels) for criterion in (ldam, ce))
    linear = head_step(heads["linear"], ce, features, labels)
    named = f"{arguments.classes:,} classes, batch 32"
    rows.append((f"LDAM, cosine head, {named}", "cross entropy", median_ratio(with_ldam, with_ce, pairs, device)))
    rows.append((f"cosine head, cross entropy, {named}", "linear head", median_ratio(with_ce, linear, pairs, device)))

    where = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine()
    print(f"{where}, {os.cpu_count()} cores, {precision}, batch {size}, median of {pairs} pairs\n")
    print("| step | ms | baseline | ms | ratio |\n|---|---:|---|---:|---:|")
    for what, other, (first, second, ratio) in rows:
        print(f"| {what} | {first:,.0f} | {other} | {second:,.0f} | {ratio:.3f} |")


if __name__ == "__main__":
    main()
