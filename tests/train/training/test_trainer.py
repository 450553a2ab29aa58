"""What one step computes, and which weights are kept."""

import copy
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from lmk_data.dataset import ShardedDataset
from lmk_data.errors import UserError
from lmk_train.config.training import TrainConfig
from lmk_train.data.augment import augmentation_draws
from lmk_train.data.stream import Batch
from lmk_train.models.losses import drw_weights
from lmk_train.models.weights import load_weights
from lmk_train.runs.checkpoint import weights_to_evaluate
from lmk_train.runtime.world import SINGLE, World
from lmk_train.training.assembly import make_trainer
from lmk_train.training.loop import batch_stream, micro_batches, train, training_step
from lmk_train.training.trainer import Trainer
from tests.train.networks import network
from tests.train.run_files import Config, weights


@contextmanager
def put_together(config: TrainConfig, dataset: ShardedDataset) -> Iterator[tuple[Trainer, Iterator[Batch]]]:
    """A trainer before its first step, and its micro-batches."""
    trainer = make_trainer(config.resolved(), dataset, SINGLE, lambda _: None)
    with closing(batch_stream(trainer)(micro_batches(trainer, 0, 0))) as batches:
        yield trainer, batches
    trainer.train.close()


@pytest.mark.slow
def test_a_frozen_backbone_stays_as_it_is_until_it_thaws(config: Config, tmp_path: Path) -> None:
    frozen = {"model": "efficientnet-lite0", "weights": "imagenet", "freeze_backbone_epochs": 1}
    train(config(out=tmp_path / "frozen", epochs=1, **frozen))
    train(config(out=tmp_path / "thawed", epochs=2, **frozen))
    start = network("efficientnet-lite0", 5, 64, "cosine")
    load_weights(start.backbone, "efficientnet-lite0", "imagenet")
    before, after, thawed = start.state_dict(), weights(tmp_path / "frozen"), weights(tmp_path / "thawed")
    backbone = [name for name in before if name.startswith("backbone.")]
    assert all(torch.equal(before[name], after[name]) for name in backbone)
    moved = [name for name in backbone if not torch.equal(before[name], thawed[name])]
    assert any("running_mean" in name for name in moved)
    assert any("_conv_stem.weight" in name for name in moved)


def test_averaged_weights_are_the_formula_and_are_what_is_kept(config: Config, tmp_path: Path) -> None:
    from lmk_train.training import loop

    step, decay = loop.training_step, 0.3
    expected: dict[str, torch.Tensor] = {}

    def recording(trainer: Trainer, batches: Iterator[Batch]) -> None:
        done = trainer.progress.step
        step(trainer, batches)
        kept = min(decay, (1 + done) / (10 + done))
        for name, value in trainer.model.state_dict().items():
            if not done or not value.is_floating_point():
                expected[name] = value.clone()
            else:
                expected[name] = kept * expected[name] + (1 - kept) * value

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "training_step", recording)
        train(config(ema=decay, epochs=1))
    for name, value in weights(tmp_path / "run", "best.pt").items():
        torch.testing.assert_close(value, expected[name], atol=1e-5, rtol=1e-4)
    last = torch.load(tmp_path / "run" / "checkpoints" / "last.pt", weights_only=True)
    assert all(
        torch.equal(weights_to_evaluate(last)[name], value)
        for name, value in weights(tmp_path / "run", "best.pt").items()
    )


@pytest.mark.parametrize(("option", "world"), [("mixup", World(0, 1)), ("cutmix", World(1, 2))])
def test_a_batch_whose_pairs_would_be_divided_is_refused(
    config: Config, dataset_path: Path, option: str, world: World
) -> None:
    with ShardedDataset.open(dataset_path) as dataset:
        asked = config(**{option: 0.4}, batch_size=12, grad_accum=4).resolved()
        multiple = 8 * world.size
        with pytest.raises(UserError, match=rf"^--{option}: .* {world.size} ranks .* a multiple of {multiple}$"):
            make_trainer(asked, dataset, world, lambda _: None)


@pytest.mark.parametrize("grad_accum", [1, 3])
def test_a_weighted_loss_is_the_sum_of_w_l_over_the_sum_of_w(
    config: Config, dataset: ShardedDataset, tmp_path: Path, grad_accum: int
) -> None:
    """The gradient of one step's head against float64 over the whole batch at once."""
    chosen = {"loss": "ce", "head": "linear", "drw_start": 0.0, "freeze_backbone_epochs": 2, "drop_rate": 0.0}
    with put_together(
        config(model="efficientnet-lite0", weights="imagenet", grad_accum=grad_accum, **chosen), dataset
    ) as (
        trainer,
        batches,
    ):
        head = copy.deepcopy(trainer.model.head).double()
        training_step(trainer, batches)
        picks = trainer.global_batch(0)
        pixels = np.empty((len(picks), *trainer.train.shape), np.uint8)
        trainer.train.decode(picks, pixels)
        with torch.no_grad():
            draws = augmentation_draws(picks, trainer.config.seed, 0)
            features = trainer.model.backbone(trainer.preprocess(torch.from_numpy(pixels), draws)).double()
        labels = torch.from_numpy(trainer.train.labels[picks])
        w = drw_weights(dataset.classes["train"].to_numpy()).double()[labels]
        assert len(w.unique()) > 1, "the samples do not all weigh the same"
        losses = torch.nn.functional.cross_entropy(head(features), labels, reduction="none")
        ((w * losses).sum() / w.sum()).backward()
        for ours, exact in zip(trainer.model.head.parameters(), head.parameters(), strict=True):
            assert ours.grad is not None
            assert exact.grad is not None
            torch.testing.assert_close(ours.grad.double(), exact.grad, atol=1e-6, rtol=1e-4)


def test_gradients_are_unscaled_before_they_are_clipped(
    config: Config, dataset: ShardedDataset, tmp_path: Path
) -> None:
    """One float16 step, its gradients scaled by 65,536, moves the head as a float32 step does."""
    chosen = {"freeze_backbone_epochs": 2, "drop_rate": 0.0, "optimizer": "sgd", "head_lr": 1.0, "head": "cosine"}
    chosen |= {"model": "efficientnet-lite0", "weights": "imagenet", "weight_decay": 0.0, "clip_grad": 0.01}
    moves = []
    for amp in ("off", "fp16"):
        with put_together(config(amp=amp, **chosen), dataset) as (trainer, batches):
            assert trainer.scaler.get_scale() == (65536 if amp == "fp16" else 1)
            before = trainer.model.head.weight.detach().clone()
            training_step(trainer, batches)
            moves.append(trainer.model.head.weight.detach() - before)
    rate = 1.9 * trainer.rate_factor(0)  # Nesterov's first step is 1 + 0.9 gradients long
    assert [float(move.norm()) for move in moves] == pytest.approx([0.01 * rate] * 2, rel=1e-3)
    assert torch.nn.functional.cosine_similarity(moves[0].flatten(), moves[1].flatten(), dim=0) > 0.99
