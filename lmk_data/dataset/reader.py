"""The reader of a published dataset or of a view: open it, and read tables, samples and shards."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, BinaryIO, Self

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from lmk_data.dataset.format import (
    DROPPED_CLASSES,
    MANIFEST,
    REJECTS,
    SPLITS,
    FileEntry,
    Manifest,
    ShardEntry,
    SplitEntry,
    dropped_classes_schema,
    index_schema,
    rejects_schema,
)
from lmk_data.dataset.integrity import check_base, check_content, check_counts, check_shards
from lmk_data.dataset.manifest import read_manifest, recipe_of
from lmk_data.dataset.tables import IndexBounds, check_index, read_classes, read_rest, read_table
from lmk_data.errors import DatasetError, StorageError, UserError
from lmk_data.options import Recipe
from lmk_data.system.storage import Folder, LocalFolder, leads_elsewhere, open_folder, retrying, stored_location

if TYPE_CHECKING:
    import webdataset

_OPEN_SHARDS = 128
_COPY_BYTES = 16 << 20  # read at once
_VERIFY_HINT = "run `lmk-shard verify` to see what is damaged"


@dataclass(frozen=True, slots=True)
class Sample:
    """One stored sample: its key, dense label, landmark id, and the JPEG's bytes."""

    key: str
    label: int
    landmark_id: int | str
    jpeg: bytes


class ShardedDataset:
    """A published dataset or a view, opened for reading. Several threads may read at the same time.

    >>> dataset = ShardedDataset.open("shards")
    >>> dataset.classes.head()                  # label, landmark_id, name, listed, train, val, test, rejected
    >>> sample = dataset.read("train", 0)       # key, label, landmark_id, jpeg
    >>> for sample in dataset.samples("val"): ...
    """

    def __init__(self, folder: Folder, manifest: Manifest, base: str | os.PathLike[str] | None = None) -> None:
        self.folder = folder
        self.manifest = manifest
        self._base = base
        self.shards_folder = _base_folder(folder, manifest, base)
        self._descriptors: dict[str, int] = {}
        self._columns: dict[str, dict[str, Any]] = {}
        self._lock = Lock()

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, base: str | os.PathLike[str] | None = None) -> Self:
        """Open a dataset by its path or URL, and check its version, the size of every shard, and that counts agree.

        Args:
            path: the dataset or view.
            base: for a view, the path or URL of the dataset that has its shards; by default the one that the view
                names, unless that is on another host, which only a user may name.

        Raises DatasetError that names the file and says what to do.
        """
        folder = open_folder(path)
        dataset = cls(folder, read_manifest(folder), base)
        try:
            check_content(folder, dataset.manifest)
            check_base(folder, dataset.shards_folder, dataset.manifest)
            check_shards(dataset.shards_folder, dataset.manifest)
            check_counts(folder, dataset.manifest, dataset.classes)
        except OSError as error:
            reason = error.strerror or error
            raise DatasetError(f"{error.filename or folder.root}: cannot be read: {reason}") from error
        return dataset

    @property
    def location(self) -> str:
        """The dataset's path or URL."""
        return self.folder.root

    @property
    def is_local(self) -> bool:
        """Whether the shards are on this machine, so that `shard_path` names them."""
        return isinstance(self.shards_folder, LocalFolder)

    @property
    def is_view(self) -> bool:
        """Whether the shards belong to another dataset: their `.cls` then hold that dataset's labels."""
        return "view_of" in self.manifest

    @property
    def shards_content_sha256(self) -> str:
        """The content hash of the dataset that holds the shards."""
        manifest = self.manifest
        return manifest["view_of"]["content_sha256"] if self.is_view else manifest["content_sha256"]

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits that have samples, in the order train, val, test."""
        return tuple(split for split in SPLITS if split in self.manifest["splits"])

    @property
    def num_classes(self) -> int:
        """K: dense labels are 0..K-1."""
        return self.manifest["classes"]["num_classes"]

    @property
    def recipe(self) -> Recipe:
        """How each picture was made. Pictures to predict on must be made the same way."""
        return recipe_of(self.manifest["recipe"])

    @cached_property
    def classes(self) -> pd.DataFrame:
        """classes.parquet: one row per class, in order of labels."""
        return read_classes(self.folder, self.num_classes)

    def __len__(self) -> int:
        """Return the number of samples in all splits."""
        return sum(split["num_samples"] for split in self.manifest["splits"].values())

    def num_samples(self, split: str) -> int:
        """Return the number of samples in a split, 0 if the dataset has no such split."""
        entry = self.manifest["splits"].get(split)
        return entry["num_samples"] if entry else 0

    def shards(self, split: str) -> list[ShardEntry]:
        """Return the manifest's shards of a split."""
        return self._split(split)["shards"]

    def read_table(self, name: str, columns: list[str] | None = None) -> pa.Table:
        """Return one of the dataset's Parquet files, unchecked. Raises DatasetError if it cannot be read."""
        stated = {entry["index"]: entry["num_samples"] for entry in self.manifest["splits"].values()}
        return read_table(self.folder, name, columns, max_rows=stated.get(name))

    def index_table(self, split: str, columns: list[str] | None = None) -> pa.Table:
        """Return the label index of a split as an Arrow table, one row per sample in shard order.

        Raises DatasetError if a value is not of the format, or names a shard that the manifest does not name.
        """
        name = self._split(split)["index"]
        table = self.read_table(name, columns)
        missing = [wanted for wanted in index_schema(pa.null()).names if wanted not in table.column_names]
        if columns is None and missing:
            raise DatasetError(f"{self.folder.location(name)}: has no column {missing[0]}; {_VERIFY_HINT}")
        return self.checked_index(split, table)

    def checked_index(self, split: str, table: pa.Table) -> pa.Table:
        """Return the label index of a split, or columns of it, as `index_table` does, from a table that was read."""
        name = self._split(split)["index"]
        ids = self.classes["landmark_id"] if "landmark_id" in table.column_names else None
        bounds = IndexBounds(
            num_classes=self.num_classes,
            landmark_id=pa.int64() if ids is not None and pd.api.types.is_integer_dtype(ids) else pa.string(),
            num_rows=self.num_samples(split),
            shard_bytes=max((shard["num_bytes"] for shard in self.shards(split)), default=0),
        )
        check_index(table, self.folder.location(name), bounds)
        if "shard" in table.column_names and not pa.types.is_dictionary(table["shard"].type):
            place, names = table.column_names.index("shard"), pc.cast(table["shard"], pa.string())
            table = table.set_column(place, "shard", names.dictionary_encode())
        if "shard" in table.column_names:
            names = table["shard"].combine_chunks().dictionary.to_pylist()
            unknown = set(names) - {shard["name"] for shard in self.shards(split)}
            if unknown:
                named = min(map(str, unknown))
                where = f"{self.location}: the {split} index"
                raise DatasetError(f"{where} names {named!r}, which the manifest does not; {_VERIFY_HINT}")
        return table

    def index(self, split: str, columns: list[str] | None = None) -> pd.DataFrame:
        """Return the label index of a split as a DataFrame."""
        return _frame(self.index_table(split, columns))

    def rejects(self) -> pd.DataFrame:
        """Return rejects.parquet: every planned image that was not written, with the reason. Empty for a view."""
        if self.is_view:
            return _frame(rejects_schema(pa.string()).empty_table())
        return read_rest(self.folder, REJECTS, self.num_classes)

    def dropped_classes(self) -> pd.DataFrame:
        """Return dropped_classes.parquet: the classes that the rule left out. Empty for a view."""
        if self.is_view:
            return _frame(dropped_classes_schema(pa.string()).empty_table())
        return read_rest(self.folder, DROPPED_CLASSES, self.num_classes)

    def shard_path(self, name: str) -> Path:
        """Return the path of a shard on this machine. Raises UserError for a dataset behind a URL."""
        if not isinstance(self.shards_folder, LocalFolder):
            raise UserError(f"{self.shards_folder.root}: not on this machine; copy the dataset here first")
        return Path(self.shards_folder.location(name))

    @cached_property
    def shard_files(self) -> dict[str, FileEntry]:
        """Hash and size of each shard, from the manifest of the dataset that holds the shards."""
        base = read_manifest(self.shards_folder) if self.is_view else self.manifest
        named = {shard["name"] for split in self.splits for shard in self.shards(split)}
        return {name: entry for name, entry in base["files"].items() if name in named}

    def copy_shard(self, name: str, file: BinaryIO) -> None:
        """Write a whole shard to `file`, in bounded memory.

        Raises StorageError if the storage fails, DatasetError if the hash differs from the manifest's.
        """
        location, entry, digest = self.shards_folder.location(name), self.shard_files[name], hashlib.sha256()
        for start in range(0, entry["num_bytes"], _COPY_BYTES):
            data = self.read_range(name, start, min(_COPY_BYTES, entry["num_bytes"] - start))
            digest.update(data)
            file.write(data)
        if digest.hexdigest() != entry["sha256"]:
            raise DatasetError(f"{location}: not the shard that the manifest describes; {_VERIFY_HINT}")

    def read(self, split: str, i: int) -> Sample:
        """Return sample `i` (from 0, in shard order) of a split, by one read at its offset."""
        columns = self._sample_columns(split)
        jpeg = self.read_bytes(columns["shard"][i], int(columns["jpg_offset"][i]), int(columns["jpg_size"][i]))
        landmark_id = columns["landmark_id"][i]
        return Sample(
            columns["key"][i],
            int(columns["label"][i]),
            landmark_id if isinstance(landmark_id, str) else int(landmark_id),
            jpeg,
        )

    def sample(self, key: str) -> Sample:
        """Return the sample with this key from any split. Raises KeyError if there is none."""
        for split in self.splits:
            keys = self._sample_columns(split)["keys"]
            if key in keys:
                return self.read(split, int(keys.get_loc(key)))
        raise KeyError(key)

    def samples(self, split: str) -> Iterator[Sample]:
        """Yield the samples of a split in shard order."""
        for i in range(self.num_samples(split)):
            yield self.read(split, i)

    def __iter__(self) -> Iterator[Sample]:
        """Yield all samples: train, then val, then test."""
        for split in self.splits:
            yield from self.samples(split)

    def read_range(self, shard: str, offset: int, num_bytes: int) -> bytes:
        """Return up to `num_bytes` of a shard from `offset`, fewer at its end; repeat while the storage fails.

        Raises StorageError if it keeps failing.
        """
        folder = self.shards_folder
        return retrying(partial(folder.read_range, shard, offset, num_bytes), folder.location(shard))

    def read_bytes(self, shard: str, offset: int, num_bytes: int) -> bytes:
        """Return `num_bytes` of a shard from `offset`; repeat while the storage fails.

        Raises DatasetError if the shard is missing or ends before, StorageError if the storage keeps failing.
        """
        location = self.shards_folder.location(shard)

        def read() -> bytes:
            if not isinstance(self.shards_folder, LocalFolder):
                return self.shards_folder.read_range(shard, offset, num_bytes)
            with self._lock:  # so that no other thread closes the file in between
                return os.pread(self._descriptor(location), num_bytes, offset)

        try:
            data = retrying(read, location)
        except StorageError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                raise DatasetError(f"{location}: no such file; {_VERIFY_HINT}") from None
            raise
        if len(data) != num_bytes:
            raise DatasetError(f"{location}: ends within the sample at {offset}; {_VERIFY_HINT}")
        return data

    def webdataset(self, split: str) -> "webdataset.WebDataset":
        """Return a webdataset pipeline over the shards of a split, in shard order and undecoded.

        Raises UserError for a view: its shards hold other samples too, with the labels of the base.
        """
        import webdataset

        if self.is_view:
            raise UserError(f"{self.location}: a view; `lmk-shard subset --copy` writes shards of its own")
        urls = [str(self.shard_path(shard["name"])) for shard in self.shards(split)]
        return webdataset.WebDataset(urls, shardshuffle=False)

    def close(self) -> None:
        """Close the shards that were opened to read samples."""
        with self._lock:
            while self._descriptors:
                os.close(self._descriptors.popitem()[1])

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as what is opened: another process opens the shards anew."""
        return type(self), (self.folder, self.manifest, self._base)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _split(self, split: str) -> SplitEntry:
        entry = self.manifest["splits"].get(split)
        if entry is None:
            raise DatasetError(f"{self.location}: no split {split!r}; it has {', '.join(self.splits)}")
        return entry

    def _sample_columns(self, split: str) -> dict[str, Any]:
        if split not in self._columns:
            table = self.index_table(split, ["key", "label", "landmark_id", "shard", "jpg_offset", "jpg_size"])
            columns: dict[str, Any] = {name: table[name].to_pandas().array for name in table.column_names}
            self._columns[split] = {**columns, "keys": pd.Index(columns["key"])}
        return self._columns[split]

    def _descriptor(self, path: str) -> int:
        """Return the descriptor of an open shard; close the one opened first when too many are open."""
        descriptor = self._descriptors.get(path)
        if descriptor is None:
            if len(self._descriptors) >= _OPEN_SHARDS:
                os.close(self._descriptors.pop(next(iter(self._descriptors))))
            descriptor = self._descriptors[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        return descriptor


def _base_folder(folder: Folder, manifest: Manifest, base: str | os.PathLike[str] | None) -> Folder:
    """Return the folder that holds the shards: this one, or for a view `base` or else what `view_of.path` names."""
    if "view_of" not in manifest:
        if base is not None:
            raise UserError(f"--base {os.fspath(base)}: {folder.root} is no view and has its own shards; leave it out")
        return folder
    if base is not None:
        return open_folder(base)
    path, where = manifest["view_of"]["path"], folder.location(MANIFEST)
    try:
        location = stored_location(path, folder)
    except ValueError as error:
        raise DatasetError(f"{where}: view_of.path is {error} ({path[:200]!r}); do not trust this dataset") from None
    if leads_elsewhere(path, folder):
        raise DatasetError(
            f"{where}: a view whose pictures are at {location}, which is opened only if you name it; if you trust that "
            f"place, give --base {location}"
        )
    return open_folder(location)


def _frame(table: pa.Table) -> pd.DataFrame:
    frame: pd.DataFrame = table.to_pandas()
    return frame
