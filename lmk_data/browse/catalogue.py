"""Everything that `lmk-shard browse` shows, as typed queries over a dataset, a run, an inspection and marks."""

import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from threading import Lock

import pyarrow as pa

from lmk_data.browse.classes import Classes
from lmk_data.browse.details import Details
from lmk_data.browse.duplicates import exact_groups, near_groups, read_stored
from lmk_data.browse.lazy import Lazy
from lmk_data.browse.marked import MAX_CHANGES, Marks
from lmk_data.browse.opened import ClassNames, Opened
from lmk_data.browse.pictures import Pictures
from lmk_data.browse.quality_files import QualityFiles
from lmk_data.browse.queues import Queues
from lmk_data.browse.records import (
    ClassQuery,
    ClassRow,
    Facts,
    GroupQuery,
    GroupRow,
    MarkCounts,
    Page,
    PictureDetail,
    PictureQuery,
    PictureRow,
    Queue,
    RejectRow,
)
from lmk_data.browse.run_files import RunFiles
from lmk_data.browse.samples import Samples
from lmk_data.dataset.reader import ShardedDataset
from lmk_data.decoding import checked_jpeg
from lmk_data.decoding.jpeg import JPEG_START
from lmk_data.errors import DatasetError, UserError
from lmk_data.views.marks import Mark, MarksFile

_BYTES_BESIDE, _BYTES_PER_PIXEL = 64 << 10, 6  # of a stored JPEG: noise at quality 100 has 3 bytes a pixel


class Catalogue:
    """A dataset as people look at it and mark it. Several threads may query at the same time.

    >>> catalogue = Catalogue.open(dataset, run=None, quality=None, marks=MarksFile(Path("marks.csv")))
    >>> catalogue.classes(ClassQuery(search="bridge")).items
    >>> catalogue.mark({"0a1b2c": Mark("exclude")})

    Queries raise KeyError for a key, label or group that is not there, UserError for what needs a run or an inspection
    that is not open, and for values that are none of those declared in `lmk_data.browse.records`.
    """

    def __init__(self, opened: Opened, marks: MarksFile) -> None:
        self._opened, self._marks = opened, marks
        self._classes = Classes(opened)
        self._pictures = Pictures(opened)
        self._queues = Queues(opened, self._pictures)
        self._details = Details(opened, self._pictures)
        self._looking = Lock()

    @classmethod
    def open(cls, dataset: ShardedDataset, *, run: Path | None, quality: Path | None, marks: MarksFile) -> "Catalogue":
        """Open a dataset with the evaluations of a run, an inspection and a marks file.

        Args:
            dataset: the dataset or view.
            run: the folder of a run that `lmk-eval` evaluated; None for none.
            quality: the folder of an inspection; None for none.
            marks: where marks are kept; the file need not exist.

        Raises DatasetError, StorageError or UserError that names the file that is not as it should be.
        """
        samples, names = Samples(dataset), ClassNames.of_dataset(dataset)
        labels = {landmark_id: label for label, landmark_id in enumerate(names.ids)}
        ids = pa.array(names.ids, pa.large_string())
        exact = Lazy(lambda: exact_groups(samples))
        opened = Opened(
            dataset=dataset,
            samples=samples,
            classes=names,
            labels=labels,
            run=None if run is None else RunFiles(run, samples, ids),
            quality=None if quality is None else QualityFiles(quality, samples, ids),
            marks=Marks(marks, samples, labels),
            exact=exact,
            duplicates=exact,
        )
        opened.marks.current()  # a damaged file is said before anything is shown
        return cls(opened, marks)

    def warm(self) -> None:
        """Read what the first pages need: places of pictures and exact duplicates. A server calls it in a thread."""
        samples = self._opened.samples
        for name in ("original_width", "original_height", "jpg_offset", "jpg_size"):
            samples.numbers(name)
        samples.shards()
        self._opened.duplicates.get()

    def find_near_duplicates(self) -> None:
        """Find near duplicates among all pictures, which the queues then show; wait if another thread does so.

        At 1.49 million samples it takes 20 s and 1.2 GB. Raises DatasetError if a picture is damaged.
        """
        with self._looking:
            known = self._opened.duplicates.peek()
            if known is None or known.kind != "near":
                near = Lazy(lambda: near_groups(self._opened.dataset, self._opened.samples))
                near.get()
                self._opened.duplicates = near
                self._classes.forget_duplicates()

    def facts(self) -> Facts:
        """Return what is open, what it covers, and how many pictures are marked."""
        opened, dataset = self._opened, self._opened.dataset
        marks, known = opened.marks.current(), opened.duplicates.peek()
        counts = MarkCounts(int(marks.excluded.sum()), int(marks.relabelled.sum()), marks.elsewhere)
        run, quality = opened.run, opened.quality
        return Facts(
            title=dataset.manifest["title"],
            location=dataset.location,
            is_view=dataset.is_view,
            side=dataset.recipe.size,
            num_samples=len(dataset),
            num_classes=dataset.num_classes,
            splits={split: dataset.num_samples(split) for split in dataset.splits},
            run=None if run is None else str(run.path),
            predicted=0 if run is None else run.covered,
            f1_split=None if run is None else run.f1_split,
            quality=None if quality is None else str(quality.path),
            inspected=0 if quality is None else quality.covered,
            features=self._details.has_features,
            duplicates=None if known is None else known.kind,
            marks=str(self._marks.path),
            marked=counts,
            subset_line=self._subset_line(),
        )

    def classes(self, query: ClassQuery) -> Page[ClassRow]:
        """Return a page of classes."""
        return self._classes.page(query)

    def class_row(self, label: int) -> ClassRow:
        """Return a class, with the class to show beside it."""
        return self._classes.row(label)

    def complete(self, text: str, limit: int = 10) -> list[ClassRow]:
        """Return classes whose id or name contains a text: equal ones first, then beginnings, each by size."""
        return self._classes.complete(text, limit)

    def pictures(self, query: PictureQuery) -> Page[PictureRow]:
        """Return a page of pictures."""
        return self._pictures.page(query)

    def keys(self, query: PictureQuery) -> list[str]:
        """Return the keys of all pictures that a query asks for, to mark them at once.

        Raises UserError for more than 100,000.
        """
        rows = self._pictures.matching(query)
        if len(rows) > MAX_CHANGES:
            raise UserError(f"{len(rows):,} pictures at once, more than {MAX_CHANGES:,}; choose fewer")
        keys: list[str] = self._opened.samples.keys.keys.take(pa.array(rows)).to_pylist()
        return keys

    def picture(self, key: str) -> PictureDetail:
        """Return everything that is known of a picture."""
        return self._details.detail(self._opened.samples.keys.row(key))

    def queue_names(self) -> list[Queue]:
        """Return the queues, each with its count or with what makes it."""
        return self._queues.all()

    def groups(self, query: GroupQuery) -> Page[GroupRow]:
        """Return a page of groups of duplicates, of label conflicts or of confusions."""
        return self._queues.groups(query)

    def rejects(self, page: int = 0, page_size: int = 100) -> Page[RejectRow]:
        """Return a page of the pictures that the build rejected."""
        return self._queues.rejects(page, page_size)

    def jpeg(self, key: str) -> bytes:
        """Return the stored JPEG of a key of the index, without metadata.

        Raises KeyError for any other key, and DatasetError for a picture that is damaged or not of the dataset's size.
        """
        opened = self._opened
        row, side = opened.samples.keys.row(key), opened.dataset.recipe.size
        num_bytes = int(opened.samples.numbers("jpg_size")[row])
        try:
            if num_bytes > _BYTES_BESIDE + _BYTES_PER_PIXEL * side * side:
                raise ValueError(f"{num_bytes:,} bytes for {side}x{side} pixels")
            data = read_stored(row, opened.dataset, opened.samples)
            if not data.startswith(JPEG_START):
                raise ValueError("not a JPEG")
            return checked_jpeg(data, side)
        except ValueError as error:
            raise DatasetError(f"{key}: cannot be shown ({error}); run `lmk-shard verify`") from error

    def marks_of(self, keys: Iterable[str]) -> dict[str, Mark | None]:
        """Return the mark of each of these keys as it is in the file now."""
        marks = self._opened.marks.current().marks
        return {key: marks.get(key) for key in keys}

    def name_of(self, landmark_id: str) -> str:
        """Return the name of a class, the id itself for a class that the dataset does not have."""
        label = self._opened.labels.get(landmark_id)
        return landmark_id if label is None else self._opened.classes.names[label]

    def settled(self, changes: Mapping[str, Mark | None]) -> dict[str, Mark | None]:
        """Return changes as `mark` saves them. Raises UserError as it does."""
        return self._opened.marks.settled(changes)

    def mark(self, changes: Mapping[str, Mark | None]) -> dict[str, Mark | None]:
        """Set the mark of each key or remove it (None), saved at once; return what these keys had before, for undo.

        A mark with the class that the picture has removes its mark. Raises UserError, and changes nothing, for a key or
        class that the dataset does not have, for more than 100,000 keys, or if the file cannot be written.
        """
        return self._opened.marks.apply(changes)

    def restore(self, before: Mapping[str, Mark | None], after: Mapping[str, Mark | None]) -> dict[str, Mark | None]:
        """Undo a change: put back the marks that keys had before; return what they had now.

        A key that has another mark than after the change keeps it: somebody marked it since. Raises UserError if the
        file cannot be written.
        """
        return self._opened.marks.restore(before, after)

    def _subset_line(self) -> str:
        """Return the command that makes a view of the marks, to paste into a shell."""
        dataset = self._opened.dataset
        location = dataset.location.rstrip("/")
        words = ["lmk-shard", "subset", location, "--marks", str(self._marks.path), "--out", f"{location}-clean"]
        if dataset.is_view and self._needs_base():
            words += ["--base", dataset.shards_folder.root]
        if self._opened.marks.current().elsewhere:  # it is said beside the line, and would be refused otherwise
            words.append("--ignore-unknown")
        return shlex.join(words)

    def _needs_base(self) -> bool:
        """Return whether a view is opened only if its base is named."""
        dataset = self._opened.dataset
        try:
            return ShardedDataset(dataset.folder, dataset.manifest).shards_folder.root != dataset.shards_folder.root
        except DatasetError:
            return True
