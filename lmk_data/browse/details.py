"""Everything that is known of one picture: its source, predictions, neighbours and duplicates."""

import numpy as np

from lmk_data.browse.classes import known
from lmk_data.browse.duplicates import near_of
from lmk_data.browse.lazy import Lazy
from lmk_data.browse.neighbours import Neighbours
from lmk_data.browse.opened import Opened
from lmk_data.browse.pictures import Pictures
from lmk_data.browse.records import ClassName, Duplicate, Neighbour, PictureDetail, Prediction

_NEIGHBOURS = 8
_MAX_EXACT = 100


class Details:
    """The pictures of a dataset, one at a time."""

    def __init__(self, opened: Opened, pictures: Pictures) -> None:
        self._opened, self._pictures = opened, pictures
        self._neighbours = Lazy(lambda: Neighbours(opened.quality) if opened.quality else None)

    @property
    def has_features(self) -> bool:
        """Whether the features of an inspection are there. Raises UserError if they are damaged."""
        return bool(self._neighbours.get())

    def detail(self, row: int) -> PictureDetail:
        """Return what is known of a row."""
        opened, samples, quality = self._opened, self._opened.samples, self._opened.quality
        shards, origin, duplicates = samples.shards(), samples.origin(row), self._duplicates(row)
        run = opened.run
        top = run.top(row) if run else []
        other = self._pictures.proposed(row)
        predictions = [Prediction(run.name_of(label), probability) for label, probability in top] if run else []
        own_label = int(samples.labels[row])
        beside = other or next((p.predicted for p in predictions if p.predicted.label not in (None, own_label)), None)
        return PictureDetail(
            picture=self._pictures.rows([row])[0],
            source=origin.source,
            source_sha256=origin.sha256,
            original_bytes=origin.num_bytes,
            stored_bytes=int(samples.numbers("jpg_size")[row]),
            side=opened.dataset.recipe.size,
            shard=shards.names[shards.codes[row]],
            predictions=predictions,
            own_similarity=known(quality.own_similarity[row]) if quality else None,
            other=other,
            other_similarity=known(quality.other_similarity[row]) if quality else None,
            own_neighbours=self._nearest(row, opened.classes[own_label]),
            other_neighbours=self._nearest(row, beside),
            duplicates=duplicates,
        )

    def _nearest(self, row: int, where: ClassName | None) -> list[Neighbour]:
        """Return the nearest pictures of a class; none without features, or for a class that is not here."""
        neighbours = self._neighbours.get()
        if not neighbours or where is None or where.label is None:
            return []
        found = neighbours.nearest(row, self._opened.samples.of_label(where.label), _NEIGHBOURS)
        rows = self._pictures.rows([other for other, _ in found])
        return [Neighbour(picture, cosine) for picture, (_, cosine) in zip(rows, found, strict=True)]

    def _duplicates(self, row: int) -> list[Duplicate]:
        """Return the exact and near duplicates of a picture, the exact ones first."""
        opened, samples = self._opened, self._opened.samples
        groups = opened.exact.get()  # before any row is made, which says so if it has duplicates
        group = int(groups.group[row])
        same = groups.rows_of(group) if group >= 0 else np.empty(0, np.int32)
        exact = same[same != row][:_MAX_EXACT]
        near = np.setdiff1d(near_of(row, opened.dataset, samples), same)
        kinds = ["exact"] * len(exact) + ["near"] * len(near)
        rows = self._pictures.rows([*exact.tolist(), *near.tolist()])
        return [Duplicate(picture, kind) for picture, kind in zip(rows, kinds, strict=True)]  # type: ignore[arg-type]
