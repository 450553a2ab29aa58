"""What is open: a dataset, and what a run, an inspection and a marks file say of it."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from lmk_data.browse.duplicates import DuplicateGroups
from lmk_data.browse.lazy import Lazy
from lmk_data.browse.marked import Marks
from lmk_data.browse.quality_files import QualityFiles
from lmk_data.browse.records import ClassName
from lmk_data.browse.run_files import RunFiles
from lmk_data.browse.samples import Samples
from lmk_data.dataset.reader import ShardedDataset
from lmk_data.errors import UserError


@dataclass(frozen=True)
class ClassNames:
    """The K classes of a dataset, in order of labels: landmark ids as text, and names (the id without one)."""

    ids: list[str]
    names: list[str]

    @classmethod
    def of_dataset(cls, dataset: ShardedDataset) -> "ClassNames":
        """Return the classes of a dataset."""
        ids = [str(landmark_id) for landmark_id in dataset.classes["landmark_id"].tolist()]
        names = dataset.classes["name"].tolist()
        return cls(ids, [name if isinstance(name, str) and name else id_ for name, id_ in zip(names, ids, strict=True)])

    def __getitem__(self, label: int) -> ClassName:
        """Return the class of a label."""
        return ClassName(label, self.ids[label], self.names[label])

    def get(self, label: int) -> ClassName | None:
        """Return the class of a label, None for -1."""
        return self[label] if label >= 0 else None


@dataclass
class Opened:
    """A dataset and everything that is known of it.

    `exact` are the exact duplicates, `duplicates` the same until near ones were looked for, then these.
    """

    dataset: ShardedDataset
    samples: Samples
    classes: ClassNames
    labels: dict[str, int]
    run: RunFiles | None
    quality: QualityFiles | None
    marks: Marks
    exact: Lazy[DuplicateGroups]
    duplicates: Lazy[DuplicateGroups]

    def no_run(self) -> str:
        """Return what opens a run, for pages that need one."""
        here = shlex.quote(self.dataset.location)
        return f"no run is open: `lmk-eval RUN --shards {here}`, then `lmk-shard browse {here} --run RUN`"

    def no_quality(self) -> str:
        """Return what makes and opens an inspection, for pages that need one."""
        here, run = shlex.quote(self.dataset.location), f"{shlex.quote(str(self.run.path))} " if self.run else ""
        make = f"lmk-inspect {run}--shards {here} --out DIR"
        return f"no inspection is open: `{make}`, then `lmk-shard browse {here} --quality DIR`"

    def need_run(self) -> RunFiles:
        """Return the run. Raises UserError that says which command gives one."""
        if self.run is None:
            raise UserError(self.no_run())
        return self.run

    def need_quality(self) -> QualityFiles:
        """Return the inspection. Raises UserError that says which command makes one."""
        if self.quality is None:
            raise UserError(self.no_quality())
        return self.quality


def label_of(labels: Sequence[str], label: int) -> int:
    """Return a label. Raises KeyError if there is no such class."""
    if not 0 <= label < len(labels):
        raise KeyError(label)
    return label
