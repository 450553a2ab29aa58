"""What a training takes of its device's memory."""

import gc
import weakref
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import replace

import pytest
import torch
from torch import distributed, nn

from lmk_data.dataset import ShardedDataset
from lmk_train.runtime.precision import Precision
from lmk_train.runtime.world import SINGLE, World
from lmk_train.training.assembly import make_trainer
from lmk_train.training.memory import Memory, estimate, forward_pass, measure, run_updates
from lmk_train.training.profile_input import endless_batches
from lmk_train.training.trainer import Trainer
from tests.ports import free_port
from tests.train.devices import every_device
from tests.train.run_files import Config


@contextmanager
def trainer_of(config: Config, world: World = SINGLE, **changes: object) -> Iterator[Trainer]:
    asked = config(**changes).resolved()
    with ShardedDataset.open(asked.shards) as dataset, group_of_one() if world.size > 1 else nullcontext():
        trainer = make_trainer(asked, dataset, world, lambda _: None)
        yield trainer
        trainer.train.close()


@contextmanager
def group_of_one() -> Iterator[None]:
    distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{free_port()}", rank=0, world_size=1)
    try:
        yield
    finally:
        distributed.destroy_process_group()


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_every_part_is_what_the_tensors_take(config: Config, optimizer: str) -> None:
    """After an update: weights, gradients, the state of the optimiser and the average, as they are there."""
    with trainer_of(config, optimizer=optimizer, ema=0.9) as trainer:
        said = estimate(trainer, 0)
        run_updates(trainer)
        model, averaged = trainer.model, trainer.averaged
        assert averaged is not None
        states = [value for state in trainer.optimizer.state.values() for value in state.values()]
        moments = sum(value.nbytes for value in states if isinstance(value, torch.Tensor) and value.ndim)
        kept = [*model.parameters(), *model.buffers(), *averaged.module.parameters(), *averaged.module.buffers()]
        gradients = sum(parameter.grad.nbytes for parameter in model.parameters() if parameter.grad is not None)
    assert said.weights == sum(tensor.nbytes for tensor in kept)
    assert said.gradients == gradients
    assert said.optimizer == moments
    assert said.total == said.weights + said.gradients + said.optimizer


def test_counting_the_activations_keeps_none_of_them(config: Config) -> None:
    """On a GPU what is kept would be added to every figure that is measured afterwards."""
    outputs: list[weakref.ref[torch.Tensor]] = []

    def remember(module: nn.Module, given: object, output: object) -> None:
        if isinstance(output, torch.Tensor):
            outputs.append(weakref.ref(output))

    with trainer_of(config) as trainer, closing(endless_batches(trainer)) as batches:
        for module in trainer.model.modules():
            module.register_forward_hook(remember)
        activations, _ = forward_pass(trainer, next(batches))
    gc.collect()
    assert activations > 0
    assert len(outputs) > 50
    assert not any(output() is not None for output in outputs)


def test_other_ranks_and_micro_batches_take_more(config: Config) -> None:
    def parts(world: World = SINGLE, **changes: object) -> Memory:
        with trainer_of(config, world, **changes) as trainer:
            return estimate(trainer, 7)

    alone, accumulated, together = parts(), parts(grad_accum=2), parts(World(0, 2))
    largest = 64 * 64 * 3 * 3 * 4  # of resnet32, whose head has 5 classes
    assert alone.activations == 7
    assert accumulated == replace(alone, second_gradient=largest)
    copies, views = replace(alone, buckets=alone.gradients), replace(alone, second_gradient=largest)
    assert together in (copies, views)  # as DistributedDataParallel was told


def test_a_cuda_device_holds_a_context_and_workspaces_too(config: Config) -> None:
    with trainer_of(config) as trainer:
        here = estimate(trainer, 0)
        trainer.precision = Precision(torch.device("cuda", 0), torch.float16)
        there = estimate(trainer, 0)
    assert here.overhead == 0
    assert 0.5e9 < there.overhead < 1e9


@pytest.mark.parametrize("frozen", [0, 1])
def test_the_updates_of_a_measurement_need_no_second_step_in_their_epoch(config: Config, frozen: int) -> None:
    with trainer_of(config, batch_size=40, epochs=1, grad_accum=3, freeze_backbone_epochs=frozen) as trainer:
        assert trainer.steps_per_epoch == 1
        run_updates(trainer)
        assert trainer.progress.step == 2
        assert not trainer.run.exists()


@every_device
def test_the_measurement_is_that_of_the_device(config: Config, device: str) -> None:
    with trainer_of(config, device=device) as trainer:
        measured = measure(trainer)
        said = estimate(trainer, 0)
    if device == "cpu":
        assert measured is None
    else:
        assert measured is not None
        assert said.weights + said.gradients + said.optimizer < measured.reserved <= measured.used <= measured.there
