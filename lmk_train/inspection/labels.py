"""Which labels may be wrong: samples that are explained better by another class than by the rest of their own.

Every sample is compared with its class, without the sample itself, and with the classes that are closest to it: by
the distance to the means of classes (`discriminant`), by its nearest neighbours in them (`neighbours`), and by their
sizes. `posterior` turns these into the probability that the label is wrong. Then all of it is repeated with each sample
weighted by the probability that its label is right, so that wrong labels move no class.

Nothing of N x N or N x K is kept: the largest arrays are the features, which may be a memory map, the means of classes
[K, D], twice, and the evidence [N, 1 + C, 3] for C candidates.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from lmk_train.inspection.blocks import Features, blocks, class_sums, moments
from lmk_train.inspection.discriminant import PRIOR_SAMPLES, Discriminant, Spectrum, weighted_block
from lmk_train.inspection.neighbours import neighbour_similarity
from lmk_train.inspection.posterior import LabelModel
from lmk_train.inspection.thresholds import FALSE_ALARMS, flag_probable

_CANDIDATES = 8
_NEIGHBOURS = 3
_ROUNDS = 2
_SHRINKAGES = (0.1, 0.3, 0.6, 0.9)
_TRIED_ROWS = 4096  # on which the shrinkage is chosen
_PROBABLY_RIGHT = 0.5  # neighbours with a smaller weight are left out


@dataclass(frozen=True, slots=True)
class LabelJudgement:
    """What is known about the labels of N samples; all [N].

    Similarities are cosines: `own_similarity` to the mean of the sample's class without the sample itself (NaN in a
    class of one), `other_similarity` to the mean of `other_label`, the class that explains the sample best among the
    others (NaN and -1 where there is none). `wrong_label_score` is the estimated probability that the label is wrong,
    0 in a class of one; `wrong_label` says which samples are flagged.
    """

    own_similarity: NDArray[np.float32]
    other_label: NDArray[np.int32]
    other_similarity: NDArray[np.float32]
    wrong_label_score: NDArray[np.float32]
    wrong_label: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class _Samples:
    features: Features
    labels: NDArray[np.int32]
    sizes: NDArray[np.int64]  # samples per class, [K]
    device: torch.device

    @property
    def num_classes(self) -> int:
        """How many classes have samples."""
        return int((self.sizes > 0).sum())


def judge_labels(
    features: Features,
    labels: NDArray[np.int32],
    num_classes: int,
    *,
    false_alarms: float = FALSE_ALARMS,
    device: torch.device | None = None,
) -> LabelJudgement:
    """Judge labels [N], in 0..num_classes-1, of samples by their features [N, D]; features may be a memory map.

    Args:
        features: float16 or float32 [N, D].
        labels: int32 [N].
        num_classes: K; classes may be empty.
        false_alarms: expected share of right labels among those that are flagged.
        device: on which distances are computed; the CPU by default.

    Raises:
        UserError: a feature is not finite.
    """
    sizes = np.bincount(labels, minlength=num_classes)
    samples = _Samples(features, labels, sizes, device or torch.device("cpu"))
    score, other = np.zeros(len(labels), np.float32), np.full(len(labels), -1, np.int32)
    judged = sizes[labels] > 1
    if samples.num_classes > 1 and judged.any():
        candidates: NDArray[np.int32] | None = None
        for _ in range(_ROUNDS):
            candidates, evidence = _evidence(samples, 1 - score, candidates)
            model = LabelModel.fit(evidence[judged], samples.num_classes)
            logits = model.logits(evidence)
            score = np.where(judged, model.wrong(logits), np.float32(0))
        assert candidates is not None
        other = candidates[np.arange(len(labels)), logits.argmax(1)]
    own_similarity, other_similarity = _similarities(samples, other)
    return LabelJudgement(own_similarity, other, other_similarity, score, flag_probable(score, false_alarms))


def _evidence(
    samples: _Samples, weights: NDArray[np.float32], candidates: NDArray[np.int32] | None
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Return candidates [N, C], searched unless given, and the evidence for the label and for them, [N, 1 + C, 3]."""
    sums = moments(samples.features, samples.labels, weights, len(samples.sizes), samples.device)
    discriminant = _best_discriminant(samples, weights, Spectrum.of(sums))
    every = np.arange(len(samples.labels))
    candidates, distances = _distances(samples, weights, discriminant, every, candidates)
    asked = np.concatenate([samples.labels[:, None], candidates], axis=1)
    members = np.where(weights > _PROBABLY_RIGHT, samples.labels, -1).astype(np.int32)
    similarity = neighbour_similarity(samples.features, members, asked, _NEIGHBOURS, samples.device)
    # The sample counts in its class here: without it, the smaller of two equal classes would give the label away.
    inverse_sizes = 1 / (discriminant.counts.cpu().numpy()[asked] + PRIOR_SAMPLES)
    return candidates, np.stack([-distances / 2, np.nan_to_num(similarity), inverse_sizes], axis=2)


def _best_discriminant(samples: _Samples, weights: NDArray[np.float32], spectrum: Spectrum) -> Discriminant:
    """Return the discriminant with the shrinkage under which the labels of some samples are most likely."""
    judged = np.flatnonzero(samples.sizes[samples.labels] > 1)
    rows = judged
    if len(judged) > _TRIED_ROWS:
        rows = np.sort(np.random.default_rng(0).choice(judged, _TRIED_ROWS, replace=False))
    best: tuple[float, Discriminant] | None = None
    for shrinkage in _SHRINKAGES:
        discriminant = Discriminant(spectrum, shrinkage)
        _, distances = _distances(samples, weights, discriminant, rows, None)
        likelihood = LabelModel.fit(-distances[:, :, None] / 2, samples.num_classes).likelihood
        if best is None or likelihood > best[0]:
            best = likelihood, discriminant
    assert best is not None
    return best[1]


def _distances(
    samples: _Samples,
    weights: NDArray[np.float32],
    discriminant: Discriminant,
    rows: NDArray[np.int64],
    candidates: NDArray[np.int32] | None,
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Return candidates [R, C] of these rows, searched unless given for all rows, and distances [R, 1 + C]."""
    allowed = torch.from_numpy(samples.sizes > 0).to(samples.device)
    num = min(_CANDIDATES, samples.num_classes - 1)
    found = np.empty((len(rows), num), np.int32)
    distances = np.empty((len(rows), 1 + num), np.float32)
    features = samples.features if len(rows) == len(samples.labels) else samples.features[rows]
    for part, block in blocks(features, samples.device):
        chosen = rows[part]
        one = weighted_block(discriminant, block, samples.labels[chosen], weights[chosen])
        if candidates is None:
            classes = discriminant.candidates(one, num, allowed)
        else:
            classes = torch.from_numpy(candidates[chosen].astype(np.int64)).to(samples.device)
        own, others = discriminant.distances(one, classes)
        found[part] = classes.cpu().numpy()
        distances[part] = torch.cat([own[:, None], others], 1).cpu().numpy()
    return found, distances


def _similarities(samples: _Samples, other: NDArray[np.int32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the cosines of samples to the mean of the rest of their class and to that of the class `other`, [N]."""
    labels = samples.labels
    sums = class_sums(samples.features, labels, len(samples.sizes), samples.device)
    own_similarity, other_similarity = (np.empty(len(labels), np.float32) for _ in range(2))
    for rows, block in blocks(samples.features, samples.device):
        label, second = (torch.from_numpy(one[rows].astype(np.int64)).to(samples.device) for one in (labels, other))
        rest = sums[label] - block
        own_similarity[rows] = torch.cosine_similarity(block, rest).cpu().numpy()
        other_similarity[rows] = torch.cosine_similarity(block, sums[second.clamp(min=0)]).cpu().numpy()
    own_similarity[samples.sizes[labels] < 2] = np.nan
    other_similarity[other < 0] = np.nan
    return own_similarity, other_similarity
