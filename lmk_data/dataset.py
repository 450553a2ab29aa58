"""A published dataset: open it, check that it is whole, read it by its index."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from lmk_data.errors import DatasetError
from lmk_data.format import (
    CLASSES,
    DROPPED_CLASSES,
    FORMAT_NAME,
    FORMAT_VERSION,
    MANIFEST,
    REJECTS,
    SPLITS,
    Manifest,
    Recipe,
    ShardEntry,
    SplitEntry,
    index_name,
    recipe_of,
)

if TYPE_CHECKING:
    import webdataset

_MAX_MANIFEST_BYTES = 256 << 20
_VERIFY_HINT = "run `lmk-shard verify` to see what is damaged"


@dataclass(frozen=True, slots=True)
class Sample:
    """One stored sample: its key, dense label, landmark id, and the JPEG's bytes."""

    key: str
    label: int
    landmark_id: int | str
    jpeg: bytes


def read_manifest(path: Path) -> Manifest:
    """Parse a manifest and check that this version of the code can read it.

    Raises DatasetError that says what is wrong and what to do.
    """
    try:
        if path.stat().st_size > _MAX_MANIFEST_BYTES:
            raise DatasetError(f"{path}: {path.stat().st_size:,} bytes is no manifest")
        manifest = json.loads(path.read_bytes())
    except FileNotFoundError:
        where = "the build is not finished, run it again" if (path.parent / ".build").exists() else "not a dataset"
        raise DatasetError(f"{path}: no such file: {where}") from None
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{path}: not JSON ({error}); build the dataset again") from None
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read: {error.strerror}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT_NAME:
        raise DatasetError(f"{path}: not the manifest of a dataset of shards (its format is not {FORMAT_NAME!r})")
    if manifest.get("version") != FORMAT_VERSION:
        stated = manifest.get("version")
        raise DatasetError(f"{path}: format version {stated!r}, this lmk reads {FORMAT_VERSION}; install another lmk")
    _check_shape(path, manifest)
    return cast(Manifest, manifest)


class ShardedDataset:
    """A published dataset, opened for reading.

    >>> dataset = ShardedDataset.open("shards")
    >>> dataset.classes.head()                  # label, landmark_id, name, listed, train, val, test, rejected
    >>> sample = dataset.read("train", 0)       # key, label, landmark_id, jpeg
    >>> for sample in dataset.samples("val"): ...
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        self._descriptors: dict[str, int] = {}
        self._columns: dict[str, dict[str, Any]] = {}

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Open a dataset and check that it is whole: its version, every shard's size, and that counts agree.

        Raises DatasetError that names the file and says what to do.
        """
        root = Path(path)
        dataset = cls(root, read_manifest(root / MANIFEST))
        dataset._check_shards()
        dataset._check_counts()
        return dataset

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits that have samples, in the order train, val, test."""
        return tuple(split for split in SPLITS if split in self.manifest["splits"])

    @property
    def num_classes(self) -> int:
        """K: dense labels are 0..K-1."""
        return int(self.manifest["classes"]["num_classes"])

    @property
    def recipe(self) -> Recipe:
        """How each picture was made; pictures to predict on are made the same way."""
        return recipe_of(self.manifest["recipe"])

    @cached_property
    def classes(self) -> pd.DataFrame:
        """classes.parquet: one row per class in order of its label."""
        return _frame(self._read_parquet(CLASSES))

    def __len__(self) -> int:
        """Samples in all splits together."""
        return sum(split["num_samples"] for split in self.manifest["splits"].values())

    def num_samples(self, split: str) -> int:
        """Samples in one split, 0 if the dataset has no such split."""
        entry = self.manifest["splits"].get(split)
        return entry["num_samples"] if entry else 0

    def shards(self, split: str) -> list[ShardEntry]:
        """The manifest's shards of one split."""
        return self._split(split)["shards"]

    def index_table(self, split: str, columns: list[str] | None = None) -> pa.Table:
        """The label index of one split as an Arrow table, one row per sample in shard order."""
        return self._read_parquet(self._split(split)["index"], columns)

    def index(self, split: str, columns: list[str] | None = None) -> pd.DataFrame:
        """The label index of one split as a DataFrame."""
        return _frame(self.index_table(split, columns))

    def rejects(self) -> pd.DataFrame:
        """rejects.parquet: every planned image that was not written, with its reason."""
        return _frame(self._read_parquet(REJECTS))

    def dropped_classes(self) -> pd.DataFrame:
        """dropped_classes.parquet: the classes that the rule left out."""
        return _frame(self._read_parquet(DROPPED_CLASSES))

    def shard_path(self, name: str) -> Path:
        """Where a shard lies."""
        return self.path / name

    def read(self, split: str, i: int) -> Sample:
        """Sample `i` (0-based, in shard order) of a split, by one read at its offset."""
        columns = self._sample_columns(split)
        jpeg = self.read_bytes(columns["shard"][i], int(columns["jpg_offset"][i]), int(columns["jpg_size"][i]))
        return Sample(columns["key"][i], int(columns["label"][i]), columns["landmark_id"][i], jpeg)

    def samples(self, split: str) -> Iterator[Sample]:
        """Every sample of a split in shard order."""
        for i in range(self.num_samples(split)):
            yield self.read(split, i)

    def read_bytes(self, shard: str, offset: int, num_bytes: int) -> bytes:
        """`num_bytes` of a shard at `offset`; DatasetError if the shard ends before."""
        descriptor = self._descriptors.get(shard)
        if descriptor is None:
            descriptor = self._descriptors[shard] = os.open(self.shard_path(shard), os.O_RDONLY | os.O_CLOEXEC)
        data = os.pread(descriptor, num_bytes, offset)
        if len(data) != num_bytes:
            raise DatasetError(f"{self.shard_path(shard)}: ends within the sample at {offset}; {_VERIFY_HINT}")
        return data

    def webdataset(self, split: str) -> "webdataset.WebDataset":
        """A ready webdataset pipeline over the split's shards, in shard order and undecoded."""
        import webdataset

        urls = [str(self.shard_path(shard["name"])) for shard in self.shards(split)]
        return webdataset.WebDataset(urls, shardshuffle=False)

    def close(self) -> None:
        """Close the shards that reading opened."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _split(self, split: str) -> SplitEntry:
        entry = self.manifest["splits"].get(split)
        if entry is None:
            raise DatasetError(f"{self.path}: no split {split!r}; it has {', '.join(self.splits)}")
        return entry

    def _sample_columns(self, split: str) -> dict[str, Any]:
        if split not in self._columns:
            table = self.index_table(split, ["key", "label", "landmark_id", "shard", "jpg_offset", "jpg_size"])
            self._columns[split] = {name: table[name].to_pandas().array for name in table.column_names}
        return self._columns[split]

    def _read_parquet(self, name: str, columns: list[str] | None = None) -> pa.Table:
        try:
            return pq.read_table(self.path / name, columns=columns)
        except (pa.ArrowException, OSError) as error:
            reason = str(error).splitlines()[0]
            raise DatasetError(f"{self.path / name}: cannot be read ({reason}); {_VERIFY_HINT}") from error

    def _check_shards(self) -> None:
        """Every shard is there at its full size, by listing each folder once."""
        for split in self.splits:
            entries = {shard["name"]: shard["num_bytes"] for shard in self.shards(split)}
            sizes: dict[str, int] = {}
            for folder in {os.path.dirname(name) for name in entries}:
                if (self.path / folder).is_dir():
                    with os.scandir(self.path / folder) as found:
                        sizes |= {f"{folder}/{entry.name}": entry.stat().st_size for entry in found if entry.is_file()}
            for name, num_bytes in entries.items():
                if name not in sizes:
                    raise DatasetError(
                        f"{self.path / name}: shard is missing; copy it again or build the dataset again"
                    )
                if sizes[name] != num_bytes:
                    stated = f"{sizes[name]:,} bytes instead of {num_bytes:,}"
                    raise DatasetError(f"{self.path / name}: {stated}; copy it again or build the dataset again")

    def _check_counts(self) -> None:
        """The manifest, the indexes and the classes state the same numbers."""
        classes = self.classes
        if len(classes) != self.num_classes:
            raise DatasetError(f"{self.path / CLASSES}: {len(classes)} classes, the manifest says {self.num_classes}")
        for split in SPLITS:
            stated, counted = self.num_samples(split), int(classes[split].sum())
            if stated != counted:
                raise DatasetError(f"{self.path / CLASSES}: {counted} {split} samples, the manifest says {stated}")
            if stated and (rows := self._num_rows(self._split(split)["index"])) != stated:
                raise DatasetError(f"{self.path / index_name(split)}: {rows} rows, the manifest says {stated}")

    def _num_rows(self, name: str) -> int:
        try:
            return int(pq.read_metadata(self.path / name).num_rows)
        except (pa.ArrowException, OSError) as error:
            raise DatasetError(
                f"{self.path / name}: cannot be read; copy it again or build the dataset again"
            ) from error


def _frame(table: pa.Table) -> pd.DataFrame:
    frame: pd.DataFrame = table.to_pandas()
    return frame


def _check_shape(path: Path, manifest: dict[str, Any]) -> None:
    """The parts that reading relies on are there, and no name leads out of the dataset's folder."""
    try:
        names = [manifest["classes"]["path"]]
        for split, entry in manifest["splits"].items():
            names += [entry["index"], *(shard["name"] for shard in entry["shards"])]
            counted = sum(shard["num_samples"] for shard in entry["shards"])
            if split not in SPLITS or counted != entry["num_samples"]:
                raise DatasetError(f"{path}: the shards of split {split!r} do not add up to {entry['num_samples']}")
        recipe_of(manifest["recipe"])
        int(manifest["classes"]["num_classes"])
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise DatasetError(f"{path}: damaged manifest ({error!r}); build the dataset again") from None
    for name in names:
        if not isinstance(name, str) or name.startswith("/") or ".." in name.split("/") or "\\" in name or "\0" in name:
            raise DatasetError(f"{path}: the name {name!r} leads out of the dataset; do not trust this dataset")
