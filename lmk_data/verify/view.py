"""Compare a view with the dataset that holds its shards: every row of its indexes, and what it says it relabelled."""

import hashlib
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc

from lmk_data.dataset.format import MANIFEST, SPLITS, Relabelled, index_name
from lmk_data.dataset.reader import ShardedDataset
from lmk_data.errors import DatasetError
from lmk_data.system.storage import Folder
from lmk_data.verify.shard import Problem
from lmk_data.views.marking import NOTHING_RELABELLED, relabelled, root_dataset, with_base_ids

_OWN_COLUMNS = {"label", "landmark_id"}  # a view has labels of its own; its landmark ids are checked together
_READ_BYTES = 1 << 20


def check_against_base(view: ShardedDataset) -> Iterator[Problem]:
    """Check that the rows of a view are rows of the same split of its base, of the same class unless it is relabelled.

    `view_of.relabelled` states how many samples carry another class, and a hash of their keys and classes;
    `view_of.removed` how many samples and classes the base has and the view does not have.
    """
    root = root_dataset(view)
    for split in view.splits:
        if split not in root.splits or not _is_whole(root, index_name(split)):
            yield Problem(
                root.folder.location(index_name(split)), "is not the file that the manifest of the base lists"
            )
            return
    try:
        yield from _check_statements(view, root)
        for split in view.splits:
            yield from _check_columns(view, root, split)
    except DatasetError as error:
        yield Problem(view.location, str(error))


def _check_statements(view: ShardedDataset, root: ShardedDataset) -> Iterator[Problem]:
    """Check what the manifest of a view states of the differences to its base."""
    stated, where = view.manifest["view_of"], view.folder.location(MANIFEST)
    indexes = {split: view.index_table(split, ["key", "landmark_id"]) for split in view.splits}
    actual = relabelled({split: with_base_ids(table, split, root) for split, table in indexes.items()})
    moved = stated.get("relabelled")
    if moved is None and actual["sha256"] != NOTHING_RELABELLED:
        yield Problem(where, f"states no view_of.relabelled, but the indexes have {_shown(actual)} relabelled")
    elif moved is not None and moved != actual:
        yield Problem(where, f"view_of.relabelled is {_shown(moved)}, the indexes have {_shown(actual)}")
    removed = {split: root.num_samples(split) - view.num_samples(split) for split in SPLITS}
    removed["classes"] = root.num_classes - view.num_classes
    if {name: number for name, number in stated["removed"].items() if name in removed} != removed:
        yield Problem(where, f"view_of.removed is not what base and view have: {removed}")


def _shown(moved: Relabelled) -> str:
    """Return the counts of relabelled samples and the beginning of their hash."""
    return f"{moved['train']} + {moved['val']} + {moved['test']} ({moved['sha256'][:12]})"


def _check_columns(view: ShardedDataset, root: ShardedDataset, split: str) -> Iterator[Problem]:
    """Check that the rows of an index state the same as those of the base."""
    table, original = view.index_table(split), root.index_table(split)
    place = pc.index_in(_texts(table["key"]), value_set=_texts(original["key"]).combine_chunks())
    for name in (name for name in original.column_names if name not in _OWN_COLUMNS):
        same = pc.equal(_plain(table[name]), _plain(original[name].take(place)))
        if not pc.all(same).as_py():
            key = table["key"].filter(pc.invert(same))[0].as_py()
            yield Problem(view.folder.location(index_name(split)), f"sample {key}: its {name} is not that of the base")
            return


def _texts(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.cast(column, pa.string())


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column without a dictionary, whose codes differ from table to table."""
    return pc.cast(column, column.type.value_type) if pa.types.is_dictionary(column.type) else column


def _is_whole(dataset: ShardedDataset, name: str) -> bool:
    """Return whether a file of a dataset has the size and hash that its manifest states."""
    entry = dataset.manifest["files"].get(name)
    try:
        return entry is not None and hashed(dataset.folder, name, entry["num_bytes"]) == (
            entry["num_bytes"],
            entry["sha256"],
        )
    except OSError:
        return False


def hashed(folder: Folder, name: str, num_bytes: int) -> tuple[int, str]:
    """Return size and sha256 of a file, which is read no further than a little beyond `num_bytes`."""
    total, digest = 0, hashlib.sha256()
    with folder.open(name) as file:
        while total <= num_bytes and (data := file.read(_READ_BYTES)):
            total += len(data)
            digest.update(data)
    return total, digest.hexdigest()
