"""What a training that is asked to stop leaves."""

import signal
from pathlib import Path

import pytest
import torch
from torch.optim import Optimizer

from lmk_train.cli import train_main
from lmk_train.training.loop import train
from tests.train.run_files import Config, lines
from tests.train.updates import after_each_update


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_comes_twice_saves_all_the_same(config: Config, tmp_path: Path, sent: signal.Signals) -> None:
    """As from a scheduler that signals every process of a job, and again from torchrun; or a terminal is closed."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup

    def interrupt(number: int, _: Optimizer) -> None:
        if number == 2:
            signal.raise_signal(sent)
            signal.raise_signal(sent)

    with after_each_update(interrupt):
        words = ["--model", "resnet32", "--epochs", "2", "--batch-size", "10", "--device", "cpu", "--quiet"]
        assert train_main(["--shards", config().shards, "--out", str(tmp_path / "run"), *words]) == 130
    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.pt", weights_only=True)
    assert saved["progress"]["step"] == 2


def test_stopping_at_the_end_of_an_epoch_keeps_its_validation(config: Config, tmp_path: Path) -> None:
    """A request that comes within the last step of an epoch is heeded after its validation."""
    train(config(out=tmp_path / "whole"))

    def interrupt(number: int, _: Optimizer) -> None:
        if number == 4:
            signal.raise_signal(signal.SIGINT)

    with after_each_update(interrupt), pytest.raises(KeyboardInterrupt, match="step 4"):
        train(config(out=tmp_path / "parts"))
    assert [line["epoch"] for line in lines(tmp_path / "parts", "epoch")] == [1]
    train(config(out=tmp_path / "parts", resume=True))
    assert lines(tmp_path / "whole", "epoch") == lines(tmp_path / "parts", "epoch")
