"""`lmk-train --dry-run`."""

from pathlib import Path

import pytest
from efficientnet_lite_pytorch import EfficientNet

from lmk_train.models.registry import num_parameters
from lmk_train.training.dry_run import dry_run
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
    found = dry_run(
        config(model="efficientnet-lite0", loss=loss, head=head, dry_run=True, batch_size=20, weights="imagenet"),
        lambda _: None,
    )
    assert found.first_loss == pytest.approx(found.expected_loss, rel=0.15)
    assert found.head_parameters == 1280 * 5 * (3 if loss == "arcface" else 1) + (5 if head == "linear" else 0)
    library = EfficientNet.from_name("efficientnet-lite0")
    assert found.backbone_parameters == num_parameters(library) - num_parameters(library._fc)
    assert found.weights_bytes == 16 * (found.head_parameters + found.backbone_parameters)
    assert found.activations_bytes > 20 * 32 * 32 * 3
    assert not (tmp_path / "run").exists()


def test_a_dry_run_counts_what_the_largest_step_takes(config: Config) -> None:
    """A backbone that thaws is trained in the end; one that never does has no gradients."""
    frozen = [dry_run(config(freeze_backbone_epochs=epochs), lambda _: None) for epochs in (0, 1, 2)]
    assert frozen[1].weights_bytes == frozen[0].weights_bytes > frozen[2].weights_bytes
    assert frozen[1].activations_bytes == frozen[0].activations_bytes > frozen[2].activations_bytes
