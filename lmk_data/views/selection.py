"""Choose a part of a dataset: rules to classes and rows, with labels numbered densely."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from lmk_data.dataset.format import CLASSES, SPLITS, fingerprint_of
from lmk_data.dataset.reader import ShardedDataset
from lmk_data.errors import UserError
from lmk_data.options import Selection
from lmk_data.system.storage import read_file
from lmk_data.views.duplicates import find_duplicates

_SHOWN_UNKNOWN = 5


@dataclass(frozen=True)
class Subset:
    """What a selection leaves of a dataset, relabelled densely.

    `classes` as classes.parquet has them; `rows` the label index of each split that has samples, in shard order.
    `steps` and `removed` lead from the root dataset here: its manifest's `view_of.selection` and `.removed`.
    """

    classes: pd.DataFrame
    rows: dict[str, pa.Table]
    steps: list[dict[str, Any]]
    removed: dict[str, Any]


def read_class_list(path: str) -> tuple[str, ...]:
    """Landmark ids as strings from a text file with one a line, or the `landmark_id` column of a CSV or Parquet."""
    try:
        data = read_file(path)
    except OSError as error:
        raise UserError(f"--classes {path}: cannot be read: {error.strerror or error}") from error
    try:
        if data[:4] == b"PAR1":
            column = pq.read_table(pa.BufferReader(data), columns=["landmark_id"])["landmark_id"]
            return tuple(pc.cast(column, pa.string()).to_pylist())
        lines = data.decode("utf-8-sig").splitlines()
        if lines and "landmark_id" in lines[0].split(","):
            convert = pa.csv.ConvertOptions(column_types={"landmark_id": pa.string()}, include_columns=["landmark_id"])
            return tuple(pa.csv.read_csv(pa.BufferReader(data), convert_options=convert)["landmark_id"].to_pylist())
    except (pa.ArrowException, ValueError, KeyError) as error:
        raise UserError(f"--classes {path}: not a list of classes: {str(error).splitlines()[0]}") from error
    return tuple(line.strip() for line in lines if line.strip())


def selection_json(selection: Selection) -> dict[str, Any]:
    """Return the rules that were given, for the manifest; a list of classes as their number and a hash."""
    rules = ("min_samples", "top", "drop_duplicates", "max_per_class")
    given: dict[str, Any] = {name: getattr(selection, name) for name in rules}
    if selection.classes is not None:
        chosen = sorted(set(selection.classes))
        given["classes"] = {"num_classes": len(chosen), "sha256": fingerprint_of({"classes": chosen})}
    return {name: value for name, value in given.items() if value is not None}


def select(
    dataset: ShardedDataset,
    selection: Selection,
    *,
    by_size: bool = False,
    workers: int | None = None,
    quiet: bool = True,
) -> Subset:
    """Apply a selection to a dataset or a view; UserError if it names unknown classes or leaves nothing.

    A class of which no image is left is left out too. Labels are in the order that they had or, `by_size`, that of a
    dataset of its own. `workers` threads compare pictures for near duplicates.
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
        raise UserError(f"{dataset.location}: this selection leaves no training image")
    kept, rows = _relabelled(dataset.classes, rows, by_size=by_size)
    removed: dict[str, Any] = {"classes": len(root) - len(kept)}
    removed |= {split: int(root[split].sum()) - int(kept[split].sum()) for split in SPLITS}
    earlier = dataset.manifest["view_of"] if dataset.is_view else {"selection": [], "removed": {}}
    step = selection_json(selection)
    steps = [*earlier["selection"], *([step] if step else [])]
    if any("drop_duplicates" in step for step in steps):
        before = earlier["removed"].get("duplicates", {})
        removed["duplicates"] = {split: before.get(split, 0) + len(superfluous.get(split, [])) for split in SPLITS}
    return Subset(kept, rows, steps, removed)


def _choose(classes: pd.DataFrame, selection: Selection, where: str) -> pd.DataFrame:
    """The classes that a selection keeps, in order of their labels."""
    kept = classes
    if selection.classes is not None:
        wanted = set(selection.classes)
        known = kept["landmark_id"].astype(str)
        if unknown := sorted(wanted - set(known)):
            shown = ", ".join(unknown[:_SHOWN_UNKNOWN])
            raise UserError(f"--classes: {len(unknown):,} are not in {where}, such as {shown}")
        kept = kept[known.isin(wanted)]
    if selection.min_samples is not None:
        kept = kept[kept["root_listed"] >= selection.min_samples]
    if selection.top is not None:
        kept = kept.sort_values("root_listed", ascending=False, kind="stable").head(selection.top).sort_index()
    if kept.empty:
        largest = int(classes["root_listed"].max())
        raise UserError(f"{where}: this selection leaves no class; the largest has {largest:,} images")
    return kept


def _superfluous(
    dataset: ShardedDataset, selection: Selection, labels: "np.ndarray[Any, Any]", workers: int | None, quiet: bool
) -> dict[str, Any]:
    """The rows of each split that dropping duplicates takes from the classes kept."""
    if selection.drop_duplicates is None:
        return {}
    found = find_duplicates(dataset, selection.drop_duplicates, workers=workers, quiet=quiet)
    superfluous = found.among(labels).superfluous()
    return {str(split): part["row"].to_numpy() for split, part in superfluous.groupby("split")}


def _relabelled(
    classes: pd.DataFrame, rows: dict[str, pa.Table], *, by_size: bool
) -> tuple[pd.DataFrame, dict[str, pa.Table]]:
    """The classes that these rows are of, with their counts, and the rows; labels are dense, in the order they had or
    by descending size, ties by landmark id."""
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
    for split, table in rows.items():
        label = pa.array(new_label[table["label"].to_numpy()], pa.int32())
        rows[split] = table.set_column(table.column_names.index("label"), "label", label)
    return kept.assign(label=kept.index.to_numpy(np.int32)), rows


def _root_classes(dataset: ShardedDataset) -> pd.DataFrame:
    """The classes of the dataset that holds the shards, by landmark id."""
    if not dataset.is_view:
        return dataset.classes.set_index("landmark_id")
    with dataset.shards_folder.open(CLASSES) as file:
        frame: pd.DataFrame = pq.read_table(file).to_pandas()
    return frame.set_index("landmark_id")


def subset_counts(subset: Subset) -> dict[str, int]:
    """The manifest's `counts` of a view or a copy: what was selected is listed, and all of it is there."""
    num_samples = int(subset.classes["listed"].sum())
    return {
        "listed": num_samples,
        "below_min_samples": 0,
        "outside_top": 0,
        "rejected": 0,
        "written": num_samples,
    }
