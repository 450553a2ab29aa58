"""The samples of all splits as columns. A row counts over all splits, in the order train, val, test."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lmk_data.browse.keys import KeyIndex, are_safe, large_strings
from lmk_data.browse.lazy import Lazy
from lmk_data.dataset.format import index_name, index_schema
from lmk_data.dataset.reader import ShardedDataset
from lmk_data.dataset.tables import IndexBounds, check_index, check_schema, read_table_batches, read_table_row
from lmk_data.errors import DatasetError

_LAZY = ("jpg_offset", "jpg_size", "original_width", "original_height", "dhash")
_VERIFY_HINT = "run `lmk-shard verify` to see what is damaged"


@dataclass(frozen=True, slots=True)
class Shards:
    """The shard of each of N samples: `codes`, int32 [N], are places in `names`."""

    codes: NDArray[np.int32]
    names: list[str]


@dataclass(frozen=True, slots=True)
class Origin:
    """The source of a sample: name of its file, sha256 of its bytes as 64 hex digits, and their number."""

    source: str
    sha256: str
    num_bytes: int


class Samples:
    """The N samples of a dataset: keys and labels in memory, other columns when they are first used.

    Attributes:
        content_sha256: the hash of the dataset.
        splits: names of the splits that have samples.
        starts: the first row of each split, and N; int64 [S + 1].
        labels: int32 [N].
        keys: finds rows by keys.
    """

    def __init__(self, dataset: ShardedDataset) -> None:
        self._dataset = dataset
        self.content_sha256 = dataset.manifest["content_sha256"]
        self.splits = dataset.splits
        self.starts = np.cumsum([0, *(dataset.num_samples(split) for split in self.splits)])
        keys, labels = [pa.array([], pa.large_string())], [np.empty(0, np.int32)]
        for split in self.splits:
            self._read_split(split, keys, labels)
            pa.default_memory_pool().release_unused()
        self.labels: NDArray[np.int32] = np.concatenate(labels)
        self.keys = KeyIndex(pa.concat_arrays(keys))
        pa.default_memory_pool().release_unused()
        if (key := self.keys.repeated()) is not None:
            raise DatasetError(f"{dataset.location}: the key {key} occurs twice; {_VERIFY_HINT}")
        few = dataset.num_classes <= 2**16
        ordered = self.labels.astype(np.uint16) if few else self.labels  # NumPy sorts 16 bits in a tenth of the time
        self._by_label = np.argsort(ordered, kind="stable").astype(np.int32)
        counts = np.bincount(self.labels, minlength=dataset.num_classes)
        self._label_starts = np.concatenate([[0], np.cumsum(counts)])
        self._numbers = {name: Lazy(lambda name=name: self._read_numbers(name)) for name in _LAZY}  # type: ignore[misc]
        self._shards = Lazy(self._read_shards)

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

    def counts(self) -> dict[str, int]:
        """Return the number of samples of each split."""
        return dict(zip(self.splits, np.diff(self.starts).tolist(), strict=True))

    def numbers(self, name: str) -> NDArray[Any]:
        """Return a column of numbers of the index, [N]: offset, size, original width, height, or dhash."""
        return self._numbers[name].get()

    def shards(self) -> Shards:
        """Return the shards of all samples."""
        return self._shards.get()

    def origin(self, row: int) -> Origin:
        """Return the source of a row, read from the one row group that has it."""
        split = self.split_of(row)
        dataset, place = self._dataset, row - self.range_of(split)[0]
        name, num_rows = index_name(split), dataset.num_samples(split)
        kinds = {"source": str, "source_sha256": bytes, "original_bytes": int}
        read = read_table_row(dataset.folder, name, list(kinds), place, num_rows)
        if not all(isinstance(read[column], kind) for column, kind in kinds.items()):
            where = f"{dataset.folder.location(name)}: row {place}"
            raise DatasetError(f"{where} does not say what its picture was made of; {_VERIFY_HINT}")
        return Origin(read["source"], read["source_sha256"].hex(), read["original_bytes"])

    def _read_split(self, split: str, keys: list[pa.LargeStringArray], labels: list[NDArray[np.int32]]) -> None:
        """Append keys and labels of a split, checked; that no key occurs twice is seen when they are indexed."""
        dataset, name = self._dataset, index_name(split)
        location, num_rows = dataset.folder.location(name), 0
        bounds = IndexBounds(dataset.num_classes, pa.string(), 0, 0)
        for batch in read_table_batches(dataset.folder, name, ["key", "label"], dataset.num_samples(split)):
            table = pa.table(batch)
            check_index(table.select(["label"]), location, replace(bounds, num_rows=len(table)))
            check_schema(table.select(["key"]), index_schema(pa.string()), location)
            texts = large_strings(table["key"])
            if not are_safe(texts):
                raise DatasetError(f"{location}: has a key that is not of the documented form; {_VERIFY_HINT}")
            keys.append(texts)
            labels.append(table["label"].to_numpy())
            num_rows += len(table)
        if num_rows != dataset.num_samples(split):
            wanted = dataset.num_samples(split)
            raise DatasetError(f"{location}: {num_rows:,} rows, the manifest says {wanted:,}; {_VERIFY_HINT}")

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

    def source_hashes(self) -> NDArray[np.uint64]:
        """Return the first 128 bits of the sha256 of the source bytes of all samples, uint64 [N, 2]; not kept."""
        hashes = np.empty((len(self), 2), np.uint64)
        row = 0
        for split in self.splits:
            for chunk in self._dataset.index_table(split, ["source_sha256"])["source_sha256"].chunks:
                words = np.frombuffer(chunk.buffers()[1], np.uint64).reshape(-1, 4)[chunk.offset :]
                hashes[row : row + len(chunk)] = words[: len(chunk), :2]
                row += len(chunk)
            pa.default_memory_pool().release_unused()
        return hashes
