"""Images are found and read wherever they lie: folders, tars, zips, globs, URLs, several at once."""

import tarfile
import zipfile
from pathlib import Path

import fsspec
import pytest

from lmk_data.dataset.format import Rejection
from lmk_data.errors import StorageError, UserError
from tests.data.sources.packed import content, found, read, touch, write_tar, write_zip


@pytest.mark.parametrize("layout", ["{0}/{1}/{2}/{id}.jpg", "{id}.jpg", "some/where/{id}.PNG"])
def test_images_are_found_in_any_layout(tmp_path: Path, layout: str) -> None:
    ids = ["abcd1234", "efgh5678"]
    names = [layout.format(*i, id=i) for i in ids]
    touch(tmp_path / "images", *names)
    (tmp_path / "images" / "self").symlink_to(tmp_path / "images")
    stores, located = found([*ids, "notthere", "../../etc/passwd"], tmp_path / "images")
    images = located.frame.set_index("id")
    for i, name in zip(ids, names, strict=True):
        assert images.loc[i, "source"] == name
        assert read(stores, images.loc[i]) == content(name)
    assert images.loc["../../etc/passwd", "reason"] == "unsafe-path"
    assert images.loc["notthere", "reason"] == "missing" or layout.startswith("{0}"), "a fan-out is not scanned"


@pytest.mark.parametrize("extension", ["", ".png"])
def test_a_path_tells_files_of_one_name_apart(tmp_path: Path, extension: str) -> None:
    """Label tables drop the extension of an id."""
    touch(tmp_path / "images", "cats/1.png", "dogs/1.png", "dogs/2.png")
    stores, located = found([f"{i}{extension}" for i in ("dogs/1", "dogs/2", "cats/1")], tmp_path / "images")
    wanted = [content(name) for name in ("dogs/1.png", "dogs/2.png", "cats/1.png")]
    assert [read(stores, row) for _, row in located.frame.iterrows()] == wanted


def test_linked_images_are_followed(tmp_path: Path) -> None:
    touch(tmp_path / "elsewhere", "a1.jpg", "deep/b2.jpg")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a1.jpg").symlink_to(tmp_path / "elsewhere" / "a1.jpg")
    (tmp_path / "images" / "linked").symlink_to(tmp_path / "elsewhere" / "deep")
    stores, located = found(["a1", "b2"], tmp_path / "images")
    assert [read(stores, row) for _, row in located.frame.iterrows()] == [content("a1.jpg"), content("deep/b2.jpg")]


def test_several_stores_of_every_kind_at_once(tmp_path: Path) -> None:
    members = {f"{i}/x/{i}000.jpg": content(f"{i}000") for i in "abcdef"}
    names = list(members)
    touch(tmp_path / "folder", names[0], "unlisted.jpg")
    write_tar(tmp_path / "images_000.tar", {names[1]: members[names[1]], "d.txt": b"not listed"})
    write_tar(tmp_path / "images_001.tar", {f"./{names[2]}": members[names[2]]}, tarfile.GNU_FORMAT)
    write_zip(tmp_path / "stored.zip", {f"train/{names[3]}": members[names[3]]})
    write_zip(tmp_path / "deflated.zip", {f"train/{names[4]}": members[names[4]]}, zipfile.ZIP_DEFLATED)
    write_tar(tmp_path / "far.tar", {names[5]: members[names[5]]})
    with fsspec.open("memory://bucket/far.tar", "wb") as file:
        file.write((tmp_path / "far.tar").read_bytes())
    paths = [tmp_path / "folder", tmp_path / "images_*.tar", tmp_path / "stored.zip", tmp_path / "deflated.zip"]
    stores, located = found([f"{i}000" for i in "abcdef"], *paths, "memory://bucket/*.tar")
    assert len(stores) == 6
    assert located.num_ignored == 2
    assert located.frame["store"].tolist() == [0, 1, 2, 3, 4, 5]
    first = read(stores, located.frame.iloc[0])
    assert first == content(names[0])
    rest = [read(stores, row) for _, row in located.frame.iloc[1:].iterrows()]
    assert rest == [content(f"{i}000") for i in "bcdef"]


def test_a_folder_of_tars_counts_as_these(tmp_path: Path) -> None:
    write_tar(tmp_path / "images_000.tar", {"a/a1.jpg": b"1"})
    write_tar(tmp_path / "images_001.tar", {"b/b1.jpg": b"2"})
    (tmp_path / "md5.images_000.txt").write_text("of no interest")
    stores, located = found(["b1", "a1"], tmp_path)
    assert [read(stores, row) for _, row in located.frame.iterrows()] == [b"2", b"1"]


def test_no_image_at_all_is_an_error(tmp_path: Path) -> None:
    touch(tmp_path / "images", "other.jpg")
    with pytest.raises(UserError, match="no image of the label table was found"):
        found(["abc"], tmp_path / "images")


def test_missing_needs_a_folder_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmk_data.system.storage._LOCAL_PAUSES_SECONDS", (0.001,) * 3)
    touch(tmp_path / "images", "a1.jpg", "b1.jpg")
    stores, located = found(["a1", "b1"], tmp_path / "images")
    (tmp_path / "images" / "a1.jpg").unlink()
    gone = read(stores, located.frame.iloc[0])
    assert isinstance(gone, Rejection)
    assert gone.reason == "missing"
    (tmp_path / "images" / "b1.jpg").unlink()  # as when the disk is not mounted: an empty folder
    with pytest.raises(StorageError, match="is the storage there"):
        read(stores, located.frame.iloc[0])
    (tmp_path / "images").rmdir()
    with pytest.raises(StorageError, match="is the storage there"):
        read(stores, located.frame.iloc[0])
