"""The samples of a dataset, to compare it with others."""

import os

from lmk_data.dataset import ShardedDataset


def members(path: str | os.PathLike[str]) -> dict[str, set[tuple[str, object, bytes]]]:
    """Key, landmark id and JPEG of every sample of each split."""
    with ShardedDataset.open(path) as dataset:
        return {split: {(s.key, s.landmark_id, s.jpeg) for s in dataset.samples(split)} for split in dataset.splits}
