"""Calibrate the probabilities of a model: one temperature for its logits, fitted on validation pictures."""

import math
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from lmk_data.dataset import ShardedDataset
from lmk_train.config.arguments import Cache
from lmk_train.config.commands import EvalConfig
from lmk_train.data.reader import SplitReader
from lmk_train.evaluation.inference import Evaluator
from lmk_train.evaluation.metrics import calibration_error
from lmk_train.runs.calibration import HIGHEST, LOWEST, Calibration, write_calibration
from lmk_train.runs.classes import Classes

MIN_SAMPLES = 30
_MAX_SAMPLES = 5000
_MAX_LOGITS = 1 << 25  # of the sample: 128 MB
_MIN_WRONG = 10  # answers that a sample has to have before probabilities are raised
_TOLERANCE = 1e-4  # of the logarithm of the temperature
_ROWS = 512
_GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class ValidationSample:
    """What a model makes of n validation pictures of known classes.

    Attributes:
        described: what the head takes, float32 [n, D].
        logits: float32 [n, K].
        targets: int64 [n].
    """

    described: NDArray[np.float32]
    logits: NDArray[np.float32]
    targets: NDArray[np.int64]


def validation_sample(
    evaluator: Evaluator, dataset: ShardedDataset, classes: Classes, cache: Cache
) -> ValidationSample | None:
    """Run a sample of the validation split through a model, on every rank.

    Returns None if the split has fewer than `MIN_SAMPLES` pictures of classes of the model.
    """
    if classes.num_known(dataset, "val") < MIN_SAMPLES:
        return None
    with closing(SplitReader(dataset, "val", cache)) as reader:
        targets = classes.labels_of(dataset)[reader.labels]
        rows = sampled_rows(targets, len(classes.ids))
        described, logits = evaluator.describe(reader, rows)
    return ValidationSample(described, logits, targets[rows])


def sampled_rows(targets: NDArray[np.int64], num_classes: int) -> NDArray[np.int64]:
    """Return the rows of known targets, int64 [n], evenly spread: 5,000, or fewer if there are many classes.

    One parameter needs no more, and their logits stay below 128 MB. `targets` are int64 [N], -1 for unknown ones.
    """
    known = np.flatnonzero(targets >= 0)
    number = min(len(known), _MAX_SAMPLES, max(MIN_SAMPLES, _MAX_LOGITS // num_classes))
    return known[np.arange(number) * len(known) // number]


def fit_run(
    evaluator: Evaluator, dataset: ShardedDataset, classes: Classes, config: EvalConfig, weights_sha256: str
) -> Calibration | None:
    """Fit the temperature of a run on a dataset's validation split; the first rank writes it into the run.

    Args:
        evaluator: of the model.
        dataset: with the validation split.
        classes: of the model.
        config: its run and cache count.
        weights_sha256: of the model's weights.

    Returns None if there are too few validation pictures.
    """
    sample = validation_sample(evaluator, dataset, classes, config.cache.resolved())
    if sample is None:
        return None
    calibration = calibrated(sample, dataset.manifest["content_sha256"], weights_sha256)
    if evaluator.world.is_first:
        write_calibration(config.run, calibration)
    return calibration


def calibrated(sample: ValidationSample, content_sha256: str, weights_sha256: str) -> Calibration:
    """Return the calibration of a sample.

    Args:
        sample: of validation pictures.
        content_sha256: of their dataset.
        weights_sha256: of the weights whose logits these are.
    """
    fitted = fit_temperature(sample.logits, sample.targets)
    correct = sample.logits.argmax(axis=1) == sample.targets
    losses = [mean_loss(sample.logits, sample.targets, value) for value in (1.0, fitted)]
    errors = [calibration_error(correct, confidences(sample.logits, value)) or 0.0 for value in (1.0, fitted)]
    return Calibration(
        temperature=fitted,
        weights_sha256=weights_sha256,
        dataset=content_sha256,
        split="val",
        num_samples=len(sample.targets),
        loss_before=losses[0],
        loss_after=losses[1],
        error_before=errors[0],
        error_after=errors[1],
    )


def fit_temperature(logits: NDArray[np.float32], targets: NDArray[np.int64]) -> float:
    """Return the temperature, 0.1 to 10, that the logits are divided by for the least loss.

    The loss is convex in 1/T and so has one minimum, which a golden-section search over log T finds. A temperature
    below 1 raises probabilities, which takes 10 wrong answers as evidence: without any, the loss falls without end.
    Temperature scaling: Guo et al., "On calibration of modern neural networks", ICML 2017.

    Args:
        logits: float32 [n, K].
        targets: int64 [n].
    """
    num_wrong = int((logits.argmax(axis=1) != targets).sum())
    low, high = math.log(LOWEST if num_wrong >= _MIN_WRONG else 1.0), math.log(HIGHEST)
    inner = [high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)]
    losses = [mean_loss(logits, targets, math.exp(value)) for value in inner]
    while high - low > _TOLERANCE:
        if losses[0] <= losses[1]:
            high, inner, losses = inner[1], [0.0, inner[0]], [0.0, losses[0]]
            inner[0] = high - _GOLDEN * (high - low)
            losses[0] = mean_loss(logits, targets, math.exp(inner[0]))
        else:
            low, inner, losses = inner[0], [inner[1], 0.0], [losses[1], 0.0]
            inner[1] = low + _GOLDEN * (high - low)
            losses[1] = mean_loss(logits, targets, math.exp(inner[1]))
    return min(HIGHEST, max(LOWEST, math.exp((low + high) / 2)))


def mean_loss(logits: NDArray[np.float32], targets: NDArray[np.int64], temperature: float) -> float:
    """Return the mean of -log(probability of the target) of logits float32 [n, K] at a temperature, in float64."""
    total = 0.0
    for start in range(0, len(logits), _ROWS):
        scaled = torch.from_numpy(logits[start : start + _ROWS]).double() / temperature
        of_target = scaled.gather(1, torch.from_numpy(targets[start : start + _ROWS, None]))
        total += float((scaled.logsumexp(dim=1) - of_target[:, 0]).sum())
    return total / len(logits)


def probabilities_of(
    logits: NDArray[np.float32], targets: NDArray[np.int64], temperature: float
) -> NDArray[np.float64]:
    """Return the probability of each target, float64 [n], of logits float32 [n, K] at a temperature."""
    parts = []
    for start in range(0, len(logits), _ROWS):
        scaled = torch.from_numpy(logits[start : start + _ROWS]).double() / temperature
        of_target = scaled.gather(1, torch.from_numpy(targets[start : start + _ROWS, None]))
        parts.append((of_target[:, 0] - scaled.logsumexp(dim=1)).exp().numpy())
    found: NDArray[np.float64] = np.concatenate(parts)
    return found


def confidences(logits: NDArray[np.float32], temperature: float) -> NDArray[np.float64]:
    """Return the probability of the best label of logits float32 [n, K] at a temperature, float64 [n]."""
    parts = []
    for start in range(0, len(logits), _ROWS):
        scaled = torch.from_numpy(logits[start : start + _ROWS]).double() / temperature
        parts.append((scaled.amax(dim=1) - scaled.logsumexp(dim=1)).exp().numpy())
    found: NDArray[np.float64] = np.concatenate(parts)
    return found
