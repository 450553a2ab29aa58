"""Neighbours and distances are those that comparing all with all gives."""

import numpy as np
import torch

from lmk_train.inspection import discriminant
from lmk_train.inspection.blocks import moments
from lmk_train.inspection.discriminant import Discriminant, Spectrum, weighted_block
from lmk_train.inspection.neighbours import neighbour_similarity

CPU = torch.device("cpu")


def test_neighbours_are_the_nearest_of_each_class() -> None:
    generator = np.random.default_rng(0)
    features = generator.normal(size=(30, 8)).astype(np.float32)
    labels = generator.integers(0, 4, 30).astype(np.int32)
    asked = generator.integers(-1, 5, (30, 3)).astype(np.int32)
    found = neighbour_similarity(features, labels, asked, 2, CPU)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    for row in range(30):
        for column, label in enumerate(asked[row]):
            members = [other for other in np.flatnonzero(labels == label) if other != row]
            expected = np.sort(unit[members] @ unit[row])[-2:].mean() if members else np.nan
            np.testing.assert_allclose(found[row, column], expected, rtol=1e-5)


def test_distances_are_those_of_a_fit_without_the_sample() -> None:
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(3, dtype=np.int32), 10)
    features = (generator.normal(size=(3, 4))[labels] + generator.normal(size=(30, 4))).astype(np.float32)
    weights = np.ones(30, np.float32)
    own, others = _distances(features, labels, weights, row=4)
    weights[4] = 0
    own_without, others_without = _distances(features, labels, weights, row=4)
    ratio = 29 / 30  # the covariance is divided by the sum of weights, with or without the sample
    np.testing.assert_allclose(own * ratio, own_without, rtol=0.01)
    np.testing.assert_allclose(others * ratio, others_without, rtol=0.01)


def test_candidates_found_by_groups_are_the_closest() -> None:
    fit = torch.from_numpy(np.random.default_rng(0).normal(size=(6, 1003)))
    found = discriminant._largest(fit, 5)
    assert torch.equal(found, fit.topk(5, dim=1).indices)


def _distances(features: np.ndarray, labels: np.ndarray, weights: np.ndarray, row: int) -> tuple[float, np.ndarray]:
    fitted = Discriminant(Spectrum.of(moments(features, labels, weights, 3, CPU)), 0.0)
    one = slice(row, row + 1)
    samples = weighted_block(fitted, torch.from_numpy(features[one]), labels[one], weights[one])
    own, others = fitted.distances(samples, torch.tensor([[1, 2]]))
    return float(own[0]), others[0].numpy()
