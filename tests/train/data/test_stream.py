import errno
import io
import os
import shutil
import tempfile
import threading
import zlib
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lmk_data.dataset import ShardedDataset
from lmk_data.errors import DatasetError, LmkError, StorageError
from lmk_train.config.arguments import Cache
from lmk_train.data.reader import SplitReader
from lmk_train.data.stream import BatchStream
from tests.data.decoding.made import scans

CPU = torch.device("cpu")
NO_CACHE = Cache(Path("/nonexistent"), 0)


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_batches_hold_the_stored_pictures_in_the_order_asked(dataset: ShardedDataset, workers: int) -> None:
    reader = SplitReader(dataset, "train", NO_CACHE)
    order = np.random.default_rng(0).permutation(len(reader)).astype(np.int64)
    batches = [order[i : i + 7] for i in range(0, len(order), 7)]
    seen = 0
    for rows, batch in zip(batches, BatchStream(reader, CPU, 7, workers)(batches), strict=True):
        assert batch.picks.tolist() == rows.tolist()
        assert (batch.pixels.dtype, tuple(batch.pixels.shape)) == (torch.uint8, (len(rows), 64, 64, 3))
        for i, row in enumerate(rows):
            sample = dataset.read("train", int(row))
            pixels = np.asarray(Image.open(io.BytesIO(sample.jpeg))).astype(int)
            assert batch.labels[i] == sample.label
            assert np.abs(batch.pixels[i].numpy().astype(int) - pixels).max() <= 3, "two builds of libjpeg-turbo"
            seen += 1
    assert seen == len(reader) == dataset.num_samples("train")
    reader.close()


def test_the_reader_is_told_all_that_comes(dataset: ShardedDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    expected: list[list[int]] = []
    monkeypatch.setattr(SplitReader, "expect", lambda _, picks: expected.append(picks.tolist()))
    with closing(SplitReader(dataset, "train", NO_CACHE)) as reader:
        batches = (np.arange(start, start + 4) for start in (8, 0, 4))
        with closing(BatchStream(reader, CPU, 4, 1)(batches)) as stream:
            next(stream)
        assert expected == [[8, 9, 10, 11, *range(8)]]
        assert list(BatchStream(reader, CPU, 4, 1)([])) == []


def test_leaving_early_stops_the_threads(dataset: ShardedDataset) -> None:
    def decoding() -> int:
        return sum(thread.name.startswith("decode") for thread in threading.enumerate())

    reader = SplitReader(dataset, "train", NO_CACHE)
    batches = BatchStream(reader, CPU, 4, 3)([np.arange(4)] * 50)
    next(batches)
    assert decoding() == 3
    batches.close()
    assert decoding() == 0
    reader.close()


def test_threads_are_a_processes_share_of_the_cores_that_it_may_use(
    dataset: ShardedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = SplitReader(dataset, "train", NO_CACHE)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)))
    assert reader.default_workers == 6
    for processes, threads in ((2, 3), (4, 1), (100, 1)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
        assert reader.default_workers == threads
    reader.close()


def damaged(dataset_path: Path, tmp_path: Path, offset: int, data: bytes) -> ShardedDataset:
    """A copy of the dataset with some bytes of its first training shard replaced, at `offset` into a picture."""
    shutil.copytree(dataset_path, tmp_path / "copy")
    dataset = ShardedDataset.open(tmp_path / "copy")
    first = dataset.index("train").iloc[0]
    with open(tmp_path / "copy" / first["shard"], "r+b") as file:
        file.seek(first["jpg_offset"] + offset)
        file.write(data)
    return dataset


def says_where(error: LmkError, dataset: ShardedDataset, row: int) -> bool:
    """Whether a message names shard, key and offset of a training sample."""
    sample = dataset.index("train").iloc[row]
    return all(str(part) in str(error) for part in (sample["shard"], sample["key"], sample["jpg_offset"]))


@pytest.mark.parametrize(("offset", "data"), [(0, bytes(64)), (200, b"\xff\xd9" * 400)])
def test_corrupt_records_are_errors_that_say_where(
    dataset_path: Path, tmp_path: Path, offset: int, data: bytes
) -> None:
    dataset = damaged(dataset_path, tmp_path, offset, data)
    reader = SplitReader(dataset, "train", NO_CACHE)
    with pytest.raises(DatasetError, match="run `lmk-shard verify`") as error:
        list(BatchStream(reader, CPU, 4, 2)([np.arange(4)]))
    assert says_where(error.value, dataset, 0)
    reader.close()


def test_a_picture_of_many_scans_is_an_error_that_says_where(
    dataset_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jpg_bytes = int(ShardedDataset.open(dataset_path).index("train")["jpg_size"].iloc[0])
    dataset = damaged(dataset_path, tmp_path, 0, scans(5).ljust(jpg_bytes, b"\0"))
    name = tmp_path / "copy" / "index" / "train.parquet"
    table = pq.read_table(name)
    checksums = table["jpg_crc32"].to_pylist()
    checksums[0] = zlib.crc32(dataset.read("train", 0).jpeg)
    column = pa.array(checksums, table["jpg_crc32"].type)
    pq.write_table(table.set_column(table.column_names.index("jpg_crc32"), "jpg_crc32", column), name)
    monkeypatch.setattr("lmk_data.decoding.jpeg.MAX_SCANS", 4)
    with closing(SplitReader(ShardedDataset.open(tmp_path / "copy"), "train", NO_CACHE)) as reader:
        with pytest.raises(DatasetError, match="more than 4 scans; run `lmk-shard verify`") as error:
            reader.decode(np.array([0]), np.empty((1, 64, 64, 3), np.uint8))
        assert says_where(error.value, dataset, 0)


@settings(max_examples=60)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_any_flipped_bit_of_a_record_is_noticed(dataset_path: Path, place: float, bit: int) -> None:
    row, out = 5, np.empty((1, 64, 64, 3), np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(dataset_path, folder, dirs_exist_ok=True)
        dataset = ShardedDataset.open(folder)
        sample = dataset.index("train").iloc[row]
        reader = SplitReader(dataset, "train", NO_CACHE)
        reader.decode(np.array([row]), out)
        with open(Path(folder) / sample["shard"], "r+b") as file:
            file.seek(sample["jpg_offset"] + int(place * sample["jpg_size"]))
            (byte,) = file.read(1)
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte ^ 1 << bit]))
        with pytest.raises(DatasetError, match="damaged: its checksum is another") as error:
            reader.decode(np.array([row]), out)
        assert says_where(error.value, dataset, row)
        reader.close()


def test_a_shard_cut_short_while_it_is_read_is_an_error_that_says_where(dataset_path: Path, tmp_path: Path) -> None:
    dataset = damaged(dataset_path, tmp_path, 0, b"")
    sample, out = dataset.index("train").iloc[1], np.empty((1, 64, 64, 3), np.uint8)
    reader = SplitReader(dataset, "train", NO_CACHE)
    reader.decode(np.array([1]), out)
    os.truncate(tmp_path / "copy" / sample["shard"], sample["jpg_offset"] + 10)
    with pytest.raises(DatasetError, match="the shard ends within it; run `lmk-shard verify`") as error:
        reader.decode(np.array([1]), out)
    assert says_where(error.value, dataset, 1)
    reader.close()


def test_a_disk_that_fails_is_an_error_that_says_where(
    dataset: ShardedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "pread", failing)
    reader = SplitReader(dataset, "train", NO_CACHE)
    with pytest.raises(StorageError, match=r"cannot be read: Input/output error; .* run it again to resume") as error:
        reader.decode(np.array([3]), np.empty((1, 64, 64, 3), np.uint8))
    assert says_where(error.value, dataset, 3)
    reader.close()


def test_opening_refuses_datasets_that_are_not_whole(dataset_path: Path, tmp_path: Path) -> None:
    out = tmp_path / "copy"
    shutil.copytree(dataset_path, out)
    shard = out / "shards/train/train-000001.tar"
    data = shard.read_bytes()
    shard.write_bytes(data[:-512])
    with pytest.raises(DatasetError, match=r"train-000001\.tar: .* bytes instead of"):
        ShardedDataset.open(out)
    shard.unlink()
    with pytest.raises(DatasetError, match=r"train-000001\.tar: shard is missing"):
        ShardedDataset.open(out)
    shard.write_bytes(data)
    ShardedDataset.open(out)
    manifest = (out / "dataset.json").read_text()
    (out / "dataset.json").write_text(manifest.replace("shards/train/train-000001.tar", "../../../etc/passwd.tar"))
    with pytest.raises(DatasetError, match="leads out of the dataset"):
        ShardedDataset.open(out)
    (out / "dataset.json").write_text(manifest[:100])
    with pytest.raises(DatasetError, match="not JSON"):
        ShardedDataset.open(out)
    (out / "dataset.json").write_text(manifest)
    shutil.copy(out / "index/val.parquet", out / "index/train.parquet")
    with pytest.raises(DatasetError, match=r"train\.parquet: .* rows, the manifest says"):
        ShardedDataset.open(out)
