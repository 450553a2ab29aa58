"""Whole trainings: the same again, of views, of every network."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from lmk_data.build import BuildOptions, build
from lmk_data.dataset import ShardedDataset
from lmk_data.errors import UserError
from lmk_data.mark import Mark
from lmk_data.options import PlanRule, Recipe, Selection
from lmk_data.views.view import write_view
from lmk_train.cli import train_main
from lmk_train.training.loop import train
from tests.train.run_files import Config, lines, weights
from tests.train.updates import after_each_update


def test_a_view_trains_as_a_dataset_does(config: Config, dataset: ShardedDataset, tmp_path: Path) -> None:
    """Its labels, counts and margins are its own, though the tars carry the base's labels; marks change some."""
    moved = dataset.index("test").set_index("landmark_id")["key"][20409]
    marks = {moved: Mark("relabel", "7"), dataset.index("train")["key"][0]: Mark("exclude")}
    write_view(dataset, Selection(classes=("83144", "113209", "7"), marks=marks), str(tmp_path / "view"))
    train(config(shards=str(tmp_path / "view"), epochs=1))
    with ShardedDataset.open(tmp_path / "view") as view:
        predictions = pd.read_parquet(tmp_path / "run" / "predictions-test.parquet")
        index = view.index("test")
        assert predictions.set_index("key")["target"].to_dict() == index.set_index("key")["label"].to_dict()
        per_class = pd.read_parquet(tmp_path / "run" / "per-class-test.parquet")
        assert per_class["support"].tolist() == view.classes["test"].tolist()
        assert view.classes["landmark_id"][index.set_index("key")["label"][moved]] == 7
        assert weights(tmp_path / "run")["head.weight"].shape[0] == view.num_classes == 3


def test_training_twice_gives_the_same_weights(config: Config, tmp_path: Path) -> None:
    train(config(out=tmp_path / "a"))
    train(config(out=tmp_path / "b", workers=1))
    first, second = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert lines(tmp_path / "a", "epoch") == lines(tmp_path / "b", "epoch")


@pytest.mark.parametrize("model", [pytest.param("resnet50", marks=pytest.mark.slow), "efficientnet-b0"])
@pytest.mark.parametrize("loss", [pytest.param("ce", marks=pytest.mark.slow), "ldam"])
def test_every_model_learns_from_scratch(config: Config, tmp_path: Path, model: str, loss: str) -> None:
    train(config(model=model, loss=loss, epochs=4, warmup_epochs=0.0, amp="auto"))
    losses = [line["train_loss"] for line in lines(tmp_path / "run", "epoch")]
    assert losses[-1] < losses[0]


@pytest.mark.slow
def test_the_papers_network_learns_with_every_remedy(config: Config, tmp_path: Path) -> None:
    chosen = {"model": "resnet32", "weights": None, "lr": 0.02, "head_lr": 0.02, "warmup_epochs": 0.0, "epochs": 6}
    remedies = {"drw_start": 0.5, "ema": 0.5, "sampling": "repeat-factor", "clip_grad": 5.0, "drop_rate": 0.1}
    train(config(loss="balanced-softmax", **chosen, **remedies))
    losses = [line["train_loss"] for line in lines(tmp_path / "run", "epoch")]
    assert losses[-1] < losses[0]


def test_a_retrained_head_stands_on_the_same_backbone(config: Config, tmp_path: Path) -> None:
    """Classifier retraining, as docs/training.md has it: weights and running statistics below the head stay."""
    small = {"model": "resnet32", "epochs": 1, "warmup_epochs": 0.0}
    train(config(out=tmp_path / "first", weights=None, **small))
    best = str(tmp_path / "first" / "checkpoints" / "best.pt")
    again = {"freeze_backbone_epochs": 1, "sampling": "class-balanced", "loss": "ce"}
    train(config(out=tmp_path / "again", weights=best, **small, **again))
    first, retrained = weights(tmp_path / "first"), weights(tmp_path / "again")
    backbone = [name for name in first if name.startswith("backbone.")]
    assert all(torch.equal(first[name], retrained[name]) for name in backbone)
    assert not torch.equal(first["head.weight"], retrained["head.weight"])


def test_running_out_of_memory_is_a_line(
    capsys: pytest.CaptureFixture[str], dataset_path: Path, tmp_path: Path
) -> None:
    def out_of_memory(*_: object) -> None:
        raise torch.AcceleratorError("CUDA error: out of memory\nand more")

    words = ["--shards", str(dataset_path), "--out", str(tmp_path / "run"), "--model", "resnet32", "--batch-size", "9"]
    with after_each_update(out_of_memory):
        assert train_main([*words, "--device", "cpu", "--quiet"]) == 1
    advice = "--grad-accum 2 needs less, with nearly the same updates, also on --resume; a new run may take a smaller "
    advice += "--batch-size"
    assert capsys.readouterr().err == f"lmk-train: error: out of memory (CUDA error: out of memory); {advice}\n"


def test_micro_batches_as_large_as_the_last_of_validation(config: Config, options: Callable[..., BuildOptions]) -> None:
    """What validation preprocessed, in inference mode, is not written over for training."""
    out = build(options(rule=PlanRule(split=(0.5, 0.3, 0.2), samples_per_shard=8)))
    rest = out.manifest["splits"]["val"]["num_samples"] % 12
    assert rest == 6
    train(config(shards=str(options().out), model="resnet32", batch_size=12, grad_accum=2))


@pytest.mark.slow
def test_one_picture_of_one_place_is_nothing_to_normalise(
    config: Config, options: Callable[..., BuildOptions], dataset_64: Path, tmp_path: Path
) -> None:
    """32 pixels are one place of the last map; a frozen backbone does not normalise by the batch."""
    build(options(recipe=Recipe(size=32)))
    chosen = {"model": "efficientnet-lite0", "batch_size": 3, "grad_accum": 2, "epochs": 1}
    small = config(shards=str(tmp_path / "shards"), **chosen)
    with pytest.raises(UserError, match="--batch-size 3: leaves micro-batches of one picture, whose 32 pixels"):
        train(small)
    assert not (tmp_path / "run").exists()
    train(replace(small, freeze_backbone_epochs=1))
    train(config(out=tmp_path / "larger", shards=str(dataset_64), **chosen))
