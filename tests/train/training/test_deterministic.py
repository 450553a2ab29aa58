"""`--deterministic`."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from lmk_train.runtime.backend import set_backend_flags
from lmk_train.training.loop import train
from tests.train.run_files import Config, lines, weights
from tests.train.updates import after_each_update


@pytest.fixture(autouse=True)
def flags_come_back() -> Iterator[None]:
    yield
    set_backend_flags(deterministic=False)
    torch.backends.cudnn.benchmark = False


@pytest.mark.slow
@pytest.mark.parametrize(
    "chosen",
    [
        {"loss": "ldam", "ema": 0.5, "drw_start": 0.0, "clip_grad": 1.0, "random_resized_crop": 0.5},
        {"loss": "ce", "label_smoothing": 0.1, "crop_padding": 4, "random_erasing": 0.5, "grad_accum": 2},
        {"loss": "arcface", "pool": "gem", "neck": 16, "sampling": "repeat-factor"},
        {"loss": "balanced-softmax", "optimizer": "sgd", "sampling": "class-balanced", "freeze_backbone_epochs": 1},
    ],
    ids=lambda chosen: chosen["loss"],
)
def test_no_part_of_a_training_needs_what_varies(config: Config, tmp_path: Path, chosen: dict[str, object]) -> None:
    """torch refuses what it cannot compute twice with the same bits. On the CPU the bits are those without the flag."""
    enabled = []
    with after_each_update(lambda *_: enabled.append(torch.are_deterministic_algorithms_enabled())):
        train(config(out=tmp_path / "plain", epochs=1, **chosen))
        assert not any(enabled)
        enabled.clear()
        train(config(epochs=1, deterministic=True, **chosen))
    assert enabled
    assert all(enabled)
    plain, found = weights(tmp_path / "plain"), weights(tmp_path / "run")
    assert all(torch.equal(plain[name], found[name]) for name in plain)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("amp", ["off", "fp16"])
@pytest.mark.parametrize("model", ["resnet32", "efficientnet-lite0", "resnet50"])
def test_a_resumed_training_ends_with_the_same_bits_on_cuda(
    config: Config, tmp_path: Path, model: str, amp: str
) -> None:
    chosen = {"model": model, "amp": amp, "device": "cuda", "deterministic": True, "ema": 0.9}

    def stop(number: int, _: object) -> None:
        if number == 6:
            raise KeyboardInterrupt

    train(config(out=tmp_path / "whole", **chosen))
    with after_each_update(stop), pytest.raises(KeyboardInterrupt):
        train(config(checkpoint_minutes=1e-6, **chosen))
    train(config(resume=True, **chosen))
    for name in ("last.pt", "best.pt"):
        whole, parts = weights(tmp_path / "whole", name), weights(tmp_path / "run", name)
        assert all(torch.equal(whole[key], parts[key]) for key in whole)
    assert lines(tmp_path / "whole", "epoch") == lines(tmp_path / "run", "epoch")
