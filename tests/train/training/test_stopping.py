"""What a training that is asked to stop leaves."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from lmk_train.cli import train_main
from lmk_train.data.stream import Batch
from lmk_train.training.loop import train
from lmk_train.training.trainer import Trainer
from tests.train.run_files import Config, lines


def test_sigterm_that_comes_twice_saves_all_the_same(config: Config, tmp_path: Path) -> None:
    """As from a scheduler that signals every process of a job, and again from torchrun."""
    from lmk_train.training import loop

    step = loop.training_step

    def interrupting(trainer: Trainer, batches: Iterator[Batch]) -> None:
        step(trainer, batches)
        if trainer.progress.step == 2:
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "training_step", interrupting)
        words = ["--model", "resnet32", "--epochs", "2", "--batch-size", "10", "--device", "cpu", "--quiet"]
        assert train_main(["--shards", config().shards, "--out", str(tmp_path / "run"), *words]) == 130
    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.pt", weights_only=True)
    assert saved["progress"]["step"] == 2


def test_stopping_at_the_end_of_an_epoch_keeps_its_validation(config: Config, tmp_path: Path) -> None:
    """A request that comes within the last step of an epoch is heeded after its validation."""
    from lmk_train.training import loop

    train(config(out=tmp_path / "whole"))
    step = loop.training_step
    calls = []

    def interrupting(*arguments: object) -> None:
        step(*arguments)  # type: ignore[arg-type]
        calls.append(1)
        if len(calls) == 4:
            signal.raise_signal(signal.SIGINT)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "training_step", interrupting)
        with pytest.raises(KeyboardInterrupt, match="step 4"):
            train(config(out=tmp_path / "parts"))
    assert [line["epoch"] for line in lines(tmp_path / "parts", "epoch")] == [1]
    train(config(out=tmp_path / "parts", resume=True))
    assert lines(tmp_path / "whole", "epoch") == lines(tmp_path / "parts", "epoch")
