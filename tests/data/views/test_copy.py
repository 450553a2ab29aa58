"""Copies of views are datasets of their own."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset

from lmk_data.build import BuildOptions, build
from lmk_data.dataset import ShardedDataset
from lmk_data.errors import DatasetError, StorageError
from lmk_data.options import Selection
from lmk_data.system.storage import LocalFolder
from lmk_data.verify.dataset import verify
from lmk_data.views.copy import write_copy
from lmk_data.views.view import write_view
from tests.data.views.members import members
from tests.drawing import draw

Options = Callable[..., BuildOptions]


def test_a_copy_is_a_dataset_of_its_own(dataset_path: Path, tmp_path: Path) -> None:
    with ShardedDataset.open(dataset_path) as dataset:
        write_view(dataset, Selection(classes=("7", "83144")), str(tmp_path / "view"))
    with ShardedDataset.open(tmp_path / "view") as view:
        write_copy(view, Selection(), str(tmp_path / "copy"), workers=2, quiet=True)
        again = write_copy(view, Selection(), str(tmp_path / "copy"), quiet=True)
    assert members(tmp_path / "copy") == members(tmp_path / "view")
    assert not verify(str(tmp_path / "copy"), quiet=True).problems
    with ShardedDataset.open(tmp_path / "copy") as copied:
        assert again == copied.manifest
        assert not copied.is_view
        assert copied.manifest["source"]["subset_of"]["selection"]
        urls = [str(copied.shard_path(shard["name"])) for shard in copied.shards("train")]
        for sample in webdataset.WebDataset(urls, shardshuffle=False):
            stated = json.loads(sample["json"])
            assert copied.classes["landmark_id"][int(sample["cls"])] == stated["landmark_id"]
            assert stated["label"] == int(sample["cls"]) < 2


def test_a_copy_reads_again_while_the_disk_fails_and_names_the_shard(
    dataset_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_range, failures = LocalFolder.read_range, [None] * 3

    def failing(folder: LocalFolder, *place: Any) -> bytes:
        if failures:
            failures.pop()
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read_range(folder, *place)

    monkeypatch.setattr("lmk_data.system.storage._LOCAL_PAUSES_SECONDS", (0.001,) * 3)
    monkeypatch.setattr(LocalFolder, "read_range", failing)
    with ShardedDataset.open(dataset_path) as dataset:
        write_copy(dataset, Selection(top=1), str(tmp_path / "copy"), workers=1, quiet=True)
        failures += [None] * 1000
        with pytest.raises(StorageError, match=r"shards/shards/train/.*\.tar: Input/output error; is the storage"):
            write_copy(dataset, Selection(top=1), str(tmp_path / "other"), workers=1, quiet=True)


def test_a_copys_classes_are_in_order_of_their_size(tmp_path: Path, options: Options) -> None:
    """Of nine pictures of one class, which are all the same, one is left; of six others, all."""
    for label, number in (("a", 9), ("b", 6)):
        for i in range(number):
            draw(tmp_path / "images" / label / f"{i}.jpg", ord(label), i if label == "b" else 0)
    build(options(images=[str(tmp_path / "images")], labels="classes"))
    with ShardedDataset.open(tmp_path / "shards") as dataset:
        write_copy(dataset, Selection(drop_duplicates="exact"), str(tmp_path / "copy"), workers=1, quiet=True)
    with ShardedDataset.open(tmp_path / "copy") as copy:
        assert copy.classes[["landmark_id", "listed"]].to_numpy().tolist() == [["b", 6], ["a", 1]]
        assert all(copy.classes["landmark_id"][sample.label] == sample.landmark_id for sample in copy)
        write_view(copy, Selection(top=1), str(tmp_path / "largest"))
    assert not verify(str(tmp_path / "copy"), quiet=True).problems
    with ShardedDataset.open(tmp_path / "largest") as largest:
        assert largest.classes["landmark_id"].tolist() == ["b"]


def test_a_copy_that_was_cut_short_goes_on(dataset_path: Path, tmp_path: Path) -> None:
    with ShardedDataset.open(dataset_path) as dataset:
        whole = write_copy(dataset, Selection(top=3), str(tmp_path / "whole"), workers=1, quiet=True)
        write_copy(dataset, Selection(top=3), str(tmp_path / "cut"), workers=1, quiet=True)
        (tmp_path / "cut" / "dataset.json").unlink()
        (tmp_path / "cut" / "shards" / "val" / "val-000000.tar").unlink()
        kept = (tmp_path / "cut" / "shards" / "train" / "train-000000.tar").stat().st_mtime_ns
        assert write_copy(dataset, Selection(top=3), str(tmp_path / "cut"), workers=1, quiet=True) == whole
        assert (tmp_path / "cut" / "shards" / "train" / "train-000000.tar").stat().st_mtime_ns == kept


def test_a_damaged_picture_is_not_copied(dataset_path: Path, tmp_path: Path) -> None:
    shutil.copytree(dataset_path, tmp_path / "base")
    with ShardedDataset.open(tmp_path / "base") as dataset:
        row = dataset.index("train").iloc[3]
        tar = tmp_path / "base" / row["shard"]
        data = np.fromfile(tar, dtype=np.uint8)
        data[int(row["jpg_offset"]) + 50] ^= 1
        data.tofile(tar)
        with pytest.raises(DatasetError, match=row["key"]):
            write_copy(dataset, Selection(), str(tmp_path / "copy"), workers=1, quiet=True)
    assert not (tmp_path / "copy" / "dataset.json").exists()
