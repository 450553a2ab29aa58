"""Images are found and read wherever they lie: folders, tars, zips, globs, URLs, several at once."""

import os
import tarfile
import zipfile
from pathlib import Path

import fsspec
import pandas as pd
import pytest

from lmk_data.dataset.format import Rejection
from lmk_data.errors import StorageError, UserError
from lmk_data.leftovers import LEFT_BY_SYSTEMS
from lmk_data.sources.locate import NOT_LISTED, locate
from lmk_data.sources.members import Ignored, read_members
from lmk_data.sources.stores import open_stores
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
    assert located.ignored == [Ignored(NOT_LISTED, 2, "unlisted.jpg")]
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


def test_the_file_that_the_table_names_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    touch(tmp_path, "annotations/a.png", "images/a.jpg", "images/b.bmp", "images/b.jpg", "images/c.png")
    _, located = found(["a.jpg", "b.jpg", "c.jpg", "b.bmp"], tmp_path)
    assert located.frame["source"].tolist() == ["images/a.jpg", "images/b.jpg", "images/c.png", "images/b.bmp"]
    said = capsys.readouterr().err
    assert (
        "1 files that the label table names are there with another extension, such as 'c.jpg': 'images/c.png'" in said
    )
    assert "match several" not in said
    found(["a"], tmp_path)
    assert "1 ids match several files, of which the first is taken, such as 'a': 'annotations/a.png'" in (
        capsys.readouterr().err
    )


def test_a_fan_out_hides_no_other_file(tmp_path: Path) -> None:
    ids = [f"{number:04x}" for number in range(40)]
    places = [f"{i[0]}/{i[1]}/{i[2]}/{i}.jpg" for i in ids]
    touch(tmp_path, *places, "extra/ffff.png", "0/0/0/0000.png")
    _, located = found([*ids, "ffff", "0000.png", "eeee"], tmp_path)
    assert located.frame["source"].tolist() == [*places, "extra/ffff.png", "0/0/0/0000.png", "e/e/e/eeee.jpg"]
    assert set(located.frame["reason"]) == {""}, "a missing one is noticed when it is read"
    assert located.ignored == []


@pytest.mark.parametrize("beginning", ["img/", "{root}/img/", "{name}/img/", ""])
def test_paths_may_begin_with_the_folder_of_images(tmp_path: Path, beginning: str) -> None:
    touch(tmp_path, "img/c0/1.jpg", "img/c1/1.jpg")
    beginning = beginning.format(root=tmp_path, name=tmp_path.name)
    _, located = found([f"{beginning}c1/1.jpg", f"{beginning}c0/1"], tmp_path / "img")
    assert located.frame["source"].tolist() == ["c1/1.jpg", "c0/1.jpg"]
    assert set(located.frame["reason"]) == {""}


def test_names_match_in_any_unicode_form(tmp_path: Path) -> None:
    touch(tmp_path, "cafe\u0301.jpg", " a .jpg")
    for name in ("caf\u00e9.jpg", "caf\u00e9"):
        _, located = found([name], tmp_path)
        assert located.frame["source"].tolist() == ["cafe\u0301.jpg"]


def test_a_file_that_several_ids_name_is_one_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    touch(tmp_path / "two", "a.jpg", "b.jpg", "c.jpg")
    stores = open_stores([str(tmp_path / "two")])
    ids = ["a.jpg", "a", "two/a.jpg", "b", "b.jpg", "c"]
    labels = pd.DataFrame({"id": ids, "landmark_id": [1, 2, 1, 3, 3, 4]})
    located = locate(labels, stores, lambda: read_members(stores, cache=None))
    assert located.frame["id"].tolist() == ["b", "c"]
    assert located.frame.index.tolist() == [0, 1]
    assert (located.repeated, located.conflicting) == (1, 3)
    assert "5 ids name files that other ids name too, such as 'a.jpg' and 'a'" in capsys.readouterr().err


def test_a_row_of_another_extension_gives_way_to_one_that_names_the_file(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "b.jpg")
    stores = open_stores([str(tmp_path)])
    labels = pd.DataFrame({"id": ["a.jpg", "a.png", "b.png", "b.gif"], "landmark_id": [1, 2, 3, 3]})
    located = locate(labels, stores, lambda: read_members(stores, cache=None))
    assert located.frame[["id", "reason"]].to_numpy().tolist() == [["a.jpg", ""], ["a.png", "missing"], ["b.png", ""]]
    assert (located.repeated, located.conflicting) == (1, 0)


def test_a_file_with_a_sound_name_is_taken_before_one_whose_name_is_not(tmp_path: Path) -> None:
    touch(tmp_path, "b/1.jpg")
    (tmp_path / "a\\b").mkdir()
    os.link(tmp_path / "b" / "1.jpg", tmp_path / "a\\b" / "1.jpg")
    stores, located = found(["1"], tmp_path)
    assert [read(stores, row) for _, row in located.frame.iterrows()] == [content("b/1.jpg")]


def test_an_error_about_ids_shows_one_beside_a_file(tmp_path: Path) -> None:
    touch(tmp_path, "c0/1.jpg")
    with pytest.raises(UserError, match=r"is --images right\? An id is 'x/9', a file is 'c0/1.jpg'"):
        found(["x/9"], tmp_path)


def test_files_beside_the_tars_of_a_folder_count(tmp_path: Path) -> None:
    write_tar(tmp_path / "images_000.tar", {"a1.jpg": b"1"})
    touch(tmp_path, "b1.jpg", "c1.jpg", "@eaDir/x", "._images_000.tar", "Thumbs.db")
    stores, located = found(["a1", "b1"], tmp_path)
    assert [read(stores, row) for _, row in located.frame.iterrows()] == [b"1", content("b1.jpg")]
    assert {(entry.rule, entry.count) for entry in located.ignored or []} == {(NOT_LISTED, 1), (LEFT_BY_SYSTEMS, 3)}
