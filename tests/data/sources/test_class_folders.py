"""Folder names as labels."""

import os
from pathlib import Path

import pytest

from lmk_data.errors import UserError
from lmk_data.leftovers import HIDDEN, LEFT_BY_SYSTEMS, LINK_IN_CIRCLE, LINK_TO_NOTHING, NOT_A_FILE
from lmk_data.sources.class_folders import OUTSIDE, read_class_folders
from lmk_data.sources.members import read_members
from lmk_data.sources.stores import open_stores
from tests.data.sources.packed import touch


def test_class_folders_list_every_file_but_hidden_ones(tmp_path: Path) -> None:
    touch(
        tmp_path, "St. Paul's/1.jpg", "St. Paul's/deep/2.PNG", "Köln/3", "Köln/.hidden", "Köln/Thumbs.db", "beside.txt"
    )
    (tmp_path / "Old").mkdir()
    os.link(tmp_path / "Köln" / "3", os.fsencode(tmp_path) + b"/Old/K\xf6ln.jpg")
    stores = open_stores([str(tmp_path)])
    labels, ignored = read_class_folders(stores, read_members(stores, cache=None))
    assert labels.frame.set_index("id")["landmark_id"].to_dict() == {
        "Köln/3": "Köln",
        "St. Paul's/1.jpg": "St. Paul's",
        "St. Paul's/deep/2.PNG": "St. Paul's",
        "Old/K\\xf6ln.jpg": "Old",
    }
    assert labels.frame.set_index("id")["reason"].to_dict()["Old/K\\xf6ln.jpg"] == "unsafe-path"
    assert [(entry.rule, entry.count) for entry in ignored] == [(HIDDEN, 1), (LEFT_BY_SYSTEMS, 1), (OUTSIDE, 1)]


def test_the_same_path_in_two_stores_of_classes_is_two_images(tmp_path: Path) -> None:
    touch(tmp_path / "one", "Dom/1.jpg")
    touch(tmp_path / "two", "Dom/1.jpg", "Dom/2.jpg")
    stores = open_stores([str(tmp_path / "one"), str(tmp_path / "two")])
    labels, _ = read_class_folders(stores, read_members(stores, cache=None))
    assert sorted(labels.frame["id"]) == ["Dom/1.jpg", "Dom/2.jpg", "two/Dom/1.jpg"]


def test_an_id_begins_with_the_name_of_its_own_store_also_where_its_path_is_unsafe(tmp_path: Path) -> None:
    for store in ("p", "q", "r"):
        touch(tmp_path / store, "rose/1.jpg")
        os.link(tmp_path / store / "rose" / "1.jpg", os.fsencode(tmp_path / store) + b"/rose/\xff.jpg")
    stores = open_stores([str(tmp_path / store) for store in ("p", "q", "r")])
    labels, _ = read_class_folders(stores, read_members(stores, cache=None))
    assert [name for name in labels.frame["id"] if "xff" in name] == [
        "rose/\\xff.jpg",
        "q/rose/\\xff.jpg",
        "r/rose/\\xff.jpg",
    ]
    assert (labels.frame["store"] == -1).sum() == 3


def classes_of(path: Path, level: int | None = None) -> dict[str, int]:
    stores = open_stores([str(path)])
    labels, _ = read_class_folders(stores, read_members(stores, cache=None), level)
    return dict(labels.frame["landmark_id"].value_counts().sort_index())


def test_linked_class_folders_are_classes_and_only_circles_end(tmp_path: Path) -> None:
    touch(tmp_path, "store/1.jpg", "store/2.jpg", "img/dog/1.jpg", "img/wolf/1.jpg")
    links = {"cat": "../store", "lion": "../store", "husky": "wolf", "dog/up": "..", "wolf/dog": "../dog", "a": "a"}
    for name, target in links.items():
        (tmp_path / "img" / name).symlink_to(target)
    stores = open_stores([str(tmp_path / "img")])
    labels, ignored = read_class_folders(stores, read_members(stores, cache=None))
    assert labels.frame["landmark_id"].value_counts().to_dict() == {
        "cat": 2,
        "lion": 2,
        "husky": 2,
        "wolf": 2,
        "dog": 1,
    }
    assert {entry.rule for entry in ignored} == {LINK_IN_CIRCLE, LINK_TO_NOTHING}


def test_links_that_multiply_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmk_data.system.storage.MAX_LINKED_FOLDERS", 100)
    for one in "abcdefgh":
        touch(tmp_path, f"{one}/1.jpg")
        for other in "abcdefgh":
            (tmp_path / one / f"to-{other}").symlink_to(f"../{other}")
    with pytest.raises(UserError, match="links lead to more than 100 folders"):
        classes_of(tmp_path)


def test_what_systems_leave_is_neither_a_class_nor_a_picture(tmp_path: Path) -> None:
    touch(tmp_path, "cat/1.jpg", "cat/@eaDir/1.jpg/SYNOPHOTO_THUMB_M.jpg", "@eaDir/1.jpg/SYNOPHOTO_THUMB_M.jpg")
    touch(tmp_path, "$RECYCLE.BIN/$R1.jpg", "__MACOSX/cat/._1.jpg", "cat/desktop.ini", "cat/Desktop.ini", "cat/._1.jpg")
    touch(tmp_path, "lost+found/1.jpg", "System Volume Information/x", "#recycle/1.jpg", "recycled/1.jpg")
    os.mkfifo(tmp_path / "cat" / "pipe.jpg")
    stores = open_stores([str(tmp_path)])
    labels, ignored = read_class_folders(stores, read_members(stores, cache=None))
    assert labels.frame["id"].tolist() == ["cat/1.jpg", "recycled/1.jpg"]
    assert {entry.rule: entry.count for entry in ignored} == {LEFT_BY_SYSTEMS: 10, NOT_A_FILE: 1}


@pytest.mark.parametrize(
    ("names", "classes"),
    [
        (["flowers/rose/1.jpg", "flowers/tulip/1.jpg", "flowers/LICENSE.txt"], {"rose": 1, "tulip": 1}),
        (["a/flowers/rose/1.jpg", "a/flowers/tulip/1.jpg"], {"rose": 1, "tulip": 1}),
        (["train/rose/1.jpg", "test/rose/2.jpg", "test/tulip/3.jpg"], {"rose": 2, "tulip": 1}),
        (["x/train/rose/1.jpg", "x/test/rose/2.jpg"], {"rose": 2}),
        (["rose/1.jpg", "rose/deep/2.jpg"], {"rose": 2}),
        (["rose/2019/1.jpg", "tulip/2020/2.jpg"], {"rose": 1, "tulip": 1}),
        (["train/1.jpg", "test/2.jpg"], {"train": 1, "test": 1}),
    ],
)
def test_classes_lie_below_a_wrapper(
    tmp_path: Path, names: list[str], classes: dict[str, int], capsys: pytest.CaptureFixture[str]
) -> None:
    touch(tmp_path, *names)
    assert classes_of(tmp_path) == classes
    is_deeper = names[0].split("/")[0] not in classes
    assert ("--class-level chooses another level" in capsys.readouterr().err) == is_deeper
    assert set(classes_of(tmp_path, 1)) == {name.split("/")[0] for name in names}


def test_folders_that_differ_in_unicode_form_are_one_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    touch(tmp_path, "cafe\u0301/1.jpg", "caf\u00e9/1.jpg", "caf\u00e9 /2.jpg", "x/1.jpg")
    assert classes_of(tmp_path) == {"caf\u00e9": 3, "x": 1}
    assert "class folders that differ only in" in capsys.readouterr().err
