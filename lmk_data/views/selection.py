"""Choose a part of a dataset: from rules to classes and rows, with dense labels."""

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from lmk_data.dataset.format import SPLITS, Counts, Removed, SelectionStep, fingerprint_of
from lmk_data.dataset.manifest import read_manifest
from lmk_data.dataset.reader import ShardedDataset
from lmk_data.dataset.tables import read_classes
from lmk_data.errors import UserError
from lmk_data.options import Selection
from lmk_data.sources.tables import open_table
from lmk_data.system.storage import read_file
from lmk_data.typed_text import normal_form, normal_series, normal_text
from lmk_data.views.duplicates import find_duplicates

MAX_LIST_BYTES = 64 << 20
_SHOWN_UNKNOWN = 5


@dataclass(frozen=True)
class Subset:
    """What a selection leaves of a dataset, with dense labels.

    `classes` has the columns of classes.parquet. `rows` is the label index of each split that has samples, in shard
    order. `steps` and `removed` are the manifest's `view_of.selection` and `view_of.removed`: they lead from the
    dataset that holds the shards to this subset.
    """

    classes: pd.DataFrame
    rows: dict[str, pa.Table]
    steps: list[SelectionStep]
    removed: Removed


def read_class_list(path: str) -> tuple[str, ...]:
    """Return landmark ids as strings: the lines of a text file, or the column `landmark_id` of a CSV or Parquet file.

    Raises UserError if the file cannot be read or is none of these.
    """
    try:
        data = read_file(path, MAX_LIST_BYTES)
    except OSError as error:
        raise UserError(f"--classes {path}: cannot be read: {error.strerror or error}") from error
    try:
        if data[:4] == b"PAR1" or _has_ids(data, path):
            read = open_table(data, path).rows(["landmark_id"]).columns["landmark_id"]
        else:
            read = pa.chunked_array([data.decode("utf-8-sig").splitlines()], pa.string())
    except (UnicodeDecodeError, UserError) as error:
        raise UserError(f"--classes {path}: not a list of classes: {error}") from error
    return tuple(text for text in normal_form(read).to_pylist() if text)


def _has_ids(data: bytes, path: str) -> bool:
    """Return whether this is a CSV with the column `landmark_id`, and not lines of text."""
    try:
        return "landmark_id" in open_table(data, path).columns
    except UserError:
        return False


def selection_json(selection: Selection) -> SelectionStep:
    """Return the rules that were given, for the manifest; a list of classes as their number and a hash."""
    rules = ("min_samples", "top", "drop_duplicates", "max_per_class")
    given: dict[str, Any] = {name: getattr(selection, name) for name in rules}
    if selection.classes is not None:
        chosen = sorted(set(selection.classes))
        given["classes"] = {"num_classes": len(chosen), "sha256": fingerprint_of({"classes": chosen})}
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

    Raises UserError if the selection names unknown classes or leaves nothing.

    Args:
        dataset: the dataset or view to select from.
        selection: which classes and images to keep.
        by_size: number the classes by descending size, as in a dataset that is built; otherwise keep their order.
        workers: threads that compare pictures for near duplicates; by default one per core.
        quiet: show no progress.
    """
    root = _root_classes(dataset)
    classes = dataset.classes.assign(root_listed=root["listed"].reindex(dataset.classes["landmark_id"]).to_numpy())
    wanted = _choose(classes, selection, dataset.location)["label"].to_numpy()
    superfluous = _superfluous(dataset, selection, wanted, workers, quiet)
    rows = {}
    for split in dataset.splits:
        table = dataset.index_table(split)
        label = table["label"].to_numpy()
        chosen = np.isin(label, wanted)
        chosen[superfluous.get(split, [])] = False
        if split == "train" and selection.max_per_class is not None:
            chosen[chosen] = pd.Series(label[chosen]).groupby(label[chosen]).cumcount() < selection.max_per_class
        if chosen.any():
            rows[split] = table.filter(pa.array(chosen))
    if "train" not in rows:
        raise UserError(f"{dataset.location}: this selection leaves no training image; choose more classes")
    kept, rows = _relabelled(dataset.classes, rows, by_size=by_size)
    removed: dict[str, Any] = {"classes": len(root) - len(kept)}
    removed |= {split: int(root[split].sum()) - int(kept[split].sum()) for split in SPLITS}
    earlier_steps, earlier_duplicates = _history(dataset)
    step = selection_json(selection)
    steps = [*earlier_steps, *([step] if step else [])]
    if any("drop_duplicates" in step for step in steps):
        removed["duplicates"] = {
            split: earlier_duplicates.get(split, 0) + len(superfluous.get(split, [])) for split in SPLITS
        }
    return Subset(kept, rows, steps, cast(Removed, removed))


def _history(dataset: ShardedDataset) -> tuple[list[SelectionStep], dict[str, int]]:
    """Return the selections that led to a view, and how many duplicates they removed from each split."""
    if not dataset.is_view:
        return [], {}
    view_of = dataset.manifest["view_of"]
    return view_of["selection"], view_of["removed"].get("duplicates", {})


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
        kept = kept[kept["root_listed"] >= selection.min_samples]
    if selection.top is not None:
        kept = kept.sort_values("root_listed", ascending=False, kind="stable").head(selection.top).sort_index()
    if kept.empty:
        largest = int(classes["root_listed"].max())
        raise UserError(f"{where}: this selection leaves no class; the largest has {largest:,} images; choose more")
    return kept


def _superfluous(
    dataset: ShardedDataset, selection: Selection, labels: NDArray[np.int32], workers: int | None, quiet: bool
) -> dict[str, NDArray[np.int64]]:
    """Return the rows of each split that dropping duplicates removes from the classes of these labels."""
    if selection.drop_duplicates is None:
        return {}
    duplicates = find_duplicates(dataset, selection.drop_duplicates, workers=workers, quiet=quiet)
    superfluous = duplicates.among(labels).superfluous()
    return {str(split): part["row"].to_numpy() for split, part in superfluous.groupby("split")}


def _relabelled(
    classes: pd.DataFrame, rows: dict[str, pa.Table], *, by_size: bool
) -> tuple[pd.DataFrame, dict[str, pa.Table]]:
    """Return the classes of these rows with their counts, and the rows, both with dense labels.

    The classes keep their order or, `by_size`, are in order of descending size, ties by landmark id.
    """
    kept = classes[["label", "landmark_id", "name"]]
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
    relabelled = {}
    for split, table in rows.items():
        label = pa.array(new_label[table["label"].to_numpy()], pa.int32())
        relabelled[split] = table.set_column(table.column_names.index("label"), "label", label)
    return kept.assign(label=kept.index.to_numpy(np.int32)), relabelled


def _root_classes(dataset: ShardedDataset) -> pd.DataFrame:
    """Return the classes of the dataset that holds the shards, indexed by landmark id."""
    if not dataset.is_view:
        return dataset.classes.set_index("landmark_id")
    base = read_manifest(dataset.shards_folder)
    return read_classes(dataset.shards_folder, base["classes"]["num_classes"]).set_index("landmark_id")


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
