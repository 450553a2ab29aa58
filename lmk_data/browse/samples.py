"""The samples of all splits as columns. A row counts over all splits, in the order train, val, test."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lmk_data.browse.keys import KeyIndex, large_strings
from lmk_data.browse.lazy import Lazy
from lmk_data.dataset.format import index_name
from lmk_data.dataset.reader import ShardedDataset
from lmk_data.dataset.tables import IndexBounds, check_index, has_safe_keys
from lmk_data.errors import DatasetError

_LAZY = ("jpg_offset", "jpg_size", "original_width", "original_height", "original_bytes", "dhash")
_VERIFY_HINT = "run `lmk-shard verify` to see what is damaged"


@dataclass(frozen=True, slots=True)
class Shards:
    """The shard of each of N samples: `codes`, int32 [N], are places in `names`."""

    codes: NDArray[np.int32]
    names: list[str]


class Samples:
    """The N samples of a dataset: keys and labels in memory, other columns when they are first used.

    Attributes:
        splits: names of the splits that have samples.
        starts: the first row of each split, and N; int64 [S + 1].
        labels: int32 [N].
        keys: finds rows by keys.
    """

    def __init__(self, dataset: ShardedDataset) -> None:
        self._dataset = dataset
        self.splits = dataset.splits
        self.starts = np.cumsum([0, *(dataset.num_samples(split) for split in self.splits)])
        tables = [self._keys_and_labels(split) for split in self.splits]
        self.labels: NDArray[np.int32] = np.concatenate(
            [np.empty(0, np.int32), *(table["label"].to_numpy() for table in tables)]
        )
        columns = [large_strings(table["key"]) for table in tables]
        self.keys = KeyIndex(pa.concat_arrays(columns) if columns else pa.array([], pa.large_string()))
        if (key := self.keys.repeated()) is not None:
            raise DatasetError(f"{dataset.location}: the key {key} occurs twice; {_VERIFY_HINT}")
        self._by_label = np.argsort(self.labels, kind="stable").astype(np.int32)
        counts = np.bincount(self.labels, minlength=dataset.num_classes)
        self._label_starts = np.concatenate([[0], np.cumsum(counts)])
        self._numbers = {name: Lazy(lambda name=name: self._read_numbers(name)) for name in _LAZY}  # type: ignore[misc]
        self._shards = Lazy(self._read_shards)
        self._sources = Lazy(lambda: self._read_column("source"))
        self._hashes = Lazy(self._read_hashes)

    def __len__(self) -> int:
        """Return N."""
        return len(self.labels)

    def of_label(self, label: int) -> NDArray[np.int32]:
        """Return the rows of a class, ascending, int32 [M]."""
        return self._by_label[self._label_starts[label] : self._label_starts[label + 1]]

    def split_of(self, row: int) -> str:
        """Return the split of a row."""
        return self.splits[int(np.searchsorted(self.starts, row, side="right")) - 1]

    def range_of(self, split: str) -> tuple[int, int]:
        """Return the first row of a split and the first row after it; both 0 for a split without samples."""
        if split not in self.splits:
            return 0, 0
        place = self.splits.index(split)
        return int(self.starts[place]), int(self.starts[place + 1])

    def numbers(self, name: str) -> NDArray[Any]:
        """Return a column of numbers of the index, [N]: offset, size, original width, height, bytes, or dhash."""
        return self._numbers[name].get()

    def shards(self) -> Shards:
        """Return the shards of all samples."""
        return self._shards.get()

    def source(self, row: int) -> str:
        """Return the name of the source file of a row."""
        return str(self._sources.get()[row].as_py())

    def source_hashes(self) -> NDArray[np.uint64]:
        """Return the sha256 of the source bytes of all samples, uint64 [N, 4]."""
        return self._hashes.get()

    def _keys_and_labels(self, split: str) -> pa.Table:
        """Return key and label of a split, checked; that no key occurs twice is seen when they are indexed."""
        dataset, name = self._dataset, index_name(split)
        table, location = dataset.read_table(name, ["key", "label"]), dataset.folder.location(name)
        if not pa.types.is_string(table["key"].type) and not pa.types.is_large_string(table["key"].type):
            return dataset.index_table(split, ["key", "label"])
        bounds = IndexBounds(dataset.num_classes, pa.string(), dataset.num_samples(split), 0)
        check_index(table.select(["label"]), location, bounds)
        if table["key"].null_count or not has_safe_keys(table["key"]):
            raise DatasetError(f"{location}: has a key that is not of the documented form; {_VERIFY_HINT}")
        return table

    def _read_column(self, name: str) -> pa.ChunkedArray:
        chunks: list[pa.Array] = []
        for split in self.splits:
            chunks += self._dataset.index_table(split, [name])[name].chunks
        return pa.chunked_array(chunks)

    def _read_numbers(self, name: str) -> NDArray[Any]:
        column: NDArray[Any] = self._read_column(name).to_numpy()
        return column

    def _read_shards(self) -> Shards:
        names: dict[str, int] = {}
        codes = [np.empty(0, np.int32)]
        for split in self.splits:
            for chunk in self._dataset.index_table(split, ["shard"])["shard"].chunks:
                known = [names.setdefault(name, len(names)) for name in chunk.dictionary.to_pylist()]
                codes.append(np.array(known, dtype=np.int32)[chunk.indices.to_numpy()])
        return Shards(np.concatenate(codes), list(names))

    def _read_hashes(self) -> NDArray[np.uint64]:
        parts = [np.empty((0, 4), np.uint64)]
        for chunk in self._read_column("source_sha256").chunks:
            words = np.frombuffer(chunk.buffers()[1], np.uint64)
            parts.append(words[4 * chunk.offset : 4 * (chunk.offset + len(chunk))].reshape(-1, 4))
        return np.concatenate(parts)
