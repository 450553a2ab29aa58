"""What a run's folder holds, read back."""

import json
from collections.abc import Callable
from pathlib import Path

import torch

from lmk_train.config.training import TrainConfig

Config = Callable[..., TrainConfig]


def lines(run: Path, kind: str) -> list[dict[str, float]]:
    """metrics.jsonl, without what depends on the clock."""
    read = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    timed = {"images_per_second", "data_share", "copy_share", "compute_share"}
    return [{k: v for k, v in line.items() if k not in timed} for line in read if line["kind"] == kind]


def weights(run: Path, name: str = "last.pt") -> dict[str, torch.Tensor]:
    model: dict[str, torch.Tensor] = torch.load(run / "checkpoints" / name, weights_only=True)["model"]
    return model
