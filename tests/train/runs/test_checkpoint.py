"""A checkpoint is whole and finite, or the earlier one stays."""

import resource
import shutil
import signal
from pathlib import Path

import pytest
import torch
from torch.optim import Optimizer

from lmk_data.errors import TrainingError
from lmk_train.cli import train_main
from lmk_train.training.loop import train
from tests import forked
from tests.train.run_files import Config
from tests.train.updates import after_each_update


def test_weights_that_are_not_finite_never_replace_a_checkpoint(config: Config, tmp_path: Path) -> None:
    """A save is due after every step; the third one's update is not finite though its loss was."""

    def spoil(number: int, optimizer: Optimizer) -> None:
        if number == 3:
            optimizer.param_groups[0]["params"][0].data.fill_(torch.nan)

    with after_each_update(spoil), pytest.raises(TrainingError, match="the weights are not finite at step 2 "):
        train(config(model="resnet32", checkpoint_minutes=1e-8))
    last = torch.load(tmp_path / "run" / "checkpoints" / "last.pt", weights_only=True)
    assert last["progress"]["step"] == 2
    assert all(value.isfinite().all() for value in last["model"].values())


def _train_on_a_small_disk(words: list[str]) -> int:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, -1))
    return train_main(words)


@pytest.mark.slow
def test_a_full_disk_keeps_the_last_good_checkpoint(config: Config, tmp_path: Path) -> None:
    """RLIMIT_FSIZE stands for the disk: the second save does not fit any more."""
    train(config(epochs=1))
    last = tmp_path / "run" / "checkpoints" / "last.pt"
    shutil.rmtree(tmp_path / "run" / "tensorboard")
    state = torch.load(last, weights_only=True)
    state["progress"]["step"] -= 1
    torch.save(state, last)
    saved = last.read_bytes()
    words = ["--shards", config().shards, "--out", str(tmp_path / "run"), "--model", "resnet32", "--epochs", "1"]
    words += ["--batch-size", "10", "--device", "cpu", "--amp", "off", "--weights", "none", "--quiet", "--resume"]
    code, said = forked.run(_train_on_a_small_disk, words, tmp_path / "said.txt")
    assert code == 1
    assert "cannot be saved" in said
    assert "the earlier checkpoint is whole" in said
    assert "Traceback" not in said
    assert last.read_bytes() == saved
