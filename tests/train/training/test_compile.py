"""`--compile`: what is compiled how often, and that nothing else changes."""

import os
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from lmk_data.errors import TrainingError
from lmk_train.training.loop import train
from tests.train.run_files import Config, lines, weights
from tests.train.updates import after_each_update

pytestmark = pytest.mark.slow  # importing the compiler takes seconds


class Compiler:
    """Traces as ever, the backward pass only if asked, and does not turn anything into C++, which takes minutes.

    Attributes:
        batches: how many pictures each pass was traced for.
    """

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.traces_backward = False

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        from torch._dynamo.backends.debugging import aot_eager

        self.batches += [len(one) for one in inputs if one.shape[1:] == (3, 32, 32)]
        return aot_eager(graph, inputs) if self.traces_backward else graph.forward


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[Compiler]:
    torch.compiler.reset()
    compiler = Compiler()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=compiler))
    yield compiler
    torch.compiler.reset()


CHOSEN: dict[str, Any] = {"ema": 0.9, "grad_accum": 3, "neck": 16, "lr": 1e-6, "head_lr": 1e-6, "warmup_epochs": 0.0}


def test_each_size_is_compiled_once_and_the_training_is_the_same(
    config: Config, tmp_path: Path, compiler: Compiler
) -> None:
    """With rates so small that rounding cannot grow. Batches of 10 in three parts; 11 and 7 pictures to evaluate."""
    chosen = {**CHOSEN, "epochs": 2, "freeze_backbone_epochs": 1}
    train(config(compile=True, **chosen))
    assert compiler.batches == [3, 4, 4, 3, 4], "frozen, evaluated, trained"
    train(config(out=tmp_path / "eager", **chosen))
    assert len(compiler.batches) == 5
    for compiled, eager in zip(*(lines(tmp_path / name, "epoch") for name in ("run", "eager")), strict=True):
        for name in ("train_loss", "val_loss"):
            assert compiled[name] == pytest.approx(eager[name], rel=1e-4)
    for name in ("best.pt", "last.pt"):
        assert weights(tmp_path / "run", name).keys() == weights(tmp_path / "eager", name).keys()


def test_a_compiled_training_is_resumed_and_ends_as_one_that_was_not_compiled(
    config: Config, tmp_path: Path, compiler: Compiler
) -> None:
    compiler.traces_backward = True
    chosen = {**CHOSEN, "grad_accum": 1, "epochs": 1}
    train(config(out=tmp_path / "eager", **chosen))
    with (
        after_each_update(lambda number, _: os.kill(os.getpid(), signal.SIGINT) if number == 2 else None),
        pytest.raises(KeyboardInterrupt, match="--resume to resume at step 2"),
    ):
        train(config(compile=True, **chosen))
    train(config(compile=True, resume=True, **chosen))
    assert compiler.batches[0] == 10
    eager, parts = weights(tmp_path / "eager"), weights(tmp_path / "run")
    assert all(torch.allclose(eager[name], parts[name], rtol=1e-4, atol=1e-5) for name in eager)


def test_a_compiler_that_fails_is_a_line(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_compiler(*_: object) -> Callable[..., Any]:
        raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable.")

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=no_compiler))
    torch.compiler.reset()
    expected = (
        r"^--compile: torch could not compile the backbone \(.*Failed to find C compiler.* leave --compile out.*$"
    )
    with pytest.raises(TrainingError, match=expected):
        train(config(compile=True))
