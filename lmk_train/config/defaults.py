"""The models, the losses, and what is trained by default; docs/training.md says how that was found."""

from typing import Any, Literal

ModelName = Literal["efficientnet-b0", "resnet50", "efficientnet-lite0", "resnet32"]
LossName = Literal["balanced-softmax", "ldam", "ce", "arcface"]

DEFAULT_MODEL: ModelName = "efficientnet-b0"
DEFAULT_LOSS: LossName = "balanced-softmax"

_FINE_TUNING: dict[str, Any] = {
    "weights": "imagenet",
    "epochs": 8,
    "batch_size": 64,
    "optimizer": "adamw",
    "lr": 3e-4,
    "head_lr": 3e-3,
    "weight_decay": 0.02,
    "warmup_epochs": 1.0,
    "schedule": "cosine",
    "drop_rate": 0.2,
}
DEFAULTS: dict[ModelName, dict[str, Any]] = {
    "efficientnet-lite0": {**_FINE_TUNING, "batch_size": 32},
    "efficientnet-b0": _FINE_TUNING,
    "resnet50": {**_FINE_TUNING, "lr": 1e-4, "head_lr": 1e-3, "drop_rate": 0.0},
    "resnet32": {
        "weights": "none",
        "epochs": 200,
        "batch_size": 128,
        "optimizer": "sgd",
        "lr": 0.1,
        "head_lr": 0.1,
        "weight_decay": 2e-4,
        "warmup_epochs": 5.0,
        "schedule": "step",
        "drop_rate": 0.0,
    },
}
