"""Folder names as labels."""

import os
from pathlib import Path

from lmk_data.sources.locate import read_class_folders
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
    labels, num_ignored = read_class_folders(stores, read_members(stores, cache=None))
    assert labels.frame.set_index("id")["landmark_id"].to_dict() == {
        "Köln/3": "Köln",
        "St. Paul's/1.jpg": "St. Paul's",
        "St. Paul's/deep/2.PNG": "St. Paul's",
        "Old/K\\xf6ln.jpg": "Old",
    }
    assert labels.frame.set_index("id")["reason"].to_dict()["Old/K\\xf6ln.jpg"] == "unsafe-path"
    assert num_ignored == 1


def test_the_same_path_in_two_stores_of_classes_is_two_images(tmp_path: Path) -> None:
    touch(tmp_path / "one", "Dom/1.jpg")
    touch(tmp_path / "two", "Dom/1.jpg", "Dom/2.jpg")
    stores = open_stores([str(tmp_path / "one"), str(tmp_path / "two")])
    labels, _ = read_class_folders(stores, read_members(stores, cache=None))
    assert sorted(labels.frame["id"]) == ["Dom/1.jpg", "Dom/2.jpg", "two/Dom/1.jpg"]
