"""Pictures: which ones a query asks for and in which order, and the data of their badges."""

from collections.abc import Sequence
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from lmk_data.browse.classes import known, page_slice
from lmk_data.browse.confusions import Confusions, confusions_of
from lmk_data.browse.duplicates import DuplicateGroups
from lmk_data.browse.lazy import Lazy
from lmk_data.browse.marked import EXCLUDE, RELABEL
from lmk_data.browse.opened import Opened, label_of
from lmk_data.browse.records import (
    ClassName,
    Flag,
    Marked,
    MarkFilter,
    Page,
    PictureQuery,
    PictureRow,
    PictureSort,
    Prediction,
    QueueName,
)
from lmk_data.errors import UserError

_FIRST = np.uint64(0x9E3779B97F4A7C15)
_SECOND = np.uint64(0xBF58476D1CE4E5B9)


class Pictures:
    """The pictures of a dataset."""

    def __init__(self, opened: Opened) -> None:
        self._opened = opened
        self._confusions = Lazy(lambda: confusions_of(opened.need_run(), opened.samples.labels))

    def page(self, query: PictureQuery) -> Page[PictureRow]:
        """Return a page of the pictures that a query asks for. Raises KeyError for an unknown label or group."""
        part = page_slice(query.page, query.page_size)
        rows = self.matching(query)
        return Page(self.rows(rows[part]), len(rows), query.page, query.page_size)

    def matching(self, query: PictureQuery) -> NDArray[np.int32]:
        """Return the rows that a query asks for, in its order, int32 [M]."""
        rows = self._chosen(query)
        samples = self._opened.samples
        if query.split is not None:
            start, end = samples.range_of(query.split)
            rows = rows[(rows >= start) & (rows < end)]
        if query.flag is not None:
            rows = rows[self._has_flag(query.flag, rows)]
        if query.mark is not None:
            rows = rows[self._has_mark(query.mark, rows)]
        defaults: dict[QueueName | None, PictureSort] = {"suspects": "suspicion", "outliers": "outlier"}
        sort = query.sort or defaults.get(query.queue)
        return rows if sort is None else rows[self._order(sort, rows, query.seed)]

    def confusions(self) -> Confusions:
        """Return the confusions of the run. Raises UserError without one."""
        return self._confusions.get()

    def rows(self, rows: NDArray[np.int32] | Sequence[int]) -> list[PictureRow]:
        """Return what is shown of these rows."""
        opened = self._opened
        widths, heights = opened.samples.numbers("original_width"), opened.samples.numbers("original_height")
        marks, groups = opened.marks.current(), opened.duplicates.peek()
        shown = []
        for row in map(int, rows):
            key, label = opened.samples.keys.key(row), int(opened.samples.labels[row])
            name, mark = opened.classes[label], marks.marks.get(key)
            group = int(groups.group[row]) if groups else -1
            suspect, score, outlier, outlier_score = self._judged(row)
            prediction = self._prediction(row)
            shown.append(
                PictureRow(
                    key=key,
                    label=label,
                    landmark_id=name.landmark_id,
                    class_name=name.name,
                    split=opened.samples.split_of(row),
                    width=int(widths[row]),
                    height=int(heights[row]),
                    duplicates=self.group_id(groups, group) if groups and group >= 0 else None,
                    conflict=bool(groups and group >= 0 and groups.conflict[group]),
                    suspect=suspect,
                    wrong_label_score=score,
                    proposed=self.proposed(row) if suspect else None,
                    outlier=outlier,
                    outlier_score=outlier_score,
                    prediction=prediction,
                    correct=None if prediction is None else prediction.predicted.label == label,
                    mark=None if mark is None else Marked(mark.action, self._named(mark.landmark_id), mark.note),
                )
            )
        return shown

    def group_id(self, groups: DuplicateGroups, group: int) -> str:
        """Return the id of a group of duplicates: the key of its first picture, whichever groups are known."""
        return self._opened.samples.keys.key(int(groups.rows[groups.starts[group]]))

    def proposed(self, row: int) -> ClassName | None:
        """Return the class that the inspection finds to fit best among the others."""
        quality = self._opened.quality
        return self._opened.classes.get(int(quality.other[row])) if quality else None

    def _judged(self, row: int) -> tuple[bool, float | None, bool, float | None]:
        """Return whether a row is suspect and its score, whether it is an outlier and its score."""
        quality = self._opened.quality
        if quality is None:
            return False, None, False, None
        outlier, score = bool(quality.outlier[row]), known(quality.outlier_score[row])
        return bool(quality.wrong[row]), known(quality.score[row]), outlier, score

    def _prediction(self, row: int) -> Prediction | None:
        run = self._opened.run
        if run is None or run.best[row] < 0:
            return None
        return Prediction(run.name_of(int(run.best[row])), known(run.probability[row]) or 0.0)

    def _named(self, landmark_id: str) -> ClassName | None:
        """Return the class of a landmark id, None for the empty one of a mark that only excludes."""
        label = self._opened.labels.get(landmark_id)
        if label is None:
            return ClassName(None, landmark_id, landmark_id) if landmark_id else None
        return self._opened.classes[label]

    def _chosen(self, query: PictureQuery) -> NDArray[np.int32]:
        """Return the rows of the class, queue or group that a query names."""
        opened = self._opened
        if query.label is not None:
            return opened.samples.of_label(label_of(opened.classes.ids, query.label))
        if query.queue is None:
            return np.arange(len(opened.samples), dtype=np.int32)
        if query.queue == "suspects":
            return np.flatnonzero(opened.need_quality().wrong).astype(np.int32)
        if query.queue == "outliers":
            return np.flatnonzero(opened.need_quality().outlier).astype(np.int32)
        if query.queue == "confusions":
            confusions = self.confusions()
            return confusions.rows if query.group is None else confusions.rows_of(query.group)
        if query.queue not in ("duplicates", "conflicts"):
            raise UserError(f"queue {str(query.queue)[:80]!r}: has no pictures")
        groups = opened.duplicates.get()
        if query.group is not None:
            return groups.rows_of(int(groups.group[opened.samples.keys.row(query.group)]))
        rows = groups.rows
        return rows[groups.conflict[groups.group[rows]]] if query.queue == "conflicts" else rows

    def _has_flag(self, flag: Flag, rows: NDArray[np.int32]) -> NDArray[np.bool_]:
        opened = self._opened
        has: NDArray[np.bool_]
        if flag == "misclassified":
            return opened.need_run().wrong(opened.samples.labels, rows)
        if flag in ("duplicate", "conflict"):
            groups = opened.duplicates.get()
            group = groups.group[rows]
            has = group >= 0
            return has & np.append(groups.conflict, False)[group] if flag == "conflict" else has
        if flag not in get_args(Flag):
            raise UserError(f"flag {str(flag)[:80]!r}: none of {', '.join(get_args(Flag))}")
        quality = opened.need_quality()
        has = (quality.wrong if flag == "suspect" else quality.outlier)[rows]
        return has

    def _has_mark(self, mark: MarkFilter, rows: NDArray[np.int32]) -> NDArray[np.bool_]:
        action = self._opened.marks.current().action[rows]
        masks: dict[str, NDArray[np.bool_]] = {
            "any": action > 0,
            "none": action == 0,
            "exclude": action == EXCLUDE,
            "relabel": action == RELABEL,
        }
        if mark not in masks:
            raise UserError(f"mark {str(mark)[:80]!r}: none of {', '.join(masks)}")
        return masks[mark]

    def _order(self, sort: PictureSort, rows: NDArray[np.int32], seed: int) -> NDArray[np.int64]:
        """Return the order of rows, int64 [M]: unknown scores last, ties by row."""
        if sort not in get_args(PictureSort):
            raise UserError(f"sort {str(sort)[:80]!r}: none of {', '.join(get_args(PictureSort))}")
        if sort == "index":
            return np.argsort(rows)
        if sort == "random":  # a hash of each row: marking some does not shuffle the others
            mixed = (rows.astype(np.uint64) + np.uint64(seed * int(_SECOND) % 2**64)) * _FIRST
            mixed = (mixed ^ (mixed >> np.uint64(29))) * _SECOND
            return np.argsort(mixed ^ (mixed >> np.uint64(32)))
        if sort == "outlier":
            return np.lexsort((rows, -self._opened.need_quality().outlier_score[rows]))
        return np.lexsort((rows, -self._suspicion(rows)))

    def _suspicion(self, rows: NDArray[np.int32]) -> NDArray[np.float32]:
        """Return how suspicious labels are, float32 [M]: by the inspection, else by wrong predictions of the run."""
        opened = self._opened
        if opened.quality is not None:
            return opened.quality.score[rows]
        wrong = opened.need_run().wrong(opened.samples.labels, rows)
        return np.where(wrong, opened.need_run().probability[rows], np.float32(0))
