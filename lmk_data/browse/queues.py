"""Queues to work through: how many items each has, its groups, and the rejects of the build."""

import numpy as np

from lmk_data.browse.classes import page_size_of
from lmk_data.browse.lazy import Lazy
from lmk_data.browse.opened import NO_QUALITY, NO_RUN, Opened
from lmk_data.browse.pictures import Pictures
from lmk_data.browse.records import GroupQuery, GroupRow, Page, Queue, RejectRow
from lmk_data.errors import UserError

_SHOWN = 12  # pictures of a group, and classes
_NO_REJECTS = "a view has no rejects of its own: `lmk-shard browse` with the dataset that it was made of"


class Queues:
    """The queues of a dataset."""

    def __init__(self, opened: Opened, pictures: Pictures) -> None:
        self._opened, self._pictures = opened, pictures
        self._rejects = Lazy(opened.dataset.rejects)

    def all(self) -> list[Queue]:
        """Return all queues; `absent` of those that need a run or an inspection says which command makes it."""
        opened, quality = self._opened, self._opened.quality
        no_quality = None if quality else NO_QUALITY
        groups = opened.duplicates.get()
        pairs = len(self._pictures.confusions().targets) if opened.run else None
        is_view = opened.dataset.is_view
        rejected = None if is_view else opened.dataset.manifest["counts"]["rejected"]
        return [
            Queue("suspects", "Suspects", "pictures", int(quality.wrong.sum()) if quality else None, no_quality),
            Queue("outliers", "Outliers", "pictures", int(quality.outlier.sum()) if quality else None, no_quality),
            Queue("duplicates", "Duplicates", "groups", len(groups.conflict)),
            Queue("conflicts", "Label conflicts", "groups", int(groups.conflict.sum())),
            Queue("confusions", "Confusions", "groups", pairs, None if opened.run else NO_RUN),
            Queue("rejects", "Rejects", "files", rejected, _NO_REJECTS if is_view else None),
        ]

    def groups(self, query: GroupQuery) -> Page[GroupRow]:
        """Return a page of groups. Raises UserError for a queue without groups, or without a run."""
        size = page_size_of(query.page_size)
        start = query.page * size
        if query.queue == "confusions":
            total = len(self._pictures.confusions().targets)
            items = [self._confusion(place) for place in range(start, min(start + size, total))]
            return Page(items, total, query.page, size)
        if query.queue not in ("duplicates", "conflicts"):
            raise UserError(f"queue {str(query.queue)[:80]!r}: has no groups")
        conflict = self._opened.duplicates.get().conflict
        chosen = np.flatnonzero(conflict) if query.queue == "conflicts" else np.arange(len(conflict))
        return Page([self._duplicates(int(g)) for g in chosen[start : start + size]], len(chosen), query.page, size)

    def rejects(self, page: int, page_size: int) -> Page[RejectRow]:
        """Return a page of the planned pictures that were not written; none for a view."""
        size, table = page_size_of(page_size), self._rejects.get()
        names = self._opened.classes.names
        rows = table.iloc[page * size : (page + 1) * size].to_dict("records")
        items = [
            RejectRow(
                key=row["key"],
                source=row["source"],
                landmark_id=str(row["landmark_id"]),
                class_name=names[row["label"]],
                split=row["split"],
                reason=row["reason"],
                detail=row["detail"] or "",
            )
            for row in rows
        ]
        return Page(items, len(table), page, size)

    def _confusion(self, place: int) -> GroupRow:
        confusions, opened = self._pictures.confusions(), self._opened
        target, prediction = int(confusions.targets[place]), int(confusions.predictions[place])
        rows = confusions.rows[confusions.starts[place] : confusions.starts[place + 1]]
        classes = [opened.classes[target], opened.need_run().name_of(prediction)]
        return GroupRow(f"{target}-{prediction}", len(rows), classes, self._pictures.rows(rows[:_SHOWN]))

    def _duplicates(self, group: int) -> GroupRow:
        groups, opened = self._opened.duplicates.get(), self._opened
        rows = groups.rows_of(group)
        labels = list(dict.fromkeys(opened.samples.labels[rows].tolist()))
        classes = [opened.classes[label] for label in labels[:_SHOWN]]
        name = self._pictures.group_id(groups, group)
        return GroupRow(name, len(rows), classes, self._pictures.rows(rows[:_SHOWN]))
