"""`lmk-train --dry-run`."""

import math
from pathlib import Path

import pytest

from lmk_train.cli import train_main
from lmk_train.models.registry import num_parameters
from lmk_train.training import dry_run as module
from lmk_train.training.dry_run import dry_run
from lmk_train.training.memory import Measured
from tests.train.run_files import Config


@pytest.mark.parametrize(
    ("loss", "head"),
    [
        ("ce", "linear"),
        ("ce", "cosine"),
        ("ldam", "cosine"),
        ("ldam", "linear"),
        ("balanced-softmax", "linear"),
        ("arcface", "cosine"),
    ],
)
def test_a_dry_run_says_the_loss_that_training_starts_with_and_writes_nothing(
    config: Config, tmp_path: Path, loss: str, head: str
) -> None:
    lite = pytest.importorskip("efficientnet_lite_pytorch", reason="the extra `lite` is not installed")
    chosen = {"model": "efficientnet-lite0", "weights": "imagenet", "loss": loss, "head": head, "batch_size": 20}
    mixup = 0.4 if loss == "ldam" else None  # which leaves the loss of a new head as it is
    found = dry_run(config(**chosen, dry_run=True, mixup=mixup), lambda _: None)
    assert found.first_loss == pytest.approx(found.expected_loss, rel=0.15)
    assert found.head_parameters == 1280 * 5 * (3 if loss == "arcface" else 1) + (5 if head == "linear" else 0)
    library = lite.EfficientNet.from_name("efficientnet-lite0")
    assert found.backbone_parameters == num_parameters(library) - num_parameters(library._fc)
    assert found.memory.weights > 4 * (found.head_parameters + found.backbone_parameters)  # and running statistics
    assert found.memory.activations > 20 * 32 * 32 * 3
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("sampling", ["class-balanced", "repeat-factor"])
def test_the_prior_is_that_of_the_samples_as_they_are_drawn(config: Config, sampling: str) -> None:
    chosen = {"model": "efficientnet-lite0", "weights": "imagenet", "batch_size": 20, "sampling": sampling}
    found = dry_run(config(**chosen, loss="balanced-softmax", head="linear", dry_run=True), lambda _: None)
    assert found.first_loss == pytest.approx(found.expected_loss, rel=0.15)
    if sampling == "class-balanced":
        assert found.expected_loss == pytest.approx(math.log(5))


def test_a_dry_run_counts_what_the_largest_step_takes(config: Config) -> None:
    """A backbone that thaws is trained in the end; one that never does has no gradients."""
    frozen = [dry_run(config(freeze_backbone_epochs=epochs), lambda _: None).memory for epochs in (0, 1, 2)]
    assert frozen[1] == frozen[0]
    for part in ("gradients", "optimizer", "activations", "total"):
        assert getattr(frozen[0], part) > getattr(frozen[2], part)


def test_the_summary_has_the_estimate_in_its_parts_and_what_a_card_reserved(
    dataset_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--shards", str(dataset_path), "--out", str(tmp_path / "run"), "--model", "resnet32", "--device", "cpu"]
    given += ["--batch-size", "10", "--grad-accum", "2", "--quiet", "--dry-run"]
    assert train_main(given) == 0
    said = capsys.readouterr().out
    for part in ("weights", "gradients", "the optimiser", "a second gradient of the largest layer"):
        assert f"MB for {part}" in said
    assert "MB for 5 pictures at once" in said
    for absent in ("other ranks", "CUDA", "measured"):
        assert absent not in said
    monkeypatch.setattr(module, "measure", lambda _: Measured(5_000_000_000, 6_000_000_000, 80_000_000_000))
    assert train_main(given) == 0
    assert "5.0 GB reserved by two updates; 6.0 GB of 80.0 GB of the device are in use" in capsys.readouterr().out
