"""Run one split through a model: predictions of every sample exactly once, on any number of ranks."""

from collections.abc import Callable
from contextlib import closing

import numpy as np
import torch

from lmk_data.system.terminal import progress_bar
from lmk_train.data.order import batch_picks, num_batches
from lmk_train.data.stream import BatchStream, Reader
from lmk_train.evaluation.metrics import TOP_K, Ints, Predictions
from lmk_train.models.heads import Classifier
from lmk_train.runtime.precision import Precision
from lmk_train.runtime.world import ALONE, World


def predict_split(
    model: Classifier,
    reader: Reader,
    stream: BatchStream,
    preprocess: Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor],
    precision: Precision,
    batch_size: int,
    *,
    known_as: Ints | None = None,
    adjustments: torch.Tensor | None = None,
    world: World = ALONE,
    quiet: bool = True,
) -> Predictions:
    """Run every sample of a split through the model once, each process its share; all of them get all predictions.

    Targets are the reader's labels, or where the model has other classes `known_as` of them, int64, -1 for unknown.
    `adjustments`, float32 [T, K], are added to the logits for T more answers. The model is left in training mode.
    """
    rows = np.arange(len(reader), dtype=np.int64)
    steps = num_batches(len(rows), batch_size, drop_last=False)
    best = min(TOP_K, model.num_classes)
    adjustments = torch.empty(0, model.num_classes) if adjustments is None else adjustments
    targets = reader.labels if known_as is None else known_as[reader.labels]
    seen, losses = [np.empty(0, np.int64)], [torch.empty(0)]
    labels, probabilities = [torch.empty(0, best, dtype=torch.int64)], [torch.empty(0, best)]
    adjusted = [torch.empty(0, len(adjustments), dtype=torch.int64)]
    reader.expect(rows)
    model.eval()
    wanted = (world.share(batch_picks(rows, step, batch_size)) for step in range(steps))
    with (
        torch.inference_mode(),
        closing(stream(wanted)) as batches,
        progress_bar(len(rows), f"evaluating {reader.split}", "images", quiet=quiet) as bar,
    ):
        for batch in batches:
            with precision.autocast():
                logits = model(preprocess(batch.pixels, None))
            top = logits.softmax(dim=1).topk(best, dim=1)
            seen.append(batch.picks)
            losses.append(_losses(logits, torch.from_numpy(targets[batch.picks]).to(logits.device)).cpu())
            labels.append(top.indices.cpu())
            probabilities.append(top.values.cpu())
            chosen = torch.empty(len(logits), len(adjustments), dtype=torch.int64, device=logits.device)
            for place, adjustment in enumerate(adjustments):
                chosen[:, place] = (logits + adjustment).argmax(dim=1)
            adjusted.append(chosen.cpu())
            bar.update(len(batch.picks) * world.size)
    model.train()
    own = (np.concatenate(seen), *(torch.cat(parts).numpy() for parts in (labels, probabilities, losses, adjusted)))
    parts = world.gather(own)
    picked = np.concatenate([part[0] for part in parts])
    order = np.argsort(picked)
    assert np.array_equal(picked[order], rows), "every sample is evaluated exactly once"
    return Predictions(
        keys=reader.keys(),
        targets=targets,
        labels=np.concatenate([part[1] for part in parts])[order],
        probabilities=np.concatenate([part[2] for part in parts])[order],
        losses=np.concatenate([part[3] for part in parts])[order],
        adjusted=np.concatenate([part[4] for part in parts])[order],
    )


def _losses(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Minus the logarithm of the target's probability, float32 [B]; NaN where the target is -1."""
    losses = torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none", ignore_index=-1)
    return torch.where(targets < 0, torch.nan, losses)
