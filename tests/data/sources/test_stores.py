"""Folders, archives and URLs as stores of images."""

from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from lmk_data.dataset.format import Rejection
from lmk_data.errors import UserError
from lmk_data.sources.members import read_members
from lmk_data.sources.stores import open_stores
from lmk_data.system.storage import LocalFolder, read_file
from tests.data.sources.packed import content, found, read, touch, write_tar
from tests.web import serving


def test_what_is_written_to_is_no_source(tmp_path: Path) -> None:
    write_tar(tmp_path / "images_0.tar", {"a.jpg": content("a")})
    touch(tmp_path, ".git/x.jpg", "out/shards/b.jpg")
    (store,) = open_stores([str(tmp_path)], LocalFolder(str(tmp_path / "out")))
    assert store.location.endswith("images_0.tar")
    touch(tmp_path, "class/c.jpg", "outer/d.jpg")
    stores = open_stores([str(tmp_path)], LocalFolder(str(tmp_path / "out")))
    assert read_members(stores, cache=None).frame["source"].tolist() == ["class/c.jpg", "images_0.tar", "outer/d.jpg"]


def test_a_huge_file_behind_a_url_is_not_read() -> None:
    fs = fsspec.filesystem("memory")
    fs.pipe({"/huge/c/small.jpg": b"small", "/huge/c/video.jpg": bytes(5000)})
    stores = open_stores(["memory://huge"])
    small, video = (read(stores, row, 4000) for _, row in read_members(stores, cache=None).frame.iterrows())
    fs.rm("/huge", recursive=True)
    assert small == b"small"
    assert isinstance(video, Rejection)
    assert video.reason == "too-large"


def test_what_is_no_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.tar.gz").write_bytes(b"\x1f\x8b\x08" + bytes(600))
    (tmp_path / "a.csv").write_text("id,landmark_id\n")
    for name, said in (("a.tar.gz", "decompress it"), ("a.csv", "neither"), ("none", "no such"), ("*.zip", "nothing")):
        with pytest.raises(UserError, match=said):
            open_stores([str(tmp_path / name)])
    with pytest.raises(UserError, match="nosuch"):
        open_stores(["nosuch://bucket/x"])


@pytest.fixture
def web_server(tmp_path: Path) -> Iterator[str]:
    with serving(tmp_path) as place:
        yield f"http://{place}"


def test_names_behind_a_web_server_are_those_of_the_files(tmp_path: Path, web_server: str) -> None:
    pytest.importorskip("aiohttp", reason="fsspec reads http with aiohttp")
    names = ["Notre-Dame (Paris)/(1)!.jpg", "a#b/1 %41.jpg", "red rose/1+2=3.jpg", "red rose/é?.jpg"]
    touch(tmp_path / "train", *names)
    (tmp_path / "train" / "..%2f..").mkdir()
    stores = open_stores([f"{web_server}/train"])
    members = read_members(stores, cache=None).frame
    assert sorted(members["source"]) == names
    assert {row["source"]: read(stores, row) for _, row in members.iterrows()} == {
        name: content(name) for name in names
    }
    stores, located = found(names, f"{web_server}/train")
    assert [read(stores, row) for _, row in located.frame.iterrows()] == [content(name) for name in names]
    assert read_file(f"{web_server}/train/red%20rose/1+2=3.jpg?token=x", 10_000) == content("red rose/1+2=3.jpg")


def test_a_tree_behind_a_web_server(tmp_path: Path, web_server: str) -> None:
    pytest.importorskip("aiohttp", reason="fsspec reads http with aiohttp")
    touch(tmp_path / "train", "a/b/c/abc123.jpg")
    stores, located = found(["abc123", "abc999"], f"{web_server}/train")
    assert read(stores, located.frame.iloc[0]) == content("a/b/c/abc123.jpg")
    missing = read(stores, located.frame.iloc[1])
    assert isinstance(missing, Rejection)
    assert missing.reason == "missing"
