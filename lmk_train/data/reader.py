"""Random access to the decoded samples of one split, by offset into the shards."""

import os
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lmk_data.dataset import ShardedDataset
from lmk_data.errors import DatasetError, StorageError
from lmk_train.config.arguments import Cache
from lmk_train.data.cache import ShardFiles
from lmk_train.data.order import rows_of, window_shards
from lmk_train.data.records import Record, decode_record

_MAX_DEFAULT_WORKERS, _FETCHING_WORKERS = 8, 64
_SPARSE = 0.25  # share of a shard's bytes; of a shard that a view uses less of, single pictures are read or fetched


class Reader(Protocol):
    """The N samples of one split, each an array of `shape` and `dtype`; safe to use from several threads.

    `labels` int64 [N] and `shard_of_row` int32 [N] are the class and the shard number of each row.
    """

    split: str
    labels: NDArray[np.int64]
    shard_of_row: NDArray[np.int32]
    shape: tuple[int, ...]
    dtype: "np.dtype[Any]"

    def __len__(self) -> int: ...

    @property
    def default_workers(self) -> int:
        """The number of threads or processes that read this split well."""

    def keys(self, rows: NDArray[np.int64] | None = None) -> NDArray[np.object_]:
        """Return the keys of these rows, or of all rows in order."""

    def expect(self, picks: NDArray[np.int64]) -> None:
        """Announce the picks that will be read, in order."""

    def decode(self, rows: NDArray[np.int64], out: NDArray[Any]) -> None:
        """Write the samples of these rows into `out`, [len(rows), *shape]."""

    def close(self) -> None:
        """Close whatever reading opened."""


class SplitReader:
    """Random access to the decoded samples of one split; safe to use from several threads."""

    def __init__(self, dataset: ShardedDataset, split: str, cache: Cache) -> None:
        """Load the columns of the index that reading needs: 36 bytes a sample.

        Args:
            dataset: the opened dataset.
            split: one of its splits.
            cache: where shards are kept if the dataset is behind a URL.

        Raises:
            DatasetError: the index names a shard or a class that the dataset does not have.
        """
        table = dataset.index_table(split, ["label", "shard", "jpg_offset", "jpg_size", "jpg_crc32"])
        shards = table["shard"].combine_chunks()
        self.dataset, self.split = dataset, split
        self.size = dataset.recipe.size
        self.shape: tuple[int, ...] = (self.size, self.size, 3)
        self.dtype: np.dtype[Any] = np.dtype(np.uint8)
        self.shard_names: list[str] = shards.dictionary.to_pylist()
        self.shard_of_row = np.asarray(shards.indices.to_numpy(zero_copy_only=False), dtype=np.int32)
        self.labels = table["label"].to_numpy().astype(np.int64)
        self._offsets = table["jpg_offset"].to_numpy()
        self._sizes = table["jpg_size"].to_numpy()
        self._columns = (self.shard_of_row, self._offsets, self._sizes, table["jpg_crc32"].to_numpy())
        self._files = ShardFiles(dataset, cache)
        self._sparse = self._sparse_shards()
        self._fetched_singly = set() if dataset.is_local else self._sparse

    def __len__(self) -> int:
        return len(self.labels)

    def keys(self, rows: NDArray[np.int64] | None = None) -> NDArray[np.object_]:
        """Return the keys of these rows, or of all rows in order."""
        column = self.dataset.index_table(self.split, ["key"])["key"]
        return np.asarray((column if rows is None else column.take(rows)).to_numpy(), dtype=object)

    def expect(self, picks: NDArray[np.int64]) -> None:
        """Announce the picks that will be read, in order, so that their shards are read or fetched ahead."""
        shards = self.shard_of_row[rows_of(picks, len(self))]
        first = np.full(len(self.shard_names), len(picks))
        first[shards[::-1]] = np.arange(len(picks))[::-1]
        order = np.argsort(first)[: np.count_nonzero(first < len(picks))].tolist()
        names = [self.shard_names[shard] for shard in order if shard not in self._sparse]
        self._files.expect(names, window_shards(len(self), len(self.shard_names)))

    def read(self, rows: NDArray[np.int64]) -> Iterator[bytes]:
        """Yield the JPEG of each of these rows; a JPEG is short if its shard ends within it."""
        return map(self._read, self._records(rows))

    def decode(self, rows: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        """Decode the samples of these rows into `out`, uint8 [len(rows), H, W, 3], RGB.

        Raises:
            DatasetError: a record is short, damaged or of another size; names shard, key and offset.
            StorageError: a record cannot be read; names shard, key and offset.
        """
        for number, record in enumerate(self._records(rows)):
            try:
                self._decode(record, out[number])
            except ValueError as error:
                raise DatasetError(f"{self._location(int(rows[number]))}: {error}; run `lmk-shard verify`") from error
            except OSError as error:
                why = f"cannot be read: {error.strerror or error}; is the storage there? run it again to resume"
                raise StorageError(f"{self._location(int(rows[number]))}: {why}") from error

    @property
    def is_local(self) -> bool:
        """Whether the shards are files of this machine, which other processes can open by `shard_paths`."""
        return self.dataset.is_local

    def shard_paths(self) -> list[str]:
        """Return the path of each shard, in the order of their numbers."""
        return [str(self.dataset.shard_path(name)) for name in self.shard_names]

    def records(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the fields of each `Record` as int64 [len(rows), 4], for what decodes them elsewhere."""
        for shard in np.unique(self.shard_of_row[rows]).tolist():
            self._files.reach(self.shard_names[shard])
        return np.stack([column[rows].astype(np.int64) for column in self._columns], axis=1)

    @property
    def default_workers(self) -> int:
        """The number of threads or processes that read this split well.

        One per core (at most 8), or 64 if single pictures are fetched over the network. The ranks of a machine share
        its cores.
        """
        if self._fetched_singly:
            return _FETCHING_WORKERS
        cores = len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        return max(1, min(cores, _MAX_DEFAULT_WORKERS))

    def close(self) -> None:
        """Close the shards that reading opened."""
        self._files.close()

    def _records(self, rows: NDArray[np.int64]) -> Iterator[Record]:
        return map(Record, *(column[rows].tolist() for column in self._columns))

    def _decode(self, record: Record, out: NDArray[np.uint8]) -> None:
        """Decode one picture into `out`, uint8 [H, W, 3]; a fetched shard that is damaged is fetched once more."""
        try:
            decode_record(self._read(record), record, out)
        except ValueError:
            if record.shard in self._fetched_singly or not self._files.refetch(self.shard_names[record.shard]):
                raise
            decode_record(self._read(record), record, out)

    def _read(self, record: Record) -> bytes:
        name = self.shard_names[record.shard]
        if record.shard not in self._fetched_singly:
            return self._files.open(name).read(record.offset, record.num_bytes)
        return self.dataset.read_range(name, record.offset, record.num_bytes)

    def _location(self, row: int) -> str:
        """Return shard, key and offset of a sample, for messages."""
        shard = int(self.shard_of_row[row])
        location = self.dataset.shards_folder.location if shard in self._fetched_singly else self._files.location
        key, offset = self.keys(np.array([row]))[0], self._offsets[row]
        return f"{location(self.shard_names[shard])}: sample {key} at offset {offset}"

    def _sparse_shards(self) -> set[int]:
        """Return the shards that hold too little of this split to be worth reading or fetching whole."""
        wanted = np.bincount(self.shard_of_row, weights=self._sizes, minlength=len(self.shard_names))
        num_bytes = {shard["name"]: shard["num_bytes"] for shard in self.dataset.shards(self.split)}
        whole = np.array([num_bytes[name] for name in self.shard_names])
        return set(np.flatnonzero(wanted < _SPARSE * whole).tolist())
