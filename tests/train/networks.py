"""Networks to test."""

from lmk_train.config.training import TrainConfig
from lmk_train.models.heads import Classifier
from lmk_train.models.registry import build_model


def network(model: str, num_classes: int, picture_size: int, head: str = "linear") -> Classifier:
    """Return a classifier with random weights and no dropout; cosines are scaled by 30."""
    config = TrainConfig("none", model=model, head=head, drop_rate=0.0)  # type: ignore[arg-type]
    return build_model(config.resolved(), num_classes, picture_size)
