"""Queues to work through: how many items each has, its groups, and the rejects of the build."""

import shlex

import numpy as np
from numpy.typing import NDArray

from lmk_data.browse.classes import page_slice
from lmk_data.browse.lazy import Lazy
from lmk_data.browse.opened import Opened
from lmk_data.browse.pictures import Pictures
from lmk_data.browse.records import GroupQuery, GroupRow, Page, Queue, QueueName, RejectRow
from lmk_data.errors import UserError

_SHOWN = 12  # pictures of a group, and classes


class Queues:
    """The queues of a dataset."""

    def __init__(self, opened: Opened, pictures: Pictures) -> None:
        self._opened, self._pictures = opened, pictures
        self._rejects = Lazy(opened.dataset.rejects)

    def all(self) -> list[Queue]:
        """Return all queues; `absent` of those that need a run or an inspection says which command makes it."""
        opened, quality = self._opened, self._opened.quality
        no_quality = None if quality else opened.no_quality()
        groups = opened.duplicates.get()
        conflicting = groups.rows[groups.conflict[groups.group[groups.rows]]]
        confusions = self._pictures.confusions() if opened.run else None
        marked = opened.marks.current().action > 0
        wrong, outlier = (quality.wrong, quality.outlier) if quality else (None, None)
        base = shlex.quote(opened.dataset.shards_folder.root) if opened.dataset.is_view else None
        return [
            _queue("suspects", "Suspects", wrong, marked, no_quality),
            _queue("outliers", "Outliers", outlier, marked, no_quality),
            Queue("duplicates", "Duplicates", "groups", len(groups.conflict), int(marked[groups.rows].sum())),
            Queue("conflicts", "Label conflicts", "groups", int(groups.conflict.sum()), int(marked[conflicting].sum())),
            Queue(
                *("confusions", "Confusions", "groups"),
                count=len(confusions.targets) if confusions else None,
                marked=int(marked[confusions.rows].sum()) if confusions else 0,
                absent=None if confusions else opened.no_run(),
            ),
            Queue(
                *("rejects", "Rejects", "files"),
                count=None if base else opened.dataset.manifest["counts"]["rejected"],
                absent=f"a view has no rejects of its own: `lmk-shard browse {base}` has" if base else None,
            ),
        ]

    def groups(self, query: GroupQuery) -> Page[GroupRow]:
        """Return a page of groups. Raises UserError for a queue without groups, or without a run."""
        part = page_slice(query.page, query.page_size)
        if query.queue == "confusions":
            total = len(self._pictures.confusions().targets)
            return Page([self._confusion(place) for place in range(total)[part]], total, query.page, query.page_size)
        if query.queue not in ("duplicates", "conflicts"):
            raise UserError(f"queue {str(query.queue)[:80]!r}: has no groups")
        conflict = self._opened.duplicates.get().conflict
        chosen = np.flatnonzero(conflict) if query.queue == "conflicts" else np.arange(len(conflict))
        items = [self._duplicates(int(group)) for group in chosen[part]]
        return Page(items, len(chosen), query.page, query.page_size)

    def rejects(self, page: int, page_size: int) -> Page[RejectRow]:
        """Return a page of the planned pictures that were not written; none for a view."""
        part, table = page_slice(page, page_size), self._rejects.get()
        names = self._opened.classes.names
        rows = table.iloc[part].to_dict("records")
        items = [
            RejectRow(
                key=row["key"],
                source=row["source"],
                landmark_id=str(row["landmark_id"]),
                class_name=names[row["label"]],
                split=row["split"],
                reason=row["reason"],
                detail=row["detail"] if isinstance(row["detail"], str) else "",
            )
            for row in rows
        ]
        return Page(items, len(table), page, page_size)

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


def _queue(
    name: QueueName, title: str, chosen: NDArray[np.bool_] | None, marked: NDArray[np.bool_], absent: str | None
) -> Queue:
    """Return a queue of chosen pictures, bool [N], None without what chooses them; `marked` are all marked ones."""
    count, done = (None, 0) if chosen is None else (int(chosen.sum()), int((chosen & marked).sum()))
    return Queue(name, title, "pictures", count, done, absent)
