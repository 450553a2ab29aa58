"""Choose a part of a dataset: from rules to classes and rows, with dense labels."""

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from lmk_data.dataset.format import MARKED_SIZE, SPLITS, Counts, Relabelled, Removed, SelectionStep, fingerprint_of
from lmk_data.dataset.reader import ShardedDataset
from lmk_data.errors import DatasetError, UserError
from lmk_data.options import Selection
from lmk_data.typed_text import normal_series, normal_text
from lmk_data.views.duplicates import find_duplicates
from lmk_data.views.marking import BASE_ID, MarkedLabels, marked_labels, relabelled, root_dataset, with_base_ids

_OF_SAMPLES = {"include", "exclude", "marks"}  # rules that name samples
_SHOWN_UNKNOWN = 5


@dataclass(frozen=True)
class Subset:
    """What a selection leaves of a dataset, with dense labels.

    `classes` has the columns of classes.parquet. `rows` is the label index of each split that has samples, in shard
    order. `steps` and `removed` are the manifest's `view_of.selection` and `view_of.removed`: they lead from the
    dataset that holds the shards to this subset. `relabelled` is `view_of.relabelled`, None if there were no marks.
    """

    classes: pd.DataFrame
    rows: dict[str, pa.Table]
    steps: list[SelectionStep]
    removed: Removed
    relabelled: Relabelled | None = None

    def origin(self) -> dict[str, Any]:
        """Return what the manifest of a view or a copy states of the selections that led to it."""
        stated: dict[str, Any] = {"selection": self.steps, "removed": self.removed}
        return stated if self.relabelled is None else {**stated, "relabelled": self.relabelled}


def selection_json(selection: Selection) -> SelectionStep:
    """Return the rules that were given, for the manifest; lists and marks as their numbers and a hash."""
    rules = ("min_samples", "top", "drop_duplicates", "max_per_class")
    given: dict[str, Any] = {name: getattr(selection, name) for name in rules}
    if selection.classes is not None:
        chosen = sorted(set(selection.classes))
        given["classes"] = {"num_classes": len(chosen), "sha256": fingerprint_of({"classes": chosen})}
    for name, listed in (("include", selection.include), ("exclude", selection.exclude)):
        if listed is not None:
            keys = sorted(set(listed))
            given[name] = {"num_keys": len(keys), "sha256": fingerprint_of({"keys": keys})}
    if selection.marks is not None:
        marks = [[key, mark.action, mark.landmark_id] for key, mark in sorted(selection.marks.items())]
        given["marks"] = {
            "num_excluded": sum(action == "exclude" for _, action, _ in marks),
            "num_relabelled": sum(action == "relabel" for _, action, _ in marks),
            "sha256": fingerprint_of({"marks": marks}),
        }
    return cast(SelectionStep, {name: value for name, value in given.items() if value is not None})


def select(
    dataset: ShardedDataset,
    selection: Selection,
    *,
    by_size: bool = False,
    workers: int | None = None,
    quiet: bool = True,
) -> Subset:
    """Return what a selection leaves of a dataset or a view. Classes without images are left out.

    Raises UserError if the selection names unknown classes or keys, or leaves nothing.

    Args:
        dataset: the dataset or view to select from.
        selection: which classes and images to keep, and which labels to change.
        by_size: number the classes by descending size, as in a dataset that is built; otherwise keep their order.
        workers: threads that compare pictures for near duplicates; by default one per core.
        quiet: show no progress.
    """
    root, marked = root_dataset(dataset), marked_labels(dataset, selection, quiet=quiet)
    classes = dataset.classes.assign(size=_sizes(dataset, root, marked))
    wanted = _choose(classes, selection, dataset.location)["label"].to_numpy()
    superfluous: dict[str, NDArray[np.int64]] = {}
    if (kind := selection.drop_duplicates) is not None:
        labels = marked.labels if marked else None
        duplicates = find_duplicates(dataset, kind, labels=labels, workers=workers, quiet=quiet)
        of_splits = duplicates.among(wanted).superfluous().groupby("split")
        superfluous = {str(split): part["row"].to_numpy() for split, part in of_splits}
    rows = {}
    for split in dataset.splits:
        table = _with_marks(dataset.index_table(split), split, dataset, root, marked)
        cap = selection.max_per_class if split == "train" else None
        chosen = _chosen(table["label"].to_numpy(), wanted, superfluous.get(split), cap)
        if chosen.any():
            rows[split] = table.filter(pa.array(chosen))
    if "train" not in rows:
        raise UserError(f"{dataset.location}: this selection leaves no training image; choose more")
    kept, rows = _with_dense_labels(classes, rows, by_size=by_size)
    step = selection_json(selection)
    steps = [*(dataset.manifest["view_of"]["selection"] if dataset.is_view else []), *([step] if step else [])]
    of_samples = {
        "marked": {split: marked.num_removed(split) if marked else 0 for split in SPLITS},
        "duplicates": {split: len(superfluous.get(split, [])) for split in SPLITS},
    }
    removed = _removed(dataset, root, kept, steps, of_samples)
    if "marked" in removed:
        kept = kept.assign(**{MARKED_SIZE: kept["size"].astype(np.int32)})
    moved = relabelled(rows) if selection.marks is not None or _is_relabelled(dataset) else None
    rows = {
        split: table.select([name for name in table.column_names if name != BASE_ID]) for split, table in rows.items()
    }
    return Subset(kept.drop(columns="size"), rows, steps, removed, moved)


def _removed(
    dataset: ShardedDataset,
    root: ShardedDataset,
    kept: pd.DataFrame,
    steps: list[SelectionStep],
    of_samples: dict[str, dict[str, int]],
) -> Removed:
    """Return how many classes and samples a selection leaves out.

    Args:
        dataset: what is selected from.
        root: the dataset that it is a view of, or itself.
        kept: the classes that are left, with their samples by split.
        steps: all selections that led here, this one last.
        of_samples: how many samples this one leaves out by split, `marked` and as `duplicates`.
    """
    removed: dict[str, Any] = {"classes": len(root.classes) - len(kept)}
    removed |= {split: int(root.classes[split].sum()) - int(kept[split].sum()) for split in SPLITS}
    if any(step.keys() & _OF_SAMPLES for step in steps):
        removed["marked"] = _with_earlier(dataset, "marked", of_samples["marked"])
    if any("drop_duplicates" in step for step in steps):
        removed["duplicates"] = _with_earlier(dataset, "duplicates", of_samples["duplicates"])
    return cast(Removed, removed)


def _is_relabelled(dataset: ShardedDataset) -> bool:
    """Return whether marks led to a dataset, so that its samples may have other classes than in the base."""
    return dataset.is_view and "relabelled" in dataset.manifest["view_of"]


def _with_marks(
    table: pa.Table, split: str, dataset: ShardedDataset, root: ShardedDataset, marked: MarkedLabels | None
) -> pa.Table:
    """Return the index of a split with the labels after marks, and with `BASE_ID` if there are or were any."""
    if _is_relabelled(dataset):
        table = with_base_ids(table, split, root)
    elif marked is not None:
        table = table.append_column(BASE_ID, table["landmark_id"])
    return table if marked is None else _set_column(table, "label", pa.array(marked.labels[split], pa.int32()))


def _sizes(dataset: ShardedDataset, root: ShardedDataset, marked: MarkedLabels | None) -> NDArray[np.int64]:
    """Return the size of each class by which classes are chosen, int64 [K]: images that the root lists, after marks."""
    classes = dataset.classes
    if MARKED_SIZE in classes:
        sizes = classes[MARKED_SIZE]
    else:
        sizes = root.classes.set_index("landmark_id")["listed"].reindex(classes["landmark_id"])
    if sizes.isna().any():
        raise DatasetError(f"{dataset.location}: a class is not in {root.location}; make the view again")
    whole: NDArray[np.int64] = sizes.to_numpy(np.int64)
    return whole if marked is None else marked.sizes(whole)


def _with_earlier(dataset: ShardedDataset, kind: str, counts: dict[str, int]) -> dict[str, int]:
    """Return how many samples of each split were removed for a reason, those of earlier selections included."""
    removed: dict[str, Any] = {**dataset.manifest["view_of"]["removed"]} if dataset.is_view else {}
    earlier = removed.get(kind, {})
    return {split: number + earlier.get(split, 0) for split, number in counts.items()}


def _set_column(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, values)


def _chosen(
    label: NDArray[np.int32], wanted: NDArray[np.int32], superfluous: NDArray[np.int64] | None, cap: int | None
) -> NDArray[np.bool_]:
    """Return which rows have one of the wanted labels and are not superfluous, at most `cap` of a label, bool [N]."""
    chosen = np.isin(label, wanted)
    if superfluous is not None:
        chosen[superfluous] = False
    if cap is not None:
        left = label[chosen]
        chosen[chosen] = pd.Series(left).groupby(left).cumcount() < cap
    return chosen


def _choose(classes: pd.DataFrame, selection: Selection, where: str) -> pd.DataFrame:
    """Return the classes that a selection keeps, in order of their labels."""
    kept = classes
    if selection.classes is not None:
        wanted = {normal_text(name) for name in selection.classes}
        known = normal_series(kept["landmark_id"].astype(str))
        if unknown := sorted(wanted - set(known)):
            shown = ", ".join(unknown[:_SHOWN_UNKNOWN])
            raise UserError(
                f"--classes: {len(unknown):,} are not in {where}, such as {shown}; "
                "the file needs one landmark id a line, or a column landmark_id"
            )
        kept = kept[known.isin(wanted)]
    if selection.min_samples is not None:
        kept = kept[kept["size"] >= selection.min_samples]
    if selection.top is not None:
        kept = kept.sort_values("size", ascending=False, kind="stable").head(selection.top).sort_index()
    if kept.empty:
        largest = int(classes["size"].max())
        raise UserError(f"{where}: this selection leaves no class; the largest has {largest:,} images; choose more")
    return kept


def _with_dense_labels(
    classes: pd.DataFrame, rows: dict[str, pa.Table], *, by_size: bool
) -> tuple[pd.DataFrame, dict[str, pa.Table]]:
    """Return the classes of these rows with their counts, and the rows, both with dense labels and landmark ids.

    The classes keep their order or, `by_size`, are in order of descending size, ties by landmark id.
    """
    kept = classes[["label", "landmark_id", "name", "size"]]
    counts = {
        split: np.bincount(rows[split]["label"].to_numpy(), minlength=len(classes)).astype(np.int32)
        if split in rows
        else np.zeros(len(classes), dtype=np.int32)
        for split in SPLITS
    }
    kept = kept.assign(listed=sum(counts.values()), **counts, rejected=np.int32(0))
    kept = kept[kept["listed"] > 0]
    if by_size:
        kept = kept.sort_values(["listed", "landmark_id"], ascending=[False, True])
    kept = kept.reset_index(drop=True)
    new_label = np.full(len(classes), -1, dtype=np.int32)
    new_label[kept["label"].to_numpy()] = np.arange(len(kept), dtype=np.int32)
    ids, dense = pa.array(kept["landmark_id"]), {}
    for split, table in rows.items():
        label = pa.array(new_label[table["label"].to_numpy()], pa.int32())
        dense[split] = _set_column(_set_column(table, "label", label), "landmark_id", ids.take(label))
    return kept.assign(label=kept.index.to_numpy(np.int32)), dense


def subset_counts(subset: Subset) -> Counts:
    """Return the manifest's `counts` of a view: every selected image is listed, and all of them are there."""
    num_samples = int(subset.classes["listed"].sum())
    return {
        "listed": num_samples,
        "below_min_samples": 0,
        "outside_top": 0,
        "rejected": 0,
        "written": num_samples,
    }
