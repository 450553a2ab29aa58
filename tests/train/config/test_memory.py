"""What a command that ran out of memory is told to change."""

import re
from pathlib import Path

import pytest

from lmk_train.config.commands import EvalConfig, ExportConfig
from lmk_train.config.memory import memory_advice
from lmk_train.config.option import options_of
from lmk_train.config.training import TrainConfig


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("ranks", [1, 2, 8])
@pytest.mark.parametrize("grad_accum", [1, 2, 8])
def test_a_training_is_told_what_can_be_given(resume: bool, ranks: int, grad_accum: int) -> None:
    """Splits that leave a picture to each micro-batch; on resume only options that may change then."""
    config = TrainConfig("shards", batch_size=16, grad_accum=grad_accum, resume=resume)
    advice = memory_advice(config, ranks)
    options = {option.flag: option.info for option in options_of(TrainConfig).values()}
    for flag in re.findall(r"--[a-z-]+", advice):
        assert not resume or options[flag].may_change_on_resume
    if splits := re.search(r"--grad-accum (\d+)", advice):
        assert grad_accum * 2 == int(splits[1]) <= 16 // ranks
    else:
        assert grad_accum * 2 > 16 // ranks
        assert "more ranks, or a device with more memory" in advice


def test_a_training_that_mixes_pairs_is_told_only_what_leaves_pairs_together() -> None:
    for batch_size, grad_accum in ((4, 2), (8, 2), (16, 2)):
        config = TrainConfig("shards", batch_size=batch_size, mixup=0.2, grad_accum=grad_accum)
        splits = re.search(r"--grad-accum (\d+)", memory_advice(config, 1))
        assert (splits is not None) == (batch_size % (2 * 2 * grad_accum) == 0)


def test_an_evaluation_is_told_of_its_batch_size() -> None:
    assert "--batch-size" in memory_advice(EvalConfig(Path("run")), 1)
    assert "--" not in memory_advice(ExportConfig(Path("run"), "onnx"), 1)
