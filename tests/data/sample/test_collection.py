"""The synthetic sample: reproducible, long-tailed, flawed exactly where it says so."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image, UnidentifiedImageError

from lmk_data.errors import UserError
from lmk_data.sample import Sample, class_sizes, draw_sample
from lmk_data.sample.buildings import design_landmark
from lmk_data.sample.photograph import photograph

CLASSES, IMAGES = 4, 25


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    return draw_sample(tmp_path_factory.mktemp("sample"), num_classes=CLASSES, num_images=IMAGES, workers=1, quiet=True)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def path_of(sample: Sample, key: str) -> Path:
    return sample.folder / "train" / key[0] / key[1] / key[2] / f"{key}.jpg"


def test_same_bytes_whatever_the_workers_and_another_seed_differs(drawn: Sample, tmp_path: Path) -> None:
    draw_sample(tmp_path / "two", num_classes=CLASSES, num_images=IMAGES, workers=2, quiet=True)
    assert contents(tmp_path / "two") == contents(drawn.folder)
    draw_sample(tmp_path / "seed", num_classes=2, num_images=18, seed=1, workers=1, quiet=True)
    same = set(contents(tmp_path / "seed").values()) & set(contents(drawn.folder).values())
    assert same == {path_of(drawn, drawn.unreadable).read_bytes()}


def test_buildings_are_of_different_kinds_and_every_photograph_differs() -> None:
    buildings = [design_landmark(5, number) for number in range(15)]
    assert len({building.noun for building in buildings}) == 15
    pictures = {
        photograph(building, np.random.default_rng([number, shot])).resize((64, 64)).tobytes()
        for number, building in enumerate(buildings)
        for shot in range(2)
    }
    assert len(pictures) == 30


def test_labels_names_and_files_agree(drawn: Sample) -> None:
    labels = pd.read_csv(drawn.folder / "train.csv")
    assert list(labels.columns) == ["id", "landmark_id"]
    assert labels["id"].is_unique
    assert labels["id"].str.fullmatch("[0-9a-f]{16}").all()
    assert labels["landmark_id"].between(0, 203_093).all()
    assert {p.relative_to(drawn.folder / "train") for p in (drawn.folder / "train").rglob("*.jpg")} == {
        path_of(drawn, key).relative_to(drawn.folder / "train") for key in labels["id"] if key != drawn.missing
    }
    assert sorted(labels["landmark_id"].value_counts(), reverse=True) == class_sizes(CLASSES, IMAGES)
    names = pd.read_csv(drawn.folder / "train_label_to_category.csv")
    assert set(names["landmark_id"]) == set(labels["landmark_id"])
    assert names["category"].is_unique
    assert names["category"].str.fullmatch(r"http://commons\.wikimedia\.org/wiki/Category:[^ ]+").all()


def test_every_file_but_one_is_a_picture_800_pixels_long(drawn: Sample) -> None:
    labels = pd.read_csv(drawn.folder / "train.csv")
    for key in set(labels["id"]) - {drawn.missing, drawn.unreadable}:
        with Image.open(path_of(drawn, key)) as picture:
            picture.load()
            assert (picture.format, picture.mode, max(picture.size)) == ("JPEG", "RGB", 800)
            assert min(picture.size) >= 400
    with pytest.raises(UnidentifiedImageError):
        Image.open(path_of(drawn, drawn.unreadable))
    sizes = labels.groupby("landmark_id")["id"].count()
    spoilt = labels[labels["id"].isin([drawn.missing, drawn.unreadable])]["landmark_id"]
    assert sorted(sizes[spoilt], reverse=True) == class_sizes(CLASSES, IMAGES)[:2]


@pytest.mark.parametrize(("num_classes", "num_images"), [(2, 18), (3, 40), (4, 40), (24, 900), (300, 50_000)])
def test_sizes_fall_into_a_long_tail(num_classes: int, num_images: int) -> None:
    sizes = class_sizes(num_classes, num_images)
    assert (len(sizes), sum(sizes)) == (num_classes, num_images)
    assert sizes == sorted(sizes, reverse=True)
    assert min(sizes) >= 2
    assert sum(size < 6 for size in sizes) == min(max(2, round(num_classes / 8)), num_classes - 2)
    assert sizes[0] > num_images / num_classes


def test_a_second_run_does_nothing_and_an_interrupted_one_is_completed(drawn: Sample, tmp_path: Path) -> None:
    arguments = {"num_classes": 2, "num_images": 18, "workers": 1, "quiet": True}
    first = draw_sample(tmp_path / "a", **arguments)
    before = {path: path.stat().st_mtime_ns for path in first.folder.rglob("*")}
    assert draw_sample(tmp_path / "a", **arguments) == first
    assert {path: path.stat().st_mtime_ns for path in first.folder.rglob("*")} == before

    whole = contents(first.folder)
    (first.folder / "sample.json").unlink()
    path_of(first, first.unreadable).unlink()
    next(iter(set(first.folder.rglob("*.jpg")))).unlink()
    assert draw_sample(tmp_path / "a", **arguments) == first
    assert contents(first.folder) == whole


def test_what_cannot_be_is_refused(drawn: Sample, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--classes 1"):
        draw_sample(tmp_path / "a", num_classes=1)
    with pytest.raises(UserError, match="24 classes need"):
        draw_sample(tmp_path / "a", num_images=100)
    with pytest.raises(UserError, match="--seed -1"):
        draw_sample(tmp_path / "a", seed=-1)
    with pytest.raises(UserError, match="other arguments"):
        draw_sample(drawn.folder, num_classes=CLASSES, num_images=IMAGES, seed=7)
    assert not (tmp_path / "a").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "train.csv").write_text("id,landmark_id\n")
    with pytest.raises(UserError, match="something else"):
        draw_sample(tmp_path / "mine")
    assert contents(tmp_path / "mine") == {"train.csv": b"id,landmark_id\n"}
