"""Apply marks and lists of keys to a dataset: the label of every sample afterwards, and what that removed and moved."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lmk_data.dataset.format import SPLITS, Relabelled
from lmk_data.dataset.manifest import read_manifest
from lmk_data.dataset.reader import ShardedDataset
from lmk_data.errors import DatasetError, UserError
from lmk_data.mark import Mark
from lmk_data.options import Selection
from lmk_data.system.terminal import notice
from lmk_data.typed_text import normal_series, normal_text
from lmk_data.views.marks import named_keys

LEFT_OUT = -1
BASE_ID = "base landmark_id"  # a column beside those of an index
NOTHING_RELABELLED = hashlib.sha256().hexdigest()
_SHOWN_CLASSES = 5
_WHOLE_FLOAT = re.compile(r"(-?\d+)\.0")


@dataclass(frozen=True)
class MarkedLabels:
    """What marks and lists of keys make of a dataset.

    `labels` are those of the dataset, int32 [N] for each split, in the order of its index: the one that a sample
    carries now, or `LEFT_OUT`. `num_before` and `num_after` are how many samples each class has, int64 [K].
    """

    labels: dict[str, NDArray[np.int32]]
    num_before: NDArray[np.int64]
    num_after: NDArray[np.int64]

    def sizes(self, listed: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return how many images each class has after marks, int64 [K], from those that it listed before.

        Rejected images are listed, and stay with their class unless no sample is left of it.
        """
        return np.where(self.num_after > 0, listed + self.num_after - self.num_before, 0)

    def num_removed(self, split: str) -> int:
        """Return how many samples of a split are left out."""
        return int((self.labels[split] == LEFT_OUT).sum()) if split in self.labels else 0


@dataclass(frozen=True)
class _Keys:
    """The keys that one option names, and which of them each sample has: int64 [N] for each split, -1 for none."""

    names: list[str]
    found: dict[str, NDArray[np.int64]] = field(default_factory=dict)

    def look_up(self, split: str, keys: pa.ChunkedArray) -> None:
        place = pc.index_in(keys, value_set=pa.array(self.names, pa.string()))
        self.found[split] = pc.fill_null(place, -1).to_numpy().astype(np.int64)

    def is_known(self) -> NDArray[np.bool_]:
        """Return which of the keys some sample has, bool."""
        known = np.zeros(len(self.names), dtype=np.bool_)
        for place in self.found.values():
            known[place[place >= 0]] = True
        return known


def marked_labels(dataset: ShardedDataset, selection: Selection, *, quiet: bool = True) -> MarkedLabels | None:
    """Return the labels after marks and lists of keys, None if the selection has none of these.

    Raises UserError for keys that the dataset does not have, or that are both left out and relabelled, unless the
    selection ignores these, and for a mark that names a class that the dataset does not have.
    """
    marks, excluded = _without_conflicts(selection, quiet)
    given = {"--include": selection.include, "--exclude": excluded, "--marks": None if marks is None else [*marks]}
    options = {option: _Keys(list(dict.fromkeys(keys))) for option, keys in given.items() if keys is not None}
    if not options:
        return None
    labels: dict[str, NDArray[np.int32]] = {}
    for split in dataset.splits:
        table = dataset.index_table(split, ["key", "label"])
        labels[split] = table["label"].to_numpy().copy()
        for keys in options.values():
            keys.look_up(split, pc.cast(table["key"], pa.string()))
    for option, keys in options.items():
        _report_unknown(option, keys, dataset.location, ignore=selection.ignore_unknown, quiet=quiet)
    before = _class_sizes(labels, dataset.num_classes)
    new_label = _label_of_marks(dataset, marks or {}, options["--marks"]) if "--marks" in options else _no_labels()
    for split, label in labels.items():
        _apply(label, {option: keys.found[split] for option, keys in options.items()}, new_label)
    return MarkedLabels(labels, before, _class_sizes(labels, dataset.num_classes))


def _apply(label: NDArray[np.int32], found: dict[str, NDArray[np.int64]], new_label: NDArray[np.int32]) -> None:
    """Change the labels of a split, int32 [N], in place; `new_label` is that of each mark."""
    if "--marks" in found:
        is_marked = found["--marks"] >= 0
        label[is_marked] = new_label[found["--marks"][is_marked]]
    if "--exclude" in found:
        label[found["--exclude"] >= 0] = LEFT_OUT
    if "--include" in found:
        label[found["--include"] < 0] = LEFT_OUT


def _no_labels() -> NDArray[np.int32]:
    return np.empty(0, dtype=np.int32)


def _class_sizes(labels: dict[str, NDArray[np.int32]], num_classes: int) -> NDArray[np.int64]:
    """Return how many samples each class has, int64 [K]."""
    sizes = np.zeros(num_classes, dtype=np.int64)
    for label in labels.values():
        sizes += np.bincount(label[label >= 0], minlength=num_classes)
    return sizes


def _without_conflicts(selection: Selection, quiet: bool) -> tuple[Mapping[str, Mark] | None, Sequence[str] | None]:
    """Return marks and keys to leave out. Keys that are both relabelled and left out are an error, or ignored."""
    marks, excluded = selection.marks, selection.exclude
    if marks is None or excluded is None:
        return marks, excluded
    both = {key for key in excluded if key in marks and marks[key].action == "relabel"}
    if not both:
        return marks, excluded
    what = f"--exclude and --marks: leave out and relabel {named_keys(sorted(both))}"
    if not selection.ignore_unknown:
        raise UserError(f"{what}; keep one of both, or give --ignore-unknown")
    if not quiet:
        notice(f"{what}; these are ignored")
    kept = {key: mark for key, mark in marks.items() if key not in both}
    return kept, [key for key in excluded if key not in both]


def _report_unknown(option: str, keys: _Keys, where: str, *, ignore: bool, quiet: bool) -> None:
    """Raise UserError for keys that no sample has, or note that they are ignored."""
    unknown = [keys.names[i] for i in np.flatnonzero(~keys.is_known())]
    if unknown and not ignore:
        raise UserError(
            f"{option}: not in {where}: {named_keys(unknown)}; keys are in the column key of its index/*.parquet; "
            "--ignore-unknown goes on without them"
        )
    if unknown and not quiet:
        notice(f"{option}: not in {where}: {named_keys(unknown)}; these are ignored")


def _label_of_marks(dataset: ShardedDataset, marks: Mapping[str, Mark], keys: _Keys) -> NDArray[np.int32]:
    """Return the label that each mark gives, int32: `LEFT_OUT` for those that exclude, or whose key no sample has."""
    ids = dataset.classes["landmark_id"]
    texts = normal_series(ids.astype(str))
    label_of = {text: label for label, text in enumerate(texts.tolist())}
    is_number = pd.api.types.is_integer_dtype(ids)
    new_label = np.full(len(keys.names), LEFT_OUT, dtype=np.int32)
    unknown: dict[str, str] = {}
    for i in np.flatnonzero(keys.is_known()).tolist():
        mark = marks[keys.names[i]]
        if mark.action != "relabel":
            continue
        text = mark.landmark_id if mark.landmark_id in label_of else normal_text(mark.landmark_id)
        if is_number and (whole := _WHOLE_FLOAT.fullmatch(text)):  # as pandas writes integers beside empty cells
            text = whole[1]
        if text in label_of:
            new_label[i] = label_of[text]
        else:
            unknown.setdefault(text, keys.names[i])
    if unknown:
        named = ", ".join(f"{ascii(text)[1:-1]} (for {key})" for text, key in list(unknown.items())[:_SHOWN_CLASSES])
        origin = "; or mark the dataset that the view is of, and choose again" if dataset.is_view else ""
        raise UserError(
            f"--marks: {len(unknown):,} landmark id{'s' * (len(unknown) != 1)} of no class in {dataset.location}, such "
            f"as {named}; relabel as a class that it has{origin}"
        )
    return new_label


def root_dataset(dataset: ShardedDataset) -> ShardedDataset:
    """Return the dataset that holds the shards: the same one, or that which a view points into."""
    if not dataset.is_view:
        return dataset
    return ShardedDataset(dataset.shards_folder, read_manifest(dataset.shards_folder))


def with_base_ids(table: pa.Table, split: str, root: ShardedDataset) -> pa.Table:
    """Return rows of a split that have key, with the column `BASE_ID`: the landmark id of the sample in `root`.

    Raises DatasetError for a key that the split of `root` does not have.
    """
    keys, base = pc.cast(table["key"], pa.string()), root.index_table(split, ["key", "landmark_id"])
    place = pc.index_in(keys, value_set=pc.cast(base["key"], pa.string()).combine_chunks())
    if place.null_count:
        missing = keys.filter(pc.is_null(place))[0].as_py()
        raise DatasetError(f"{root.location}: its {split} split has no sample {missing}, which the view has")
    return table.append_column(BASE_ID, base["landmark_id"].take(place))


def relabelled(rows: Mapping[str, pa.Table]) -> Relabelled:
    """Return how many rows of each split carry another class than in the base, and the hash of these.

    `rows` have key, landmark_id and `BASE_ID`.
    """
    counts = dict.fromkeys(SPLITS, 0)
    moved: list[tuple[str, str]] = []
    for split, table in rows.items():
        keys, ids, base_ids = (pc.cast(table[name], pa.string()) for name in ("key", "landmark_id", BASE_ID))
        changed = pc.not_equal(ids, base_ids)
        moved += zip(keys.filter(changed).to_pylist(), ids.filter(changed).to_pylist(), strict=True)
        counts[split] = int(pc.sum(changed).as_py() or 0)
    digest = hashlib.sha256("".join(f"{key} {landmark_id}\n" for key, landmark_id in sorted(moved)).encode())
    return cast(Relabelled, {**counts, "sha256": digest.hexdigest()})
