"""Datasets behind a URL: shards are fetched once, whole, checked, shared, and make room for one another."""

import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import fsspec
import numpy as np
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

from lmk_data.dataset import ShardedDataset
from lmk_data.errors import DatasetError, StorageError, UserError
from lmk_data.options import Selection
from lmk_data.views.view import write_view
from lmk_train.config.arguments import Cache, CacheOptions
from lmk_train.data.cache import ShardFiles
from lmk_train.data.order import epoch_order
from lmk_train.data.reader import SplitReader
from lmk_train.data.stream import BatchStream
from tests import forked
from tests.train.training import recorded_training
from tests.web import serving

CPU = torch.device("cpu")


@pytest.fixture
def remote(dataset_path: Path) -> Iterator[ShardedDataset]:
    """The small dataset in fsspec's memory, whose reads can be counted."""
    memory = fsspec.filesystem("memory")
    memory.put(f"{dataset_path}/", "/bucket/shards/", recursive=True)
    yield ShardedDataset.open("memory://bucket/shards")
    memory.rm("/bucket", recursive=True)


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the shards that were copied whole, as it happens."""
    done: list[str] = []
    copy = ShardedDataset.copy_shard

    def counted(self: ShardedDataset, name: str, file: object) -> None:
        copy(self, name, file)  # type: ignore[arg-type]
        done.append(name)

    monkeypatch.setattr(ShardedDataset, "copy_shard", counted)
    return done


def cached(dataset: ShardedDataset, folder: Path, name: str) -> Path:
    return folder / f"user-{os.geteuid()}" / f"{dataset.shard_files[name]['sha256']}.tar"


def bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.tar"))


def test_a_remote_dataset_is_read_as_a_local_one_each_shard_fetched_once(
    remote: ShardedDataset, dataset: ShardedDataset, tmp_path: Path, copies: list[str]
) -> None:
    cache = Cache(tmp_path / "cache", 10**9)
    reader, local = SplitReader(remote, "train", cache), SplitReader(dataset, "train", cache)
    for epoch in range(2):
        order = epoch_order(reader.labels, reader.shard_of_row, 0, epoch)
        batches = [order[i : i + 7] for i in range(0, len(order), 7)]
        far, near = (BatchStream(which, CPU, 7, 3)(batches) for which in (reader, local))
        for there, here in zip(far, near, strict=True):
            assert torch.equal(there.pixels, here.pixels)
            assert torch.equal(there.labels, here.labels)
    assert sorted(copies) == sorted(shard["name"] for shard in remote.shards("train"))
    reader.close()
    again = SplitReader(remote, "train", cache)
    again.decode(np.array([0]), np.empty((1, 64, 64, 3), np.uint8))
    assert len(copies) == len(remote.shards("train")), "what is there is not fetched again"
    again.close()
    assert not list((tmp_path / "cache").rglob("*.tmp"))


def test_several_readers_that_want_the_same_shard_fetch_it_once(
    remote: ShardedDataset, tmp_path: Path, copies: list[str]
) -> None:
    """Each has its own locks, as processes have."""
    name = remote.shards("train")[0]["name"]
    readers = [ShardFiles(remote, Cache(tmp_path / "cache", 10**9)) for _ in range(6)]
    start = threading.Barrier(6)

    def read(files: ShardFiles) -> bytes:
        start.wait()
        return files.open(name).read(0, 10**9)

    with ThreadPoolExecutor(6) as pool:
        assert len(set(pool.map(read, readers))) == 1
    assert copies == [name]
    for files in readers:
        files.close()


def test_the_cache_stays_within_its_size_and_keeps_what_was_used_last(remote: ShardedDataset, tmp_path: Path) -> None:
    shards = remote.shards("train")
    size = max(shard["num_bytes"] for shard in shards)
    files = ShardFiles(remote, Cache(tmp_path / "cache", 2 * size))
    for shard in [shards[0], shards[1], shards[0], shards[2]]:
        assert len(files.open(shard["name"]).read(0, 10**9)) == shard["num_bytes"]
        files.close()  # so that the next is opened anew, and counts as used
        files = ShardFiles(remote, Cache(tmp_path / "cache", 2 * size))
        assert bytes_in(tmp_path / "cache") <= 2 * size
    held = set((tmp_path / "cache").rglob("*.tar"))
    assert held == {cached(remote, tmp_path / "cache", shards[n]["name"]) for n in (0, 2)}
    locks = {path.name for path in (tmp_path / "cache").rglob("*.lock")}
    assert locks == {"room.lock", *(f"{path.name}.lock" for path in held)}
    files.close()


def test_the_cache_stays_within_its_size_while_two_processes_fetch_at_once(
    remote: ShardedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has its own locks, as processes have."""
    names = [shard["name"] for shard in remote.shards("train")[:3]]
    limit = 2 * max(shard["num_bytes"] for shard in remote.shards("train"))
    first, *both = (ShardFiles(remote, Cache(tmp_path / "cache", limit)) for _ in range(3))
    first.open(names[0])
    meeting, copy, held = threading.Barrier(2), ShardedDataset.copy_shard, []

    def meet(self: ShardedDataset, name: str, file: BinaryIO) -> None:
        meeting.wait(30)
        copy(self, name, file)
        held.append(sum(path.stat().st_size for path in (tmp_path / "cache").rglob("*.t*")))
        meeting.wait(30)  # nothing is renamed while either counts

    monkeypatch.setattr(ShardedDataset, "copy_shard", meet)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(ShardFiles.open, both, names[1:]))
    assert max(held) <= limit
    for files in (first, *both):
        files.close()


def test_what_others_keep_in_the_folder_of_the_cache_stays(remote: ShardedDataset, tmp_path: Path) -> None:
    ours = f"user-{os.geteuid()}"
    names = (
        "a.tar",
        "photos/b.tar",
        "c.tmp",
        f"{'0' * 32}/shards/a.tar",
        "user-1/" + "0" * 64 + ".tar",
        f"{ours}/a.tar",
    )
    kept = [tmp_path / "cache" / name for name in names]
    for path in kept:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(1000))
        os.utime(path, (0, 0))
    files = ShardFiles(remote, Cache(tmp_path / "cache", 1))
    for shard in remote.shards("train")[:2]:
        files.open(shard["name"])
    files.close()
    assert all(path.exists() for path in kept)


def test_a_dataset_that_states_the_content_of_another_does_not_take_its_place(
    remote: ShardedDataset, dataset: ShardedDataset, tmp_path: Path
) -> None:
    """Its manifest names the same shard and the same content, with the hash of other bytes."""
    memory, name = fsspec.filesystem("memory"), remote.shards("train")[0]["name"]
    memory.copy("/bucket/shards", "/bucket/evil", recursive=True)
    whole = memory.cat_file(f"/bucket/shards/{name}")
    memory.pipe_file(f"/bucket/evil/{name}", whole[::-1])
    evil = ShardedDataset.open("memory://bucket/evil")
    evil.shard_files[name]["sha256"] = hashlib.sha256(whole[::-1]).hexdigest()
    files = [ShardFiles(which, Cache(tmp_path / "cache", 10**9)) for which in (evil, remote)]
    assert [shards.open(name).read(0, 10**9) for shards in files] == [whole[::-1], whole]
    for shards in files:
        shards.close()


def test_a_folder_of_somebody_else_in_the_cache_is_not_used(remote: ShardedDataset, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "theirs").mkdir()
    (tmp_path / "cache" / f"user-{os.geteuid()}").symlink_to(tmp_path / "theirs")
    files = ShardFiles(remote, Cache(tmp_path / "cache", 10**9))
    with pytest.raises(UserError, match="in it is not a folder of yours"):
        files.open(remote.shards("train")[0]["name"])
    files.close()
    assert not list((tmp_path / "theirs").iterdir())


def test_without_a_home_folder_only_what_is_downloaded_needs_a_cache(
    remote: ShardedDataset, dataset: ShardedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nobody(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.setattr("pwd.getpwuid", nobody)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    cache = CacheOptions().resolved()
    ShardFiles(dataset, cache).close()
    with pytest.raises(UserError, match="--cache: there is no home folder"):
        ShardFiles(remote, cache)


def test_a_file_in_use_can_be_read_though_it_made_room(remote: ShardedDataset, tmp_path: Path) -> None:
    first, second = (shard["name"] for shard in remote.shards("train")[:2])
    files, other = (ShardFiles(remote, Cache(tmp_path / "cache", 1)) for _ in range(2))
    shard = files.open(first)
    other.open(second)
    assert list((tmp_path / "cache").rglob("*.tar")) == [cached(remote, tmp_path / "cache", second)]
    assert len(shard.read(0, 10**9)) == remote.shard_files[first]["num_bytes"]
    files.close()
    other.close()


def test_shards_are_fetched_ahead_in_the_order_of_the_epoch_and_not_too_far(
    remote: ShardedDataset, tmp_path: Path, copies: list[str]
) -> None:
    names = [shard["name"] for shard in remote.shards("train")]
    files = ShardFiles(remote, Cache(tmp_path / "cache", 10**9))
    files.expect(names, 1)
    wait_until(lambda: len(copies) >= 3)
    assert set(copies) <= set(names[:3]), "the one that is read first, and two windows of one shard"
    files.open(names[2])
    wait_until(lambda: len(copies) >= 5)
    assert set(copies) == set(names[:5])
    files.close()


def test_local_shards_are_read_ahead_in_the_order_of_the_epoch_and_not_too_far(
    dataset: ShardedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    advise, advised = os.posix_fadvise, []

    def watched(descriptor: int, offset: int, num_bytes: int, advice: int) -> None:
        assert advice == os.POSIX_FADV_WILLNEED
        advised.append((os.readlink(f"/proc/self/fd/{descriptor}"), offset))
        advise(descriptor, offset, num_bytes, advice)

    monkeypatch.setattr(os, "posix_fadvise", watched)
    monkeypatch.setattr("lmk_train.data.cache._ADVISED_AT_ONCE", 4096)
    names = [shard["name"] for shard in dataset.shards("train")]
    sizes = [shard["num_bytes"] for shard in dataset.shards("train")]
    paths = [str(dataset.shard_path(name).resolve()) for name in names]
    files = ShardFiles(dataset, Cache(tmp_path, 0))
    for _ in range(2):  # in a second epoch too, though the shards are open then
        advised.clear()
        files.expect(names, 1)
        wanted = [(path, offset) for path, size in zip(paths, sizes, strict=True) for offset in range(0, size, 4096)]
        wait_until(lambda wanted=wanted: advised == [x for x in wanted if x[0] in paths[:2]])  # type: ignore[misc]
        files.open(names[1])
        wait_until(lambda wanted=wanted: advised == [x for x in wanted if x[0] in paths[:3]])  # type: ignore[misc]
    files.close()


@pytest.mark.slow
def test_a_training_on_a_url_that_is_stopped_leaves_at_once(dataset_path: Path, tmp_path: Path) -> None:
    """Long before the last shard is due."""
    words = ["--out", str(tmp_path / "run"), "--cache", str(tmp_path / "cache"), "--model", "resnet32"]
    words += ["--epochs", "1", "--batch-size", "2", "--device", "cpu", "--quiet"]
    main = recorded_training.main_with_windows_of_one_shard
    with serving(dataset_path) as host:
        words = [str(tmp_path / "log"), "1", "--shards", f"http://{host}", *words]
        code, said = forked.run(main, words, tmp_path / "said.txt")
    assert code == 130, said
    assert len(list((tmp_path / "cache").rglob("*.tar"))) < len(list((dataset_path / "shards/train").iterdir()))


def wait_until(holds: Callable[[], bool]) -> None:
    for _ in range(500):
        if holds():
            break
        threading.Event().wait(0.01)
    assert holds()
    threading.Event().wait(0.2)  # and does no more than that


def test_a_damaged_shard_and_an_unreachable_one_are_errors_that_name_it(
    remote: ShardedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = remote.shards("train")[0]["name"]
    memory = fsspec.filesystem("memory")
    whole = memory.cat_file(f"/bucket/shards/{name}")
    memory.pipe_file(f"/bucket/shards/{name}", whole[:1000] + b"?" + whole[1001:])
    files = ShardFiles(remote, Cache(tmp_path / "cache", 10**9))
    with pytest.raises(DatasetError, match=r"train-000000\.tar: not the shard that the manifest describes"):
        files.open(name)
    memory.rm_file(f"/bucket/shards/{name}")
    monkeypatch.setattr("time.sleep", lambda _: None)
    with pytest.raises(StorageError, match=r"train-000000\.tar: .*is the storage there"):
        files.open(name)
    assert not list((tmp_path / "cache").rglob("*.tar"))
    files.close()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--cache"):
        ShardFiles(remote, Cache(tmp_path / "file" / "cache", 1)).open(name)


def test_a_shard_damaged_in_the_cache_is_fetched_once_more(
    remote: ShardedDataset, dataset: ShardedDataset, tmp_path: Path, copies: list[str]
) -> None:
    reader, local = (SplitReader(which, "train", Cache(tmp_path / "cache", 10**9)) for which in (remote, dataset))
    out, expected = (np.empty((len(reader), 64, 64, 3), np.uint8) for _ in range(2))
    rows = np.arange(len(reader))
    local.decode(rows, expected)
    reader.decode(rows, out)
    path = cached(remote, tmp_path / "cache", "shards/train/train-000000.tar")
    whole = path.read_bytes()
    path.write_bytes(bytes(len(whole)))
    for batch in BatchStream(reader, CPU, len(rows), 4)([rows]):
        assert (batch.pixels.numpy() == expected).all()
    assert copies.count("shards/train/train-000000.tar") == 2
    assert path.read_bytes() == whole
    path.write_bytes(bytes(len(whole)))
    with pytest.raises(DatasetError, match=rf"memory://bucket/.* \(fetched as {path}\): sample .* damaged"):
        reader.decode(rows, out)
    assert copies.count("shards/train/train-000000.tar") == 2
    reader.close()


def test_a_view_that_wants_little_of_a_shard_fetches_pictures_not_shards(
    remote: ShardedDataset, dataset: ShardedDataset, tmp_path: Path, copies: list[str]
) -> None:
    write_view(remote, Selection(classes=("113209",)), "memory://bucket/view")
    with ShardedDataset.open("memory://bucket/view") as view:
        reader = SplitReader(view, "train", Cache(tmp_path / "cache", 10**9))
        batch = next(BatchStream(reader, CPU, len(reader))([np.arange(len(reader))]))
        keys = reader.keys()
        assert not copies
        for key, pixels in zip(keys, batch.pixels.numpy(), strict=True):
            index = dataset.index("train")
            row = int(index.index[index["key"] == key][0])
            expected = np.empty((64, 64, 3), np.uint8)
            SplitReader(dataset, "train", Cache(tmp_path, 0)).decode(np.array([row]), expected[None])
            assert (pixels == expected).all()
        reader.close()


def test_pictures_fetched_one_by_one_are_asked_for_again_and_named_where_the_shard_ends(
    remote: ShardedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_view(remote, Selection(classes=("113209",)), "memory://bucket/view")
    memory, read, failures = fsspec.filesystem("memory"), MemoryFileSystem.cat_file, []

    def unreliable(self: MemoryFileSystem, path: str, start: int | None = None, end: int | None = None) -> bytes:
        if path.endswith(".tar") and len(failures) < 2:
            failures.append(path)
            raise OSError("connection reset")
        return bytes(read(self, path, start, end))

    monkeypatch.setattr("time.sleep", lambda _: None)
    with ShardedDataset.open("memory://bucket/view") as view:
        reader, out = SplitReader(view, "train", Cache(tmp_path / "cache", 0)), np.empty((1, 64, 64, 3), np.uint8)
        monkeypatch.setattr(MemoryFileSystem, "cat_file", unreliable)
        reader.decode(np.array([0]), out)
        assert len(failures) == 2
        sample = view.index("train").iloc[0]
        memory.pipe_file(f"/bucket/shards/{sample['shard']}", b"?" * (int(sample["jpg_offset"]) + 10))
        place = f"^memory://bucket/shards/{sample['shard']}: sample {sample['key']} at offset"
        with pytest.raises(DatasetError, match=f"{place} .*: the shard ends within it"):
            reader.decode(np.array([0]), out)
        reader.close()
