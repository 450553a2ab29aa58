"""How similar a sample is to its nearest neighbours in some classes, without comparing all samples with all."""

import numpy as np
import torch
from numpy.typing import NDArray

from lmk_train.inspection.blocks import Features

_CELLS = 1 << 24  # similarities that are in memory at a time


def neighbour_similarity(
    features: Features,
    labels: NDArray[np.int32],
    asked: NDArray[np.int32],
    num: int,
    device: torch.device,
) -> NDArray[np.float32]:
    """Return the mean cosine of each sample to its `num` nearest neighbours in each class asked for, float32 [N, A].

    A sample is no neighbour of itself. A class with fewer samples is compared by those it has; NaN where it has none.
    Samples are compared class by class, so that the work is that of (samples that ask) x (samples of the class).

    Args:
        features: float [N, D], any finite length but zero.
        labels: int32 [N].
        asked: classes to compare each sample with, int32 [N, A]; -1 asks for none.
        num: how many neighbours.
        device: on which similarities are computed.
    """
    result = np.full(asked.shape, np.nan, dtype=np.float32)
    members = np.argsort(labels, kind="stable")
    member_labels = labels[members]
    pairs = np.argsort(asked, axis=None, kind="stable")
    pair_labels = asked.ravel()[pairs]
    present = np.unique(member_labels)
    first_member, last_member = (np.searchsorted(member_labels, present, side) for side in ("left", "right"))
    first_pair, last_pair = (np.searchsorted(pair_labels, present, side) for side in ("left", "right"))
    flat = result.ravel()
    for start, stop, pair, end in zip(first_member, last_member, first_pair, last_pair, strict=True):
        rows, places = members[start:stop], pairs[pair:end]
        if len(places):
            theirs = _unit(features, rows, device)
            step = max(1, _CELLS // max(len(rows), features.shape[1]))
            for part in range(0, len(places), step):
                chunk = places[part : part + step]
                queries = chunk // asked.shape[1]
                flat[chunk] = _nearest(_unit(features, queries, device), theirs, queries, rows, num)
    return result


def _nearest(
    queries: torch.Tensor, theirs: torch.Tensor, query_rows: NDArray[np.int64], rows: NDArray[np.int64], num: int
) -> NDArray[np.float32]:
    """Return the mean of the largest similarities of queries [Q, D] to members [M, D], themselves left out."""
    similarities = queries @ theirs.T
    place = np.minimum(np.searchsorted(rows, query_rows), len(rows) - 1)
    itself = rows[place] == query_rows
    where = torch.from_numpy(np.flatnonzero(itself)).to(queries.device)
    similarities[where, torch.from_numpy(place[itself]).to(queries.device)] = -torch.inf
    best = similarities.topk(min(num, len(rows)), dim=1).values
    counted = torch.isfinite(best)
    total = best.masked_fill(~counted, 0).sum(1) / counted.sum(1)  # 0 / 0 is NaN: nobody but itself
    mean: NDArray[np.float32] = total.cpu().numpy()
    return mean


def _unit(features: Features, rows: NDArray[np.int64], device: torch.device) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.from_numpy(np.array(features[rows], dtype=np.float32)).to(device))
