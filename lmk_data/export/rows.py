"""Parts that all exports share: the index by shard, the list of shards, the files to link, and JSON files."""

from collections.abc import Callable
from typing import Any

import pyarrow.compute as pc

from lmk_data.dataset.format import (
    CLASSES,
    ShardEntry,
    canonical_json,
    content_sha256_of,
    index_name,
    write_file,
)
from lmk_data.dataset.reader import ShardedDataset
from lmk_data.dataset.tables import check_keys
from lmk_data.dataset.tar import BLOCK_BYTES
from lmk_data.errors import DatasetError
from lmk_data.options import Dialect
from lmk_data.system.storage import LocalFolder

_COLUMNS = ["key", "label", "landmark_id", "original_width", "original_height", "jpg_offset", "jpg_size"]
Write = Callable[[LocalFolder, str], object]  # writes the file of this name into a folder


class IndexByShard:
    """The label index of a dataset by shard; each split is read once. Raises DatasetError for an unusable index."""

    def __init__(self, dataset: ShardedDataset) -> None:
        self._tables = {split: dataset.index_table(split, _COLUMNS) for split in dataset.splits}
        for split, table in self._tables.items():
            if pc.min(table["jpg_offset"]).as_py() < 3 * BLOCK_BYTES:
                where = dataset.folder.location(index_name(split))
                raise DatasetError(f"{where}: not of these tars; run `lmk-shard verify`")
        check_keys([table["key"] for table in self._tables.values()], dataset.folder.location("index"))
        self._places: dict[str, tuple[str, int, int]] = {}
        for split in dataset.splits:
            start = 0
            for shard in dataset.shards(split):
                self._places[shard["name"]] = (split, start, shard["num_samples"])
                start += shard["num_samples"]

    def rows(self, shard: str) -> list[dict[str, Any]]:
        """Return the rows of the index that describe a shard, in the order of its samples."""
        split, start, number = self._places[shard]
        rows: list[dict[str, Any]] = self._tables[split].slice(start, number).to_pylist()
        return rows


def json_file(value: Any) -> Write:
    """Return a function that writes a value as canonical JSON."""
    return lambda folder, name: write_file(folder, name, canonical_json(value) + b"\n")


def dataset_uuid(dataset: ShardedDataset) -> str:
    """Return an identifier in the form of a UUID, which depends on the content of the dataset."""
    digest = content_sha256_of(dataset.manifest["files"])
    return "-".join((digest[:8], digest[8:12], digest[12:16], digest[16:20], digest[20:32]))


def all_shards(dataset: ShardedDataset) -> list[ShardEntry]:
    """Return the shards of all splits: train, then val, then test."""
    return [shard for split in dataset.splits for shard in dataset.shards(split)]


def linked_files(dataset: ShardedDataset, dialect: Dialect) -> list[str]:
    """Return the files of the dataset that an export links: its tars, and for Croissant its Parquet files."""
    tars = [shard["name"] for shard in all_shards(dataset)]
    if dialect != "croissant":
        return tars
    return [*tars, CLASSES, *(dataset.manifest["splits"][split]["index"] for split in dataset.splits)]
