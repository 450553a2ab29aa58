"""The batch size by the memory of a device, of which the tests have any size."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lmk_data.dataset import ShardedDataset
from lmk_train.config.defaults import DEFAULTS
from lmk_train.config.training import TrainConfig
from lmk_train.models.registry import build_model, num_parameters
from lmk_train.runtime.world import SINGLE
from lmk_train.training.batch_size import Need, device_memory, largest_batch, overhead_bytes, resolved_for
from lmk_train.training.dry_run import dry_run
from tests.train.run_files import Config

GB = 10**9
MANY = 1_580_470  # pictures of GLDv2


def need(value_bytes: int = 2, ranks: int = 1, classes: int = 57042, **changes: object) -> Need:
    config = TrainConfig("none", model="resnet32", **changes).resolved()  # type: ignore[arg-type]
    return Need.of(config, classes, 32, value_bytes, ranks)


def test_the_need_by_calculation_is_the_estimate_of_a_dry_run(config: Config, dataset: ShardedDataset) -> None:
    """Of the model's parts and of a forward pass; the need adds the memory of augmentation."""
    for changes in (
        {},
        {"optimizer": "adamw", "ema": 0.9, "grad_accum": 2},
        {"loss": "arcface", "neck": 16, "subcenters": 2},
    ):
        asked = config(**changes)
        said, chosen = dry_run(asked, lambda _: None), asked.resolved()
        calculated = Need.of(chosen, dataset.num_classes, 32, 4, 1)
        memory = said.memory
        fixed = memory.total - memory.activations + overhead_bytes(1)
        assert calculated.fixed == pytest.approx(fixed, rel=0.001)
        if not changes:
            assert 0.95 < calculated.picture * said.micro_batch / memory.activations < 1.15


def test_the_optimiser_the_average_the_classes_and_the_precision_count() -> None:
    weights = 4 * num_parameters(build_model(TrainConfig("none", model="resnet32").resolved(), 57042, 32))
    plain = need()
    assert need(optimizer="adamw").fixed - plain.fixed == weights
    assert need(ema=0.9).fixed - plain.fixed == weights
    assert need(ranks=2).fixed - plain.fixed > 4 * 64 * 57042, "a second gradient of the head"
    assert need(value_bytes=4).picture > plain.picture
    assert need(classes=12).picture < plain.picture - 4 * 57000


def batch(memory: float, num_images: int = MANY, ranks: int = 1, grad_accum: int = 1) -> int:
    config = TrainConfig("none", grad_accum=grad_accum).resolved()
    return largest_batch(Need(3 * GB, GB // 20), int(memory * GB), config, num_images, ranks)


def test_the_batch_is_the_default_doubled_or_halved() -> None:
    assert [batch(memory) for memory in (4, 5, 8, 16, 24, 40, 80)] == [8, 16, 64, 128, 256, 256, 256]
    assert [batch(80, num_images) for num_images in (395, 12_799, 25_600, 51_199, 51_200)] == [64, 64, 128, 128, 256]
    assert batch(8, ranks=4) == 128
    assert batch(4, ranks=4) == 32, "eight pictures at once for each rank"
    assert batch(10, grad_accum=2) == 128 == 2 * batch(10)


def test_the_learning_rates_follow_a_batch_that_memory_decided(dataset: ShardedDataset, config: Config) -> None:
    said: list[str] = []
    asked = config(batch_size=None, model="resnet32", weights=None, optimizer="adamw")
    plain = asked.resolved()
    assert resolved_for(asked, dataset, SINGLE, None, said.append) == plain
    assert resolved_for(asked, dataset, SINGLE, 80 * GB, said.append) == plain, "too few pictures for a larger batch"
    assert not said
    small = resolved_for(asked, dataset, SINGLE, int(1.1 * GB), said.append)
    assert small.batch_size < plain.batch_size == DEFAULTS["resnet32"]["batch_size"]
    assert small.lr == pytest.approx(plain.lr * (small.batch_size / plain.batch_size) ** 0.5)
    assert small.head_lr == small.lr
    assert f"batches of {small.batch_size} pictures, for 1 GB" in said[0]
    given = resolved_for(replace(asked, lr=0.01), dataset, SINGLE, int(1.1 * GB), said.append)
    assert (given.lr, given.head_lr) == (0.01, small.head_lr)
    assert resolved_for(replace(asked, batch_size=9), dataset, SINGLE, 80 * GB, said.append).batch_size == 9


def test_a_resumed_run_keeps_the_batch_that_memory_decided(
    dataset: ShardedDataset, config: Config, tmp_path: Path
) -> None:
    asked = config(batch_size=None, model="resnet32", weights=None, optimizer="adamw")
    small = resolved_for(asked, dataset, SINGLE, int(1.1 * GB), print)
    (tmp_path / "run").mkdir()
    again = replace(asked, resume=True)
    for memory in (None, 80 * GB):
        (tmp_path / "run" / "config.json").write_text(json.dumps(small.public_json()))
        assert resolved_for(again, dataset, SINGLE, memory, print) == replace(small, resume=True)
        stored = {**small.public_json(), "lr": 0.5}
        (tmp_path / "run" / "config.json").write_text(json.dumps(stored))
        assert resolved_for(again, dataset, SINGLE, memory, print) == again.resolved(), "not chosen by memory"


def test_the_cpu_has_no_memory_to_decide_by() -> None:
    assert device_memory(torch.device("cpu")) is None
