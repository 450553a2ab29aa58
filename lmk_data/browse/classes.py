"""Classes: search, sort, filters, and what is known of each."""

import unicodedata
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lmk_data.browse.lazy import Lazy
from lmk_data.browse.marked import MarkedRows
from lmk_data.browse.opened import Opened, label_of
from lmk_data.browse.records import Beside, ClassFilter, ClassQuery, ClassRow, ClassSort, Page
from lmk_data.dataset.format import FEW_BELOW, MANY_ABOVE, SPLITS
from lmk_data.errors import UserError

MAX_PAGE = 1_000


class Classes:
    """The K classes of a dataset as columns."""

    def __init__(self, opened: Opened) -> None:
        self._opened = opened
        self._counts = {split: opened.dataset.classes[split].to_numpy(np.int64) for split in SPLITS}
        self._size: NDArray[np.int64] = np.stack(list(self._counts.values())).sum(axis=0)
        self._texts = Lazy(self._search_texts)
        self._duplicates = Lazy(self._count_duplicates)
        quality, labels, num_classes = opened.quality, opened.samples.labels, len(opened.classes.ids)
        flags = {"suspects": quality.wrong, "outliers": quality.outlier} if quality else {}
        self._flagged = {name: np.bincount(labels[flag], minlength=num_classes) for name, flag in flags.items()}

    def page(self, query: ClassQuery) -> Page[ClassRow]:
        """Return a page of the classes that a query asks for; unknown values are last, ties by label."""
        part = page_slice(query.page, query.page_size)
        labels = self._matching(query.search)
        for name in query.filters:
            labels = labels[self._mask(name)[labels]]
        if query.sort == "name":
            keys = self._texts.get()[1][labels].astype(np.float64)
        else:
            keys = self._column(query.sort)[labels].astype(np.float64)
        ordered = labels[np.argsort(-keys if query.descending else keys, kind="stable")]
        marks = self._opened.marks.current()
        items = [self._row(int(label), marks) for label in ordered[part]]
        return Page(items, len(ordered), query.page, query.page_size)

    def complete(self, text: str, limit: int) -> list[ClassRow]:
        """Return up to `limit` classes whose id or name contains a text: equal ids first, then beginnings, by size."""
        wanted = folded(text)
        labels = self._matching(text)
        texts = self._texts.get()[0].take(pa.array(labels))
        ids = pc.list_element(pc.split_pattern(texts, "\n"), 0)
        names = pc.list_element(pc.split_pattern(texts, "\n"), 1)
        begins = pc.or_(pc.starts_with(ids, wanted), pc.starts_with(names, wanted)).to_numpy(False)
        equals = pc.or_(pc.equal(ids, wanted), pc.equal(names, wanted)).to_numpy(False)
        order = np.lexsort((-self._size[labels], ~begins, ~equals))
        marks = self._opened.marks.current()
        return [self._row(int(label), marks) for label in labels[order[page_slice(0, limit)]]]

    def row(self, label: int) -> ClassRow:
        """Return a class and the class to show beside it. Raises KeyError if there is no such label."""
        row = self._row(label_of(self._opened.classes.ids, label), self._opened.marks.current())
        return replace(row, beside=self._beside(label))

    def forget_duplicates(self) -> None:
        """Count the duplicates again: others are known now."""
        self._duplicates = Lazy(self._count_duplicates)

    def _row(self, label: int, marks: MarkedRows) -> ClassRow:
        opened, name = self._opened, self._opened.classes[label]
        quality, run = opened.quality, opened.run
        duplicates = opened.duplicates.peek() and self._duplicates.get()
        rows = opened.samples.of_label(label)
        return ClassRow(
            label=label,
            landmark_id=name.landmark_id,
            name=name.name,
            num_samples=int(self._size[label]),
            train=int(self._counts["train"][label]),
            val=int(self._counts["val"][label]),
            test=int(self._counts["test"][label]),
            f1=known(run.f1[label]) if run else None,
            purity=known(quality.classes.purity[label]) if quality else None,
            suspects=int(self._flagged["suspects"][label]) if quality else None,
            outliers=int(self._flagged["outliers"][label]) if quality else None,
            clusters=max(int(quality.classes.clusters[label]), 1) if quality else None,
            several=bool(quality and quality.classes.several[label]),
            twin=opened.classes.get(int(quality.classes.twin[label])) if quality else None,
            duplicates=int(duplicates[0][label]) if duplicates else None,
            conflicts=int(duplicates[1][label]) if duplicates else None,
            excluded=int(marks.excluded[label]),
            relabelled=int(marks.relabelled[label]),
            cover=opened.samples.keys.key(int(rows[0])) if len(rows) else None,
        )

    def _beside(self, label: int) -> Beside | None:
        opened, rows = self._opened, self._opened.samples.of_label(label)
        if opened.run is not None:
            wrong = rows[opened.run.wrong(opened.samples.labels, rows)]
            found = most_frequent(opened.run.best[wrong])
            if found is not None:
                return Beside(opened.run.name_of(found[0]), "confused", found[1])
        quality = opened.quality
        if quality is None:
            return None
        if (twin := int(quality.classes.twin[label])) >= 0:
            return Beside(opened.classes[twin], "twin", len(rows))
        closer = quality.other_similarity[rows] > quality.own_similarity[rows]
        other = quality.other[rows]
        found = most_frequent(other[closer & (other >= 0)]) or most_frequent(other[other >= 0])
        return Beside(opened.classes[found[0]], "nearest", found[1]) if found else None

    def _matching(self, search: str) -> NDArray[np.int64]:
        """Return the labels whose id or name contains a text, ascending."""
        wanted = folded(search)
        if not wanted:
            return np.arange(len(self._size))
        return np.flatnonzero(pc.match_substring(self._texts.get()[0], wanted).to_numpy(False))

    def _search_texts(self) -> tuple[pa.Array, NDArray[np.int64]]:
        """Return `id newline name` of each class in the form that is searched, and the place of each by name."""
        classes = self._opened.classes
        pairs = zip(classes.ids, classes.names, strict=True)
        texts = pa.array([f"{folded(landmark_id)}\n{folded(name)}" for landmark_id, name in pairs], pa.large_string())
        names = pc.list_element(pc.split_pattern(texts, "\n"), 1)
        rank = np.empty(len(texts), dtype=np.int64)
        rank[pc.sort_indices(names).to_numpy()] = np.arange(len(texts))
        return texts, rank

    def _count_duplicates(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return how many pictures of each class have a duplicate, and one of another class."""
        groups, labels = self._opened.duplicates.get(), self._opened.samples.labels
        conflicting = groups.rows[groups.conflict[groups.group[groups.rows]]]
        num_classes = len(self._size)
        counts = (np.bincount(labels[rows], minlength=num_classes) for rows in (groups.rows, conflicting))
        return next(counts), next(counts)

    def _column(self, sort: ClassSort) -> NDArray[Any]:
        """Return the values to sort by, [K]."""
        if sort not in get_args(ClassSort):
            raise UserError(f"sort {str(sort)[:80]!r}: none of {', '.join(get_args(ClassSort))}")
        if sort == "label":
            return np.arange(len(self._size))
        if sort == "size":
            return self._size
        if sort in ("duplicates", "conflicts"):
            return self._duplicates.get()[sort == "conflicts"]
        if sort == "marked":
            marks = self._opened.marks.current()
            return marks.excluded + marks.relabelled
        if sort == "f1":
            return self._opened.need_run().f1
        quality = self._opened.need_quality()
        if sort == "purity":
            return quality.classes.purity
        return self._flagged[sort]

    def _mask(self, name: ClassFilter) -> NDArray[np.bool_]:
        """Return which classes a filter keeps, bool [K]."""
        has: NDArray[np.bool_]
        train = self._counts["train"]
        if name in ("suspects", "outliers", "duplicates", "conflicts", "marked"):
            has = self._column(name) > 0
            return has
        if name == "several":
            return self._opened.need_quality().classes.several
        if name == "twin":
            return self._opened.need_quality().classes.twin >= 0
        if name in ("no-val", "no-test"):
            has = self._counts[name.removeprefix("no-")] == 0
            return has
        if name not in get_args(ClassFilter):
            raise UserError(f"filter {str(name)[:80]!r}: none of {', '.join(get_args(ClassFilter))}")
        masks: dict[str, NDArray[np.bool_]] = {"many": train > MANY_ABOVE, "few": train < FEW_BELOW}
        return masks[name] if name in masks else ~masks["many"] & ~masks["few"]


def folded(text: str) -> str:
    """Return a text in the form that is searched: one line, without case and accents."""
    parts = unicodedata.normalize("NFKD", text.casefold())
    return " ".join("".join(part for part in parts if not unicodedata.combining(part)).casefold().split())


def known(number: Any) -> float | None:
    """Return a number, None for NaN."""
    return None if np.isnan(number) else float(number)


def most_frequent(labels: NDArray[np.int32]) -> tuple[int, int] | None:
    """Return the most frequent label and how often it occurs, the lowest of several; None without any."""
    if not len(labels):
        return None
    values, counts = np.unique(labels, return_counts=True)
    best = int(counts.argmax())
    return int(values[best]), int(counts[best])


def page_slice(page: int, page_size: int) -> slice:
    """Return which items of a list are on a page. Raises UserError unless the page has 1 to 1,000, from 0 up."""
    if not 0 <= page < 2**31 or not 1 <= page_size <= MAX_PAGE:
        raise UserError(f"page {page} of {page_size}: pages count from 0 and have 1 to {MAX_PAGE:,} items")
    return slice(page * page_size, (page + 1) * page_size)
