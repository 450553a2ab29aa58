"""Figures of data quality: duplicates by kind, label conflicts, leakage, and the groups that are worth a look."""

from dataclasses import dataclass

import pandas as pd

from lmk_data.dataset.reader import ShardedDataset
from lmk_data.options import DuplicateKind
from lmk_data.views.duplicates import Duplicates, find_duplicates

_KINDS: tuple[DuplicateKind, ...] = ("exact", "near")
_MAX_GROUPS, _MAX_SAMPLES = 8, 8


@dataclass(frozen=True)
class Leakage:
    """Number and share of the samples of a split that have a duplicate in training."""

    num_samples: int
    share: float


@dataclass(frozen=True)
class DuplicateFigures:
    """Numbers of duplicates of one kind; `leaked` has an entry for each split except train."""

    groups: int
    samples: int
    superfluous: int
    groups_with_several_labels: int
    leaked: dict[str, Leakage]


@dataclass(frozen=True)
class DuplicateSample:
    """A sample of a group of duplicates; `row` is its row in the index of the split."""

    split: str
    row: int
    label: int
    key: str


@dataclass(frozen=True)
class DuplicateGroup:
    """A group of duplicates, and what is wrong with it; of large groups only the first samples."""

    what: str
    samples: list[DuplicateSample]


@dataclass(frozen=True)
class Quality:
    """Figures by kind of duplicates (`near` includes exact ones), and the groups that are worth a look."""

    duplicates: dict[str, DuplicateFigures]
    duplicate_groups: list[DuplicateGroup]


def assess(dataset: ShardedDataset, *, workers: int | None = None, quiet: bool = True) -> Quality:
    """Find exact and near duplicates in a dataset or a view. Raises DatasetError if an image cannot be read."""
    exact, near = (find_duplicates(dataset, kind, workers=workers, quiet=quiet) for kind in _KINDS)
    return Quality({found.kind: _count(dataset, found) for found in (exact, near)}, _worth_a_look(near))


def _count(dataset: ShardedDataset, duplicates: Duplicates) -> DuplicateFigures:
    num_leaked = duplicates.leaked()["split"].value_counts()
    return DuplicateFigures(
        groups=duplicates.num_groups,
        samples=len(duplicates.samples),
        superfluous=len(duplicates.superfluous()),
        groups_with_several_labels=int(duplicates.conflicts()["group"].nunique()),
        leaked={
            split: Leakage(number, round(number / dataset.num_samples(split), 6))
            for split, number in ((split, int(num_leaked.get(split, 0))) for split in dataset.splits)
            if split != "train"
        },
    )


def _worth_a_look(duplicates: Duplicates) -> list[DuplicateGroup]:
    """Return groups with several labels first, then leaking ones, then others; the largest first."""
    samples = duplicates.samples
    if samples.empty:
        return []
    several = samples.groupby("group")["label"].nunique() > 1
    leaking = samples["group"].isin(duplicates.leaked()["group"]).groupby(samples["group"]).any()
    size = samples.groupby("group").size()
    order = pd.DataFrame({"several": several, "leaking": leaking, "size": size}).sort_values(
        ["several", "leaking", "size"], ascending=False, kind="stable"
    )
    groups = []
    for group, row in order.head(_MAX_GROUPS).iterrows():
        problems = [text for text, holds in (("several labels", row["several"]), ("leakage", row["leaking"])) if holds]
        what = f"{row['size']} pictures" + (f": {', '.join(problems)}" if problems else "")
        groups.append(DuplicateGroup(what, _first_samples(samples[samples["group"] == group])))
    return groups


def _first_samples(group: pd.DataFrame) -> list[DuplicateSample]:
    columns = group.head(_MAX_SAMPLES)[["split", "row", "label", "key"]]
    return [
        DuplicateSample(str(split), int(row), int(label), str(key))
        for split, row, label, key in columns.itertuples(index=False, name=None)
    ]
