"""Whole builds: what is published, and that it is the same whatever the images came from."""

import gc
import io
import json
import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import webdataset
from PIL import Image

from lmk_data.build import BuildOptions, build, pipeline, plan_build
from lmk_data.build.publish import markdown_line
from lmk_data.dataset import ShardedDataset
from lmk_data.dataset.format import content_sha256_of
from lmk_data.errors import UserError
from lmk_data.options import PlanRule, Selection
from lmk_data.sources.locate import NOT_LISTED
from lmk_data.verify.dataset import verify
from lmk_data.views.copy import write_copy
from tests.published import hashes

Options = Callable[..., BuildOptions]


def test_dataset_is_what_the_contract_says(dataset_path: Path) -> None:
    """docs/format.md, read with other people's tools."""
    manifest = json.loads((dataset_path / "dataset.json").read_bytes())
    assert (manifest["format"], manifest["version"]) == ("lmk-shards", 1)
    published = hashes(dataset_path)
    assert {name: entry["sha256"] for name, entry in manifest["files"].items()} == {
        name: digest for name, digest in published.items() if name != "dataset.json"
    }
    assert manifest["content_sha256"] == content_sha256_of(manifest["files"])
    counts = manifest["counts"]
    assert counts == {"listed": 67, "below_min_samples": 5, "outside_top": 0, "rejected": 2, "written": 60}
    classes = pd.read_parquet(dataset_path / "classes.parquet")
    assert classes["landmark_id"].tolist() == [138982, 20409, 83144, 7, 113209]
    assert (classes["listed"] == classes[["train", "val", "test", "rejected"]].sum(axis=1)).all()
    assert classes["rejected"].tolist() == [2, 0, 0, 0, 0]
    dropped = pd.read_parquet(dataset_path / "dropped_classes.parquet")
    assert dropped[["landmark_id", "listed", "reason"]].to_numpy().tolist() == [
        [99, 3, "below-min-samples"],
        [5, 2, "below-min-samples"],
    ]
    rejects = pd.read_parquet(dataset_path / "rejects.parquet")
    assert sorted(rejects["reason"]) == ["missing", "not-an-image"]
    keys: list[str] = []
    for split, entry in manifest["splits"].items():
        index = pd.read_parquet(dataset_path / entry["index"])
        assert len(index) == entry["num_samples"] == classes[split].sum()
        assert index["label"].value_counts().sort_index().to_dict() == {
            label: n for label, n in zip(classes["label"], classes[split], strict=True) if n
        }
        names = [shard["name"] for shard in entry["shards"]]
        assert (
            list(index["shard"].unique()) == names == [f"shards/{split}/{split}-{i:06d}.tar" for i in range(len(names))]
        )
        assert sorted(os.listdir(dataset_path / "shards" / split)) == [os.path.basename(name) for name in names]
        keys += index["key"].tolist()
        samples = webdataset.WebDataset([str(dataset_path / name) for name in names], shardshuffle=False)
        for sample, row in zip(samples, index.itertuples(), strict=True):
            assert sample["__key__"] == row.key
            assert int(sample["cls"]) == row.label
            stated = json.loads(sample["json"])
            assert stated["landmark_id"] == row.landmark_id == classes["landmark_id"][row.label]
            assert (stated["original_width"], stated["original_height"]) == (96, 72)
            tar = (dataset_path / row.shard).read_bytes()
            assert tar[row.jpg_offset : row.jpg_offset + row.jpg_size] == sample["jpg"]
            assert Image.open(io.BytesIO(sample["jpg"])).size == (64, 64)
    assert len(keys) == len(set(keys)) == 60


def test_workers_do_not_change_a_byte(options: Options, dataset_path: Path, tmp_path: Path) -> None:
    build(options(workers=2, title="Small <set>", out=tmp_path / "two"))
    assert hashes(tmp_path / "two") == hashes(dataset_path)


def test_the_planned_images_are_not_in_memory_while_shards_are_built(
    options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[list[str]] = []
    run = pipeline._run

    def watched(*arguments: Any) -> Any:
        gc.collect()
        frames = [one for one in gc.get_objects() if type(one) is pd.DataFrame]
        held.append([str(list(frame.columns)) for frame in frames if {"key", "source"} <= {*frame.columns}])
        return run(*arguments)

    monkeypatch.setattr(pipeline, "_run", watched)
    build(options(out=tmp_path / "out", workers=1))
    assert held == [[]]


def test_finished_build_is_left_alone(options: Options, tmp_path: Path) -> None:
    first = build(options())
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "shards").rglob("*.tar")}
    again = build(options())
    assert not first.already_complete
    assert again.already_complete
    assert again.manifest == first.manifest
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "shards").rglob("*.tar")} == before


def test_a_finished_build_is_known_without_another_plan(
    options: Options, collection: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "names.csv").write_text("landmark_id,category\n138982,Category:Old_Gate\n")
    chosen: dict[str, Any] = {"categories": str(tmp_path / "names.csv"), "rule": PlanRule(top=3)}
    first = build(options(**chosen))
    with monkeypatch.context() as patched:
        patched.setattr("lmk_data.build.pipeline.make_plan", None)
        again = build(options(**chosen))
    assert (again.already_complete, again.manifest) == (True, first.manifest)
    assert again.resumed_images == first.built_images
    with pytest.raises(UserError, match=r"holds another build \(plan\.top: 3 -> 2\)"):
        build(options(**{**chosen, "rule": PlanRule(top=2)}))
    table = (collection / "train.csv").read_text()
    (tmp_path / "train.csv").write_text(table + "\n".join(table.splitlines()[-1:]))
    with pytest.raises(UserError, match=r"holds another build \(source\.duplicate_rows: 0 -> 1; source\.labels_sha256"):
        build(options(**chosen, labels=str(tmp_path / "train.csv")))


def test_a_copy_is_not_taken_for_the_build_of_its_table(options: Options, tmp_path: Path) -> None:
    build(options(rule=PlanRule()))
    with ShardedDataset.open(tmp_path / "shards") as dataset:
        write_copy(dataset, Selection(top=2), str(tmp_path / "copy"), workers=1)
    with pytest.raises(UserError, match="holds another build"):
        build(options(rule=PlanRule(), out=tmp_path / "copy"))


def test_title_and_licence_change_without_building(options: Options, tmp_path: Path) -> None:
    build(options())
    result = build(options(title="New", license="CC0"))
    assert (result.built_images, result.manifest["title"]) == (0, "New")
    assert 'license: other\nlicense_name: "CC0"' in (tmp_path / "shards" / "README.md").read_text()
    build(options(title="Old \x85 Gate \u2028 🏛 \x9b", license='Ours "🏛"'))
    hub = pytest.importorskip("huggingface_hub", reason="the extra `interop` is not installed")
    card = hub.DatasetCard((tmp_path / "shards" / "README.md").read_text()).data.to_dict()
    assert (card["pretty_name"], card["license_name"]) == ("Old Gate 🏛 ", 'Ours "🏛"')
    build(options(title="<b onload=x> [a](javascript:b) ![c](d) |", license="two\n# lines `&lt;\\<i>"))
    card = (tmp_path / "shards" / "README.md").read_text()
    assert "\n# \\<b onload=x> \\[a\\](javascript:b) !\\[c\\](d) \\|\n" in card
    assert "\nLicence: two # lines \\`\\&lt;\\\\\\<i>.\n" in card
    assert not verify(str(tmp_path / "shards"), quick=True, workers=1).problems
    build(options(title="New", license="CC-BY-4.0"))
    assert "license: cc-by-4.0\ntask" in (tmp_path / "shards" / "README.md").read_text()


def test_names_of_classes_change_without_building(options: Options, tmp_path: Path) -> None:
    build(options())
    (tmp_path / "names.csv").write_text("landmark_id,category\n138982,Category:Old_Gate\n99,Small\n")
    for _ in range(2):
        result = build(options(categories=str(tmp_path / "names.csv")))
    assert result.already_complete
    with ShardedDataset.open(tmp_path / "shards") as dataset:
        assert dataset.classes.set_index("landmark_id")["name"][138982] == "Old Gate"
        assert dataset.dropped_classes().set_index("landmark_id")["name"][99] == "Small"


def test_another_label_column_is_another_build(options: Options, collection: Path, tmp_path: Path) -> None:
    table = pd.read_csv(collection / "train.csv")
    table.assign(other=table["landmark_id"].to_numpy()[::-1]).to_csv(tmp_path / "two.csv", index=False)
    build(options(labels=str(tmp_path / "two.csv"), label_column="landmark_id"))
    with pytest.raises(UserError, match=r"source\.label_column: landmark_id -> other"):
        build(options(labels=str(tmp_path / "two.csv"), label_column="other"))


def test_a_build_into_a_folder_below_its_images_is_the_same_again(
    options: Options, collection: Path, tmp_path: Path
) -> None:
    for number, picture in enumerate(p for p in (collection / "train").rglob("*.jpg") if p.stat().st_size > 100):
        folder = tmp_path / "images" / f"class{number % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(picture, folder)
    chosen = {"images": [str(tmp_path / "images")], "labels": "classes", "out": tmp_path / "images" / "shards"}
    assert build(options(**chosen)).manifest["classes"]["num_classes"] == 3
    assert build(options(**chosen)).already_complete


def test_images_in_archives_build_the_same_dataset(
    options: Options, collection: Path, dataset_path: Path, tmp_path: Path
) -> None:
    files = sorted(path for path in (collection / "train").rglob("*") if path.is_file())
    names = {path: path.relative_to(collection / "train").as_posix() for path in files}
    with tarfile.open(tmp_path / "images_000.tar", "w") as tar, zipfile.ZipFile(tmp_path / "rest.zip", "w") as rest:
        for number, (path, name) in enumerate(names.items()):
            if number % 3:
                tar.add(path, name)
            else:
                rest.write(path, name, zipfile.ZIP_DEFLATED)
        rest.writestr("train.csv", "not an image")
    result = build(options(images=[str(tmp_path / "images_*.tar"), str(tmp_path / "rest.zip")], title="Small <set>"))
    assert [(entry.rule, entry.count) for entry in result.ignored or []] == [(NOT_LISTED, 1)]
    built, expected = hashes(tmp_path / "shards"), hashes(dataset_path)
    different = {name for name in expected if built.get(name) != expected[name]}
    assert different == {"rejects.parquet", "dataset.json"}, "where a missing image was looked for is another place"
    columns = ["key", "landmark_id", "split", "reason"]
    pd.testing.assert_frame_equal(
        pd.read_parquet(tmp_path / "shards" / "rejects.parquet", columns=columns),
        pd.read_parquet(dataset_path / "rejects.parquet", columns=columns),
    )


def test_class_folders_with_odd_names(tmp_path: Path, options: Options, collection: Path) -> None:
    pictures = [p for p in sorted((collection / "train").rglob("*.jpg")) if p.stat().st_size > 100][:18]
    for i, picture in enumerate(pictures):
        folder = tmp_path / "classes" / ["St. Paul's", "Köln Dom", "日本"][i % 3]
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(picture, folder / f"photo nr. {i}.JPG")
    out = build(options(images=[str(tmp_path / "classes")], labels="classes"))
    dataset = ShardedDataset.open(tmp_path / "shards")
    assert out.manifest["counts"]["written"] == 18
    assert set(dataset.classes["name"]) == {"St. Paul's", "Köln Dom", "日本"} == set(dataset.classes["landmark_id"])
    assert set(dataset.index("train")["source"]) <= {
        str(p.relative_to(tmp_path / "classes")) for p in (tmp_path / "classes").rglob("*.JPG")
    }


def test_monuments_build(shared: Path, tmp_path: Path) -> None:
    """The report's rule on real photos: 12 classes and 548 images, every class reconciled."""
    images = shared / "monuments"
    labels, categories = str(images / "train.csv"), str(images / "train_label_to_category.csv")
    out = tmp_path / "shards"
    result = build(BuildOptions([str(images / "train")], labels, out, categories=categories, quiet=True))
    assert result.manifest["counts"] == {
        "listed": 556, "below_min_samples": 8, "outside_top": 0, "rejected": 0, "written": 548,
    }  # fmt: skip
    dataset = ShardedDataset.open(out)
    assert (dataset.num_classes, len(dataset)) == (12, 548)
    listed = pd.read_csv(labels)["landmark_id"].value_counts()
    classes = dataset.classes.set_index("landmark_id")
    assert classes["listed"].to_dict() == listed[listed >= 6].to_dict()
    assert (classes["listed"] == classes[["train", "val", "test", "rejected"]].sum(axis=1)).all()
    assert classes.loc[39545, "name"] == "Hawa Mahal"
    assert sum(1 for _ in dataset.webdataset("train")) == dataset.num_samples("train")
    for split in dataset.splits:
        assert all(sample.jpeg[:3] == b"\xff\xd8\xff" for sample in dataset.samples(split))


def test_options_are_checked(options: Options) -> None:
    for change, said in (({"workers": 0}, "--workers 0"), ({"max_rejected": 2.0}, "--max-rejected 2.0")):
        with pytest.raises(UserError, match=said):
            replace(options(), **change)  # type: ignore[arg-type]


def test_a_table_of_categories_that_names_no_class_is_said(
    options: Options, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "k.csv").write_text("landmark_id,category\n007,a\n")
    plan_build(options(categories=str(tmp_path / "k.csv")))
    assert "k.csv: names none of the classes: it names '007', a class is '" in capsys.readouterr().err


def test_options_without_effect_are_refused(options: Options) -> None:
    with pytest.raises(UserError, match="--class-level 2: is for --labels classes"):
        options(class_level=2)
    for name in ("id_column", "label_column"):
        with pytest.raises(UserError, match=f"--{name.replace('_', '-')} x: is for a label table; --labels classes"):
            options(labels="classes", **{name: "x"})
    with pytest.raises(UserError, match="--md5 sums: is for archives, and --images names none"):
        build(options(md5="sums"))


@pytest.mark.parametrize(
    "title", ["Google Landmarks v2 (GLR_2020)", "Tom & Jerry's: 50 %, #3!", "CC-BY-4.0 https://x.org/a_b", "東京 & 🏛 é"]
)
def test_the_card_shows_plain_words_as_they_are(title: str) -> None:
    assert markdown_line(title) == title
