"""Votes and blends against an independent transcription in float64."""

import numpy as np
import torch
from numpy.typing import NDArray

from lmk_train.neighbours.blend import TEMPERATURES, WEIGHTS, Blend, blended, pick_blends


def transcribed(
    probabilities: NDArray[np.float64], cosines: NDArray[np.float64], labels: NDArray[np.int64], blend: Blend
) -> NDArray[np.float64]:
    """(1 - w) p(y) + w sum_j [y_j = y] exp(s_j / t) / sum_j exp(s_j / t), picture by picture."""
    mixed = (1 - blend.weight) * probabilities
    for picture in range(len(cosines)):
        total = sum(np.exp(cosine / blend.temperature) for cosine in cosines[picture])
        for cosine, label in zip(cosines[picture], labels[picture], strict=True):
            mixed[picture, label] += blend.weight * np.exp(cosine / blend.temperature) / total
    return mixed


def drawn(pictures: int, number: int) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    random = np.random.default_rng(0)
    probabilities = random.dirichlet(np.ones(6), size=pictures)
    cosines = -np.sort(-random.uniform(-1, 1, size=(pictures, number)), axis=1)
    return probabilities, cosines, random.integers(0, 6, size=(pictures, number))


def test_a_blend_is_the_mixture_of_both() -> None:
    probabilities, cosines, labels = drawn(20, 7)
    for blend in (Blend(0.0, 0.1), Blend(0.3, 0.05), Blend(0.95, 0.01)):
        tensors = (torch.from_numpy(array) for array in (probabilities.astype(np.float32), cosines.astype(np.float32)))
        mixed = blended(*tensors, torch.from_numpy(labels), blend)
        np.testing.assert_allclose(mixed.numpy(), transcribed(probabilities, cosines, labels, blend), atol=1e-5)
        np.testing.assert_allclose(mixed.sum(dim=1).numpy(), 1, atol=1e-5)


def test_each_number_of_neighbours_has_the_blend_of_the_least_loss() -> None:
    probabilities, cosines, labels = drawn(40, 4)
    targets = np.where(np.arange(40) % 3 == 0, labels[:, 0], probabilities.argmax(axis=1))
    rows = np.arange(40)
    picked = pick_blends(probabilities[rows, targets], cosines, labels == targets[:, None])
    for number, blend in enumerate(picked, 1):
        losses = {
            (weight, temperature): -np.log(
                transcribed(probabilities, cosines[:, :number], labels[:, :number], Blend(weight, temperature))[
                    rows, targets
                ]
            ).mean()
            for weight in WEIGHTS[:: 5 if blend.weight * 20 % 5 == 0 else 1]
            for temperature in TEMPERATURES
        }
        assert losses[blend.weight, blend.temperature] <= min(losses.values()) + 1e-12
    assert picked[0].weight > 0


def test_votes_that_are_all_wrong_do_not_count() -> None:
    picked = pick_blends(np.full(30, 0.4), np.full((30, 3), 0.5), np.zeros((30, 3), bool))
    assert [blend.weight for blend in picked] == [0.0, 0.0, 0.0]
