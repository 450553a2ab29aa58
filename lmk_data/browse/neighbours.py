"""The pictures of a class that are nearest to a picture, by the features of an inspection.

Only the features of that class are read.
"""

import numpy as np
from numpy.typing import NDArray

from lmk_data.browse.quality_files import QualityFiles

_MAX_COMPARED = 20_000  # pictures of a class: at 1,280 features 50 MB, more than any class of Google Landmarks has
_BLOCK = 2_048


class Neighbours:
    """Finds the nearest pictures among some samples."""

    def __init__(self, quality: QualityFiles) -> None:
        self._quality = quality
        self._files = quality.feature_files()

    def __bool__(self) -> bool:
        """Whether there are features."""
        return bool(self._files)

    def nearest(self, row: int, rows: NDArray[np.int32], count: int) -> list[tuple[int, float]]:
        """Return up to `count` of these samples and their cosines to a sample, the most similar first, without itself.

        Of more than 20,000 samples the first 20,000 are compared. A sample without features has no neighbours.
        """
        place = self._quality.feature_place(row)
        if place is None or place[0] not in self._files:
            return []
        own = self._files[place[0]].rows(np.array([place[1]]))[0]
        near: list[NDArray[np.int32]] = []
        cosines: list[NDArray[np.float32]] = []
        for split, features in self._files.items():
            compared, places = self._quality.feature_places(rows[rows != row][:_MAX_COMPARED], split)
            for start in range(0, len(places), _BLOCK):
                block = features.rows(places[start : start + _BLOCK])
                cosines.append(np.nan_to_num(block @ own, nan=-1.0, posinf=-1.0, neginf=-1.0))
            near.append(compared)
        if not cosines:
            return []
        samples, similarity = np.concatenate(near), np.concatenate(cosines)
        best = np.argsort(-similarity, kind="stable")[:count]
        return list(zip(samples[best].tolist(), similarity[best].clip(-1, 1).tolist(), strict=True))
