"""Duplicates: every close pair is found, pictures confirm it, and clean views hold none."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lmk_data.build import BuildOptions, build
from lmk_data.cli import main
from lmk_data.dataset import ShardedDataset
from lmk_data.mark import Mark
from lmk_data.options import PlanRule, Recipe, Selection
from lmk_data.verify.dataset import verify
from lmk_data.views.duplicates import Duplicates, find_duplicates
from lmk_data.views.hashes import near_pairs
from lmk_data.views.selection import select
from lmk_data.views.view import write_view
from tests.drawing import write_labels


@given(st.integers(0, 2**32 - 1), st.integers(0, 4))
def test_every_pair_within_the_distance_is_found_and_no_other(seed: int, distance: int) -> None:
    rng = np.random.default_rng(seed)
    hashes = rng.integers(0, 2**64, 60, dtype=np.uint64)
    for i in range(1, 60):  # neighbours, at any distance from 0 to 8
        if rng.random() < 0.7:
            flips = np.bitwise_or.reduce(np.uint64(1) << rng.integers(0, 64, rng.integers(1, 9)).astype(np.uint64))
            hashes[i] = hashes[rng.integers(0, i)] ^ flips
    found = {
        frozenset(pair) for a, b in near_pairs(hashes, distance) for pair in zip(a.tolist(), b.tolist(), strict=True)
    }
    expected = {
        frozenset((i, j))
        for i in range(60)
        for j in range(i)
        if (int(hashes[i]) ^ int(hashes[j])).bit_count() <= distance
    }
    assert found == expected


def paint(path: Path, seed: int) -> None:
    """A smooth picture of its own, as photos are at the scale of a perceptual hash."""
    coarse = np.random.default_rng(seed).integers(0, 255, (9, 12, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(coarse).resize((160, 120), Image.Resampling.BICUBIC).save(path, quality=90)


def changed(path: Path, out: Path, kind: str) -> None:
    """A transformed copy of a photo."""
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    width, height = image.size
    if kind == "smaller":
        image = image.resize((width * 2 // 3, height * 2 // 3), Image.Resampling.BICUBIC)
    if kind == "cropped":
        image = image.crop((width // 100, height // 100, width - width // 100, height - height // 100))
    image.save(out, quality=60 if kind == "re-encoded" else 85)


@pytest.fixture
def collection_with_copies(tmp_path: Path) -> Path:
    """20 pictures of 2 classes; of class 0, number 0 also as two exact copies, number 1 as two transformed ones; one
    picture of class 0 under class 1 too."""
    rows = []
    for label in (0, 1):
        for number in range(10):
            name = f"c{label}n{number}"
            paint(tmp_path / "train" / f"{name}.jpg", 2 * number + label)
            rows.append((name, label))
    train = tmp_path / "train"
    for name, source, label in (("copy1", "c0n0", 0), ("copy2", "c0n0", 0), ("other", "c0n2", 1)):
        shutil.copy(train / f"{source}.jpg", train / f"{name}.jpg")
        rows.append((name, label))
    for kind in ("re-encoded", "smaller", "cropped"):
        changed(train / "c0n1.jpg", train / f"{kind}.jpg", kind)
        rows.append((kind, 0))
    write_labels(tmp_path / "train.csv", rows)
    return tmp_path


def built(folder: Path, **rule: object) -> ShardedDataset:
    chosen = PlanRule(min_samples=2, samples_per_shard=8, **rule)  # type: ignore[arg-type]
    out = folder / "shards"
    options = BuildOptions([str(folder / "train")], str(folder / "train.csv"), out, chosen, Recipe(size=96), quiet=True)
    build(options)
    return ShardedDataset.open(out)


def groups(found: Duplicates) -> set[frozenset[str]]:
    return {frozenset(keys) for _, keys in found.samples.groupby("group")["key"]}


def test_groups_conflicts_and_leakage(collection_with_copies: Path) -> None:
    with built(collection_with_copies) as dataset:
        exact = find_duplicates(dataset, "exact", workers=1)
        assert groups(exact) == {frozenset({"c0n0", "copy1", "copy2"}), frozenset({"c0n2", "other"})}
        near = find_duplicates(dataset, "near", workers=1)
        assert groups(near) == groups(exact) | {frozenset({"c0n1", "re-encoded", "smaller", "cropped"})}
        assert set(near.conflicts()["key"]) == {"c0n2", "other"}
        split_of = {key: split for split in dataset.splits for key in dataset.index(split)["key"]}
        expected = {
            key
            for group in groups(near)
            for key in group
            if split_of[key] != "train" and any(split_of[other] == "train" for other in group)
        }
        assert set(near.leaked()["key"]) == expected


@pytest.mark.parametrize("kind", ["exact", "near"])
def test_a_clean_view_holds_no_duplicate_of_its_kind(collection_with_copies: Path, tmp_path: Path, kind: str) -> None:
    with built(collection_with_copies) as dataset:
        found = find_duplicates(dataset, kind, workers=1)  # type: ignore[arg-type]
        selection = Selection(drop_duplicates=kind)  # type: ignore[arg-type]
        manifest = write_view(dataset, selection, str(tmp_path / "clean"), workers=1)
        assert sum(manifest["view_of"]["removed"][s] for s in ("train", "val", "test")) == len(found.superfluous())
        everything = {sample.key for sample in dataset}
    with ShardedDataset.open(tmp_path / "clean") as clean:
        again = find_duplicates(clean, kind, workers=1)  # type: ignore[arg-type]
        assert not len(again.leaked())
        assert not again.samples.duplicated(["group", "split"]).any()
        assert everything - {sample.key for sample in clean} == set(found.superfluous()["key"])
        assert manifest["view_of"]["selection"] == [{"drop_duplicates": kind}]
    assert not verify(str(tmp_path / "clean"), workers=1, quiet=True).problems


def test_the_pairs_of_the_monuments(shared: Path, tmp_path: Path) -> None:
    images = shared / "monuments"
    build(BuildOptions([str(images / "train")], str(images / "train.csv"), tmp_path / "shards", quiet=True))
    with ShardedDataset.open(tmp_path / "shards") as dataset:
        exact = find_duplicates(dataset, "exact", workers=1)
        hashed = pd.concat([dataset.index(split) for split in dataset.splits])["source_sha256"]
        assert exact.num_groups == int((hashed.value_counts() > 1).sum())
        assert exact.num_groups == 15
        split_of = {row["key"]: split for split in dataset.splits for _, row in dataset.index(split).iterrows()}
        pairs = exact.samples.assign(split=exact.samples["key"].map(split_of)).groupby("group")["split"].agg(set)
        expected = {split: int(sum({"train", split} <= found for found in pairs)) for split in ("val", "test")}
        assert exact.leaked()["split"].value_counts().reindex(["val", "test"], fill_value=0).to_dict() == expected
    assert main(["subset", str(tmp_path / "shards"), "--out", str(tmp_path / "v"), "--drop-duplicates", "near"]) == 0


def test_the_report_says_what_comes_twice(
    collection_with_copies: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lmk_data.views.duplicates._BAR_AFTER_SECONDS", 0.0)
    with built(collection_with_copies, split=(0.5, 0.5, 0.0)) as dataset:
        near = find_duplicates(dataset, "near", workers=1)
        num_val = dataset.num_samples("val")
    assert main(["report", str(tmp_path / "shards"), "--workers", "1"]) == 0
    figures = json.loads((tmp_path / "shards" / "report" / "report.json").read_bytes())
    exact, found = figures["duplicates"]["exact"], figures["duplicates"]["near"]
    assert (exact["groups"], exact["samples"], exact["groups_with_several_labels"]) == (2, 5, 1)
    assert (found["groups"], found["samples"], found["groups_with_several_labels"]) == (3, 9, 1)
    leaked = len(near.leaked())
    assert found["leaked"] == {"val": {"num_samples": leaked, "share": round(leaked / num_val, 6)}}
    assert {row["key"] for row in figures["duplicate_groups"][0]["samples"]} == {"c0n2", "other"}
    html = (tmp_path / "shards" / "report" / "index.html").read_text()
    section = html[html.index("<h2>Duplicates and leakage</h2>") :]
    row = section[section.index("exact or near") :]
    assert f">{leaked} ({leaked / num_val:.2%}".replace("%", " %)<") in row[: row.index("</tr>")]
    printed = capsys.readouterr()
    assert f"3 groups of exact or near duplicates; also in training: {leaked / num_val:.1%} of val" in printed.out
    assert "near duplicates: " in printed.err
    assert main(["report", str(tmp_path / "shards"), "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("copy", [False, True])
def test_dropping_duplicates_combines_with_the_other_rules(
    collection_with_copies: Path, tmp_path: Path, copy: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "chosen").write_text("0\n1\n")
    with built(collection_with_copies) as dataset:
        of_class = set(dataset.classes.index[dataset.classes["landmark_id"] == 0])
        kept = find_duplicates(dataset, "near", workers=1).among(np.array(list(of_class)))
        dropped = kept.superfluous()["split"].value_counts().reindex(["train", "val", "test"], fill_value=0)
        num_train = int(dataset.classes.loc[list(of_class), "train"].sum())
    rules = ["--classes", str(tmp_path / "chosen"), "--top", "1", "--drop-duplicates", "near", "--max-per-class", "4"]
    words = ["subset", str(tmp_path / "shards"), "--out", str(tmp_path / "out"), *rules, *(["--copy"] * copy)]
    assert main(words) == 0
    printed = ", ".join(f"{number} of {split}" for split, number in dropped.items())
    assert f"duplicates left out: {printed}" in capsys.readouterr().out
    with ShardedDataset.open(tmp_path / "out") as out:
        origin = out.manifest["source"]["subset_of"] if copy else out.manifest["view_of"]
        assert out.classes["landmark_id"].tolist() == [0]
        assert out.classes["train"].tolist() == [min(4, num_train - dropped["train"])]
        assert not find_duplicates(out, "near", workers=1).num_groups
    assert origin["removed"]["duplicates"] == dropped.to_dict()
    assert main(["subset", str(tmp_path / "out"), "--out", str(tmp_path / "again"), "--top", "1", "--quiet"]) == 0
    again = json.loads((tmp_path / "again" / "dataset.json").read_bytes())["view_of"]["removed"]
    assert again.get("duplicates") == (None if copy else dropped.to_dict())
    assert not verify(str(tmp_path / "out"), workers=1, quiet=True).problems


@pytest.fixture
def class_of_copies(tmp_path: Path) -> Path:
    """3 classes of 4 and 2 and 2 pictures; those of class 2 are the files of class 1."""
    rows = []
    for label, size in ((0, 4), (1, 2)):
        for number in range(size):
            paint(tmp_path / "train" / f"c{label}n{number}.jpg", 10 * label + number)
            rows.append((f"c{label}n{number}", label))
    for number in range(2):
        shutil.copy(tmp_path / "train" / f"c1n{number}.jpg", tmp_path / "train" / f"c2n{number}.jpg")
        rows.append((f"c2n{number}", 2))
    write_labels(tmp_path / "train.csv", rows)
    return tmp_path


def test_a_class_that_is_all_duplicates_is_left_out(class_of_copies: Path, tmp_path: Path) -> None:
    built(class_of_copies, split=(1.0, 0.0, 0.0), seed=6).close()  # a seed that puts those of class 1 first
    shards, view, copy = (str(tmp_path / name) for name in ("shards", "view", "copy"))
    assert main(["subset", shards, "--out", view, "--drop-duplicates", "exact"]) == 0
    assert main(["subset", view, "--out", copy, "--top", "2", "--copy", "--quiet"]) == 0
    for out in (view, copy):
        assert main(["report", out, "--quiet"]) == 0
        assert not verify(out, workers=1, quiet=True).problems
        with ShardedDataset.open(out) as dataset:
            assert dataset.classes["label"].tolist() == [0, 1]
            assert dataset.classes["train"].tolist() == [4, 2]
            assert {sample.label for sample in dataset} == {0, 1}
    removed = json.loads((tmp_path / "view" / "dataset.json").read_bytes())["view_of"]["removed"]
    dropped = {"train": 2, "val": 0, "test": 0}
    assert removed == {"classes": 1, **dropped, "duplicates": dropped}


@pytest.mark.parametrize("names", [("a", "b"), ("b", "a")])
def test_a_duplicate_behind_another_picture_of_its_hash_is_found(tmp_path: Path, names: tuple[str, str]) -> None:
    """A picture and its tinted version share a hash and are no duplicates; a crop of the tinted one is 1 bit away."""
    (tmp_path / "train").mkdir()
    coarse = Image.fromarray(np.random.default_rng(7).integers(30, 225, (9, 12), dtype=np.uint8))
    grey = np.asarray(coarse.resize((400, 300), Image.Resampling.BICUBIC), dtype=np.float64)
    tinted = (grey[..., None] * (1.0, 0.7, 0.4)).astype(np.uint8)
    pictures = {names[0]: np.repeat(grey[..., None], 3, axis=2).astype(np.uint8), names[1]: tinted}
    pictures["crop"] = tinted[2:-2, 3:-3]
    for name, pixels in pictures.items():
        Image.fromarray(pixels).save(tmp_path / "train" / f"{name}.jpg", quality=95)
    write_labels(tmp_path / "train.csv", [(name, 0) for name in pictures])
    with built(tmp_path, split=(1.0, 0.0, 0.0)) as dataset:
        hashes = dataset.index("train").set_index("key")["dhash"]
        assert hashes["a"] == hashes["b"]
        assert 1 <= (int(hashes["a"]) ^ int(hashes["crop"])).bit_count() <= 4
        assert groups(find_duplicates(dataset, "near", workers=1)) == {frozenset({names[1], "crop"})}


def test_flat_pictures_are_no_duplicates(tmp_path: Path) -> None:
    rows = []
    (tmp_path / "train").mkdir()
    for i in range(12):
        sink = io.BytesIO()
        Image.new("RGB", (80, 60), (20 * i, 100, 100)).save(sink, "JPEG")
        (tmp_path / "train" / f"flat{i}.jpg").write_bytes(sink.getvalue())
        rows.append((f"flat{i}", i % 2))
    write_labels(tmp_path / "train.csv", rows)
    with built(tmp_path) as dataset:
        assert not find_duplicates(dataset, "near", workers=1).num_groups


def test_marks_come_before_duplicates_are_dropped(collection_with_copies: Path) -> None:
    """A picture that marks leave out hides no other, and one that they relabelled counts with its new class."""
    with built(collection_with_copies, split=(1.0, 0.0, 0.0)) as dataset:

        def left(**selection: object) -> set[str]:
            subset = select(dataset, Selection(drop_duplicates="exact", **selection), workers=1)  # type: ignore[arg-type]
            return {"c0n0", "copy1", "copy2", "c0n2", "other"} & set(subset.rows["train"]["key"].to_pylist())

        first = left()
        assert len(first) == 2
        second = left(exclude=tuple(first))
        assert len(second) == 2
        assert not first & second
        assert left(classes=("1",)) == {"other"}, "c0n2 is of the class 0"
        marks = {"c0n2": Mark("relabel", "1")}
        assert left(classes=("1",), marks=marks) == first & {"c0n2", "other"}
