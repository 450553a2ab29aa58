"""The reader, as other teams use it: random access, keys, iteration, and refusals that say what to do."""

import errno
import json
import os
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lmk_data.dataset import ShardedDataset
from lmk_data.dataset import reader as dataset_module
from lmk_data.errors import DatasetError, StorageError
from lmk_data.options import Selection
from lmk_data.report.dataset import write_report
from lmk_data.system.storage import open_folder
from lmk_data.views.view import write_view


def test_every_way_of_reading_gives_the_same_samples(dataset: ShardedDataset) -> None:
    everything = list(dataset)
    assert len(everything) == len(dataset) == 60
    assert [s.key for split in dataset.splits for s in dataset.samples(split)] == [s.key for s in everything]
    for split in dataset.splits:
        index = dataset.index(split)
        for i, row in enumerate(index.itertuples()):
            assert dataset.read(split, i) == dataset.sample(str(row.key))
    for sample in everything:
        assert dataset.classes["landmark_id"][sample.label] == sample.landmark_id
        assert sample.jpeg.startswith(b"\xff\xd8\xff")
    with pytest.raises(KeyError):
        dataset.sample("no-such-key")
    with pytest.raises(DatasetError, match="no split 'extra'; it has train, val, test"):
        dataset.index("extra")


def test_many_threads_read_with_few_open_files(dataset_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset_module, "_OPEN_SHARDS", 2)
    with ShardedDataset.open(dataset_path) as dataset, ThreadPoolExecutor(8) as pool:
        expected = [sample.jpeg for sample in dataset.samples("train")]
        order = [i * 7 % len(expected) for i in range(len(expected))] * 5
        read = list(pool.map(lambda i: dataset.read("train", i).jpeg, order))
        assert read == [expected[i] for i in order]
        assert len(dataset._descriptors) <= 2


def test_a_read_is_repeated_while_the_disk_fails(dataset: ShardedDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    sample, pread, failures = dataset.read("train", 0), os.pread, [None] * 3

    def failing(*place: int) -> bytes:
        if failures:
            failures.pop()
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return pread(*place)

    monkeypatch.setattr("lmk_data.system.storage._LOCAL_PAUSES_SECONDS", (0.001,) * 3)
    monkeypatch.setattr(os, "pread", failing)
    assert dataset.read("train", 0) == sample
    failures += [None] * 4
    with pytest.raises(StorageError, match=r"train-000000\.tar: Input/output error; is the storage there\?"):
        dataset.read("train", 0)


def test_a_dataset_is_handed_to_another_process(dataset: ShardedDataset, tmp_path: Path) -> None:
    write_view(dataset, Selection(top=2), str(tmp_path / "view"))
    with ShardedDataset.open(tmp_path / "view") as view:
        for opened in (dataset, view):
            sample = opened.read("train", 1)
            handed = pickle.loads(pickle.dumps(opened))
            assert handed.read("train", 1) == sample
            handed.close()


def test_a_sample_holds_plain_values(dataset: ShardedDataset) -> None:
    sample = dataset.read("train", 0)
    assert (type(sample.label), type(sample.landmark_id)) == (int, int)


def test_tables_do_not_name_the_libraries_that_wrote_them(dataset_path: Path, dataset: ShardedDataset) -> None:
    for path in dataset_path.rglob("*.parquet"):
        assert ".build" in path.parts or not pq.read_schema(path).metadata, path


def test_a_dataset_behind_a_url_reads_the_same(dataset_path: Path, dataset: ShardedDataset) -> None:
    fs = fsspec.filesystem("memory")
    fs.put(str(dataset_path), "/bucket/shards", recursive=True)
    with ShardedDataset.open("memory://bucket/shards") as remote:
        assert remote.manifest == dataset.manifest
        assert list(remote) == list(dataset)
    fs.rm("/bucket", recursive=True)
    with pytest.raises(DatasetError, match=r"memory://bucket/shards/dataset\.json: no such file"):
        ShardedDataset.open("memory://bucket/shards")


def test_an_index_that_leads_out_of_the_dataset_is_refused(dataset_path: Path, tmp_path: Path) -> None:
    out = tmp_path / "copy"
    shutil.copytree(dataset_path, out)
    (tmp_path / "secret").write_bytes(bytes(1 << 20))
    table = pq.read_table(out / "index" / "val.parquet")
    shard = pa.array(["../secret"] * len(table)).dictionary_encode()
    pq.write_table(table.set_column(table.column_names.index("shard"), "shard", shard), out / "index" / "val.parquet")
    with ShardedDataset.open(out) as dataset, pytest.raises(DatasetError, match=r"val index names '\.\./secret'"):
        dataset.read("val", 0)
    with ShardedDataset.open(out) as dataset, pytest.raises(DatasetError, match="which the manifest does not"):
        write_report(dataset, open_folder(tmp_path / "report"))


def test_what_is_not_whole_is_refused(dataset_path: Path, tmp_path: Path) -> None:
    out = tmp_path / "copy"
    shutil.copytree(dataset_path, out)
    shard = out / "shards" / "train" / "train-000001.tar"
    shard.write_bytes(shard.read_bytes()[:-512])
    with pytest.raises(DatasetError, match=r"train-000001\.tar: .* instead of"):
        ShardedDataset.open(out)
    shard.unlink()
    with pytest.raises(DatasetError, match=r"train-000001\.tar: shard is missing"):
        ShardedDataset.open(out)


def test_a_manifest_that_states_the_content_of_another_dataset_is_refused(dataset_path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(dataset_path, copy)
    manifest = json.loads((copy / "dataset.json").read_text())
    (copy / "dataset.json").write_text(json.dumps({**manifest, "content_sha256": "0" * 64}))
    with pytest.raises(DatasetError, match=r"dataset\.json: content_sha256 is 000000000000, that of its files "):
        ShardedDataset.open(copy)
