"""What every exporter needs of a dataset: its index by shard, its shards, the files to link, and a JSON file."""

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
from lmk_data.dataset.tar import BLOCK_BYTES
from lmk_data.errors import DatasetError
from lmk_data.options import Dialect
from lmk_data.system.storage import LocalFolder

_COLUMNS = ["key", "label", "landmark_id", "original_width", "original_height", "jpg_offset", "jpg_size"]
Write = Callable[[LocalFolder, str], object]


class IndexByShard:
    """The label index by shard; each split is read once."""

    def __init__(self, dataset: ShardedDataset) -> None:
        self._tables = {split: dataset.index_table(split, _COLUMNS) for split in dataset.splits}
        for split, table in self._tables.items():
            if pc.min(table["jpg_offset"]).as_py() < 3 * BLOCK_BYTES or pc.min(table["jpg_size"]).as_py() < 0:
                where = dataset.folder.location(index_name(split))
                raise DatasetError(f"{where}: not of these tars; run `lmk-shard verify`")
        self._places: dict[str, tuple[str, int, int]] = {}
        for split in dataset.splits:
            start = 0
            for shard in dataset.shards(split):
                self._places[shard["name"]] = (split, start, shard["num_samples"])
                start += shard["num_samples"]

    def rows(self, shard: str) -> list[dict[str, Any]]:
        """The rows that describe one shard, in its order."""
        split, start, number = self._places[shard]
        rows: list[dict[str, Any]] = self._tables[split].slice(start, number).to_pylist()
        return rows


def json_file(value: Any) -> Write:
    return lambda folder, name: write_file(folder, name, canonical_json(value) + b"\n")


def dataset_uuid(dataset: ShardedDataset) -> str:
    """An identifier in the form of a UUID that changes with the dataset's content."""
    digest = content_sha256_of(dataset.manifest["files"])
    return "-".join((digest[:8], digest[8:12], digest[12:16], digest[16:20], digest[20:32]))


def all_shards(dataset: ShardedDataset) -> list[ShardEntry]:
    return [shard for split in dataset.splits for shard in dataset.shards(split)]


def linked_files(dataset: ShardedDataset, dialect: Dialect) -> list[str]:
    tars = [shard["name"] for shard in all_shards(dataset)]
    if dialect != "croissant":
        return tars
    return [*tars, CLASSES, *(dataset.manifest["splits"][split]["index"] for split in dataset.splits)]
