"""A model that is trained by several ranks, as one of them holds it."""

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import distributed, nn

from lmk_data.dataset import ShardedDataset
from lmk_train.config.training import TrainConfig
from lmk_train.models.registry import build_model
from lmk_train.runtime.world import World
from lmk_train.training.assembly import make_trainer
from tests.train.run_files import Config


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    """A group of this process alone, which does what one of several ranks does."""
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    gc.disable()  # no collection by chance
    yield
    gc.enable()
    distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.usefixtures("group")
def test_the_memory_for_other_ranks_is_freed_before_there_is_another(
    config: Config, dataset_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When a backbone thaws. Gradients are views of that memory, not copies."""
    wrapped: list[weakref.ref[nn.Module]] = []
    wrap = World.wrap

    def watched(self: World, model: nn.Module, device: torch.device) -> nn.Module:
        assert all(earlier() is None for earlier in wrapped)
        assert all(parameter.grad is None for parameter in model.parameters())
        forward = wrap(self, model, device)
        wrapped.append(weakref.ref(forward))
        return forward

    monkeypatch.setattr(World, "wrap", watched)
    with ShardedDataset.open(dataset_path) as dataset:
        trainer = make_trainer(config(freeze_backbone_epochs=1).resolved(), dataset, World(0, 2), lambda _: None)
        for step in (0, trainer.steps_per_epoch):
            trainer.progress.step = step
            trainer.forward()(torch.zeros(2, 3, 32, 32)).sum().backward()
        trainer.train.close()
    assert len(wrapped) == 2
    gradients = [parameter.grad for parameter in trainer.model.parameters() if parameter.grad is not None]
    assert len({gradient.untyped_storage().data_ptr() for gradient in gradients}) < len(gradients)


@pytest.mark.slow
@pytest.mark.usefixtures("group")
def test_gradients_are_summed_in_one_order_from_the_first_update_on(
    config: Config, dataset_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DDP arranges them anew after the first backward pass, which a resumed training would otherwise do later."""
    with ShardedDataset.open(dataset_path) as dataset:
        trainer = make_trainer(config().resolved(), dataset, World(0, 2), lambda _: None)
        before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
        places = []
        for _ in range(3):
            trainer.optimizer.zero_grad()
            trainer.forward()(torch.zeros(2, 3, 32, 32)).sum().backward()
            gradients = [parameter.grad for parameter in trainer.model.parameters() if parameter.grad is not None]
            places.append([gradient.storage_offset() for gradient in gradients])
        trainer.train.close()
    assert places[0] == places[1] == places[2]
    assert all(torch.equal(before[name], value) for name, value in trainer.model.named_parameters())


@pytest.mark.parametrize(
    "model",
    [
        "resnet32",
        "efficientnet-lite0",
        *(pytest.param(m, marks=pytest.mark.slow) for m in ("efficientnet-b0", "resnet50")),
    ],
)
@pytest.mark.parametrize("more", [{"loss": "ldam"}, {"loss": "arcface", "pool": "gem", "neck": 16}], ids=["", "all"])
def test_every_step_uses_every_parameter(model: str, more: dict[str, object]) -> None:
    """So that nobody has to search for those that it does not use."""
    net = build_model(TrainConfig("none", model=model, **more).resolved(), 5, 32)  # type: ignore[arg-type]
    for frozen in (False, True):
        net.freeze(frozen)
        net.zero_grad(set_to_none=True)
        net(torch.zeros(2, 3, 64, 64)).sum().backward()
        used = [parameter.grad is not None for parameter in net.parameters()]
        assert used == [parameter.requires_grad for parameter in net.parameters()]
