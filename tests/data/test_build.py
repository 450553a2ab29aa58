"""Whole builds: what is published, that it is the same whatever happens, and what is refused."""

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import webdataset
from huggingface_hub import DatasetCard
from PIL import Image

from lmk_data.build import BuildOptions, build
from lmk_data.claim import begin
from lmk_data.cli import main
from lmk_data.dataset import ShardedDataset
from lmk_data.errors import BuildError, DatasetError, UserError
from lmk_data.format import Recipe, content_sha256_of
from lmk_data.plan import PlanRule
from lmk_data.shard import read_receipt_table, write_shard
from lmk_data.storage import open_folder
from lmk_data.tar import TarFile

Options = Callable[..., BuildOptions]


def hashes(out: Path) -> dict[str, str]:
    """Every published file's hash, the report aside."""
    files = [
        p for p in sorted(out.rglob("*")) if p.is_file() and p.relative_to(out).parts[0] not in (".build", "report")
    ]
    return {str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


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


def test_tars_are_byte_for_byte_those_of_webdataset() -> None:
    samples = [{"__key__": f"k{i}", "cls": b"7", "jpg": bytes(range(i % 256)) * i, "json": b"{}"} for i in range(40)]
    ours, theirs = io.BytesIO(), io.BytesIO()
    tar = TarFile(ours)
    for sample in samples:
        for extension in ("cls", "jpg", "json"):
            tar.add(f"{sample['__key__']}.{extension}", sample[extension])  # type: ignore[arg-type]
    digest = tar.close()
    with webdataset.TarWriter(theirs, user="lmk", group="lmk", mtime=0, encoder=False) as writer:
        for sample in samples:
            writer.write(sample)
    assert ours.getvalue() == theirs.getvalue()
    assert digest == hashlib.sha256(theirs.getvalue()).hexdigest()
    with tarfile.open(fileobj=io.BytesIO(ours.getvalue())) as read:
        assert len(read.getmembers()) == 120


def test_workers_do_not_change_a_byte(options: Options, dataset_path: Path, tmp_path: Path) -> None:
    build(options(workers=2, title="Small <set>", out=tmp_path / "two"))
    assert hashes(tmp_path / "two") == hashes(dataset_path)


def test_finished_build_is_left_alone(options: Options, tmp_path: Path) -> None:
    first = build(options())
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "shards").rglob("*.tar")}
    again = build(options())
    assert not first.already_complete
    assert again.already_complete
    assert again.manifest == first.manifest
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "shards").rglob("*.tar")} == before


def test_lost_shards_are_built_again_and_only_they(options: Options, tmp_path: Path) -> None:
    build(options())
    out, lost = tmp_path / "shards", "shards/train/train-000002.tar"
    expected = hashes(out)
    (out / "dataset.json").unlink()
    (out / lost).write_bytes(b"cut short")
    kept = {p: p.stat().st_mtime_ns for p in out.rglob("*.tar") if p != out / lost}
    result = build(options())
    assert 0 < result.built_images <= 8
    assert {p: p.stat().st_mtime_ns for p in kept} == kept
    assert hashes(out) == expected


def test_title_and_licence_change_without_building(options: Options, tmp_path: Path) -> None:
    build(options())
    result = build(options(title="New", license="CC0"))
    assert (result.built_images, result.manifest["title"]) == (0, "New")
    assert 'license: other\nlicense_name: "CC0"' in (tmp_path / "shards" / "README.md").read_text()
    build(options(title="Old \x85 Gate \u2028 🏛 \x9b", license='Ours "🏛"'))
    card = DatasetCard((tmp_path / "shards" / "README.md").read_text()).data.to_dict()
    assert (card["pretty_name"], card["license_name"]) == ("Old Gate 🏛 ", 'Ours "🏛"')
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


def test_another_build_in_the_same_folder_is_refused_with_the_difference(options: Options, tmp_path: Path) -> None:
    build(options())
    before = hashes(tmp_path / "shards")
    with pytest.raises(UserError, match=r"plan\.seed: 0 -> 5"):
        build(options(rule=PlanRule(seed=5, samples_per_shard=8)))
    assert hashes(tmp_path / "shards") == before
    result = build(options(recipe=Recipe(size=32), overwrite=True))
    assert result.manifest["recipe"]["size"] == 32
    ShardedDataset.open(tmp_path / "shards")


def test_a_damaged_manifest_is_refused_and_overwritten(options: Options, tmp_path: Path) -> None:
    build(options())
    expected = hashes(tmp_path / "shards")
    (tmp_path / "shards" / "dataset.json").write_text("{")
    with pytest.raises(DatasetError, match="not JSON"):
        build(options())
    build(options(overwrite=True))
    assert hashes(tmp_path / "shards") == expected


def test_receipts_that_do_not_count(options: Options, tmp_path: Path) -> None:
    """A receipt that is damaged, or from a version with other columns, only means that its shard is built again."""
    build(options())
    out = tmp_path / "shards"
    expected = hashes(out)
    (out / "dataset.json").unlink()
    damaged, old = sorted((out / ".build" / "receipts").iterdir())[:2]
    damaged.write_bytes(damaged.read_bytes()[:100])
    pd.read_parquet(old).drop(columns="jpg_crc32").to_parquet(old)
    assert 0 < build(options()).built_images <= 16
    assert hashes(out) == expected


@pytest.mark.parametrize("begun_at", ["start", "end"])
def test_a_task_of_a_build_that_was_given_up_replaces_nothing(begun_at: str) -> None:
    """A worker that heard of nothing goes on with it, while the folder holds another build already."""
    out = open_folder(f"memory://given-up/{begun_at}")
    row = {"key": "a", "label": 0, "landmark_id": 1, "source": "a", "original_width": 8, "original_height": 8}
    published: dict[str, bytes] = {}

    def another_build() -> None:
        begin(out, {"fingerprint": "another"}, overwrite=True)
        write_shard(out, "train", 0, "another", [dict(row)], iter([b"another picture"]))
        published.update(
            {name: out.read(name) for folder in ("shards/train", ".build/receipts") for name in out.sizes(folder)}
        )

    def pictures() -> Iterator[bytes]:
        if begun_at == "end":
            another_build()
        yield b"picture"

    begin(out, {"fingerprint": "this one"}, overwrite=False)
    if begun_at == "start":
        another_build()
    with pytest.raises(BuildError, match="another build began there"):
        write_shard(out, "train", 0, "this one", [dict(row)], pictures())
    assert len(published) == 2
    assert {name: out.read(name) for name in published} == published
    with pytest.raises(DatasetError, match="the receipt of another build"):
        read_receipt_table(out, "train", 0, "this one")


def test_too_many_rejections_end_the_build(options: Options, collection: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    shutil.copytree(collection / "train", images)
    for path in sorted(images.rglob("*.jpg"))[:20]:
        path.write_bytes(b"")
    with pytest.raises(BuildError, match=r"more than 10% .* empty"):
        build(options(images=[str(images)], max_rejected=0.1))
    assert not (tmp_path / "shards" / "dataset.json").exists()
    with pytest.raises(DatasetError, match="the build is not finished, run it again"):
        ShardedDataset.open(tmp_path / "shards")
    assert build(options(images=[str(images)], max_rejected=0.5)).manifest["counts"]["rejected"] > 15


def test_rejected_images_are_tried_again_and_only_their_shards_are_written(
    options: Options, collection: Path, dataset_path: Path, tmp_path: Path
) -> None:
    images = tmp_path / "images"
    shutil.copytree(collection / "train", images)
    damaged = sorted(path for path in images.rglob("*.jpg") if path.stat().st_size > 100)[:4]
    whole = {path: path.read_bytes() for path in damaged}
    for path in damaged:
        path.write_bytes(b"")
    chosen = options(images=[str(images)], max_rejected=0.5, title="Small <set>")
    assert build(chosen).manifest["counts"]["rejected"] == 6
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "shards").rglob("*.tar")}
    for path, data in whole.items():
        path.write_bytes(data)
    assert build(chosen).already_complete, "what was rejected stays so"
    result = build(replace(chosen, retry_rejected=True))
    assert result.manifest["counts"]["rejected"] == 2
    assert 0 < result.built_images < len(before) * 8
    assert hashes(tmp_path / "shards") == hashes(dataset_path)
    shards_with_rejects = pd.read_parquet(tmp_path / "shards" / "rejects.parquet")
    assert len(shards_with_rejects) == 2
    kept = [path for path, time in before.items() if path.exists() and path.stat().st_mtime_ns == time]
    assert kept, "shards without a rejection are left alone"
    again = build(replace(chosen, retry_rejected=True))
    assert again.manifest == result.manifest
    assert again.built_images <= 16


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
    assert result.num_ignored == 1
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


def command(options: BuildOptions, *more: str) -> list[str]:
    rule = options.rule
    words = ["build", "--images", *options.images, "--labels", options.labels, "--out", str(options.out)]
    words += ["--size", str(options.recipe.size), "--samples-per-shard", str(rule.samples_per_shard)]
    return [*words, "--title", options.title, *more]


def test_second_build_in_a_folder_is_refused(options: Options, tmp_path: Path) -> None:
    import fcntl

    (tmp_path / "shards" / ".build").mkdir(parents=True)
    with open(tmp_path / "shards" / ".build" / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another build is at work"):
            build(options())
    build(options())


def refusals(options: BuildOptions, tmp_path: Path) -> dict[str, tuple[list[str], str]]:
    good = command(options)
    (tmp_path / "bad.csv").write_text("name,class\nx,1\n")
    (tmp_path / "empty.csv").write_text("id,landmark_id\n")
    (tmp_path / "other.csv").write_text("id,landmark_id\n" + "".join(f"{i:016x},1\n" for i in range(9)))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.doc").write_text("mine")
    return {
        "columns": ([*good, "--labels", str(tmp_path / "bad.csv")], "no column id; found name, class"),
        "empty": ([*good, "--labels", str(tmp_path / "empty.csv")], "lists no image"),
        "absent": ([*good, "--labels", str(tmp_path / "none.csv")], "no such label table"),
        "no image": ([*good, "--labels", str(tmp_path / "other.csv")], "is --images right?"),
        "no folder": ([*good, "--images", str(tmp_path / "nowhere")], "no such folder"),
        "output": ([*good, "--out", str(tmp_path / "full")], "holds something else"),
        "top": ([*good, "--top", "0"], "--top 0"),
        "split": ([*good, "--split", "0.5", "0.2", "0.2"], "must sum to 1"),
        "size": ([*good, "--size", "0"], "--size 0"),
        "min": ([*good, "--min-samples", "1000"], "leaves no class"),
        "version": (["report", str(tmp_path / "future")], "format version 2, this lmk reads 1"),
        "unfinished": (["report", str(tmp_path / "full")], "not a dataset"),
    }


@pytest.mark.parametrize(
    "name",
    [
        "columns",
        "empty",
        "absent",
        "no image",
        "no folder",
        "output",
        "top",
        "split",
        "size",
        "min",
        "version",
        "unfinished",
    ],
)
def test_mistakes_are_one_line_and_exit_1(
    name: str, options: Options, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "future").mkdir()
    (tmp_path / "future" / "dataset.json").write_text('{"format": "lmk-shards", "version": 2}')
    words, said = refusals(options(), tmp_path)[name]
    before = hashes(tmp_path)
    assert main(words) == 1
    error = capsys.readouterr().err
    assert said in error
    assert error.startswith("lmk-shard: error: ")
    assert error.count("\n") == 1
    assert hashes(tmp_path) == before, "nothing lost, nothing half-written"


def test_command_lines_that_do_not_parse_exit_2(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["build", "--frobnicate"], ["nonsense"], ["build", "--fit", "stretch"], ["build", "--top", "many"]):
        with pytest.raises(SystemExit) as exit_info:
            main(words)
        assert exit_info.value.code == 2
    capsys.readouterr()


def test_dry_run_needs_only_the_labels(collection: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "nothing"
    assert main(["build", "--labels", str(collection / "train.csv"), "--out", str(out), "--dry-run"]) == 0
    assert "would write 62 images of 5 classes" in capsys.readouterr().out
    assert not out.exists()


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


@pytest.mark.slow
def test_full_scale_plan_has_every_published_number(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = tmp_path / "train.csv"
    tool = shared.parent / "tools" / "make_glr_labels.py"
    subprocess.run([sys.executable, str(tool), str(labels)], check=True, capture_output=True)
    for rule, said in (
        (["--min-samples", "6"], "1,490,153 images of 57,042 classes"),
        (["--top", "12"], "19,999 images of 12 classes"),
        (["--top", "20"], "26,779 images of 20 classes"),
    ):
        assert main(["build", "--labels", str(labels), "--dry-run", *rule]) == 0
        assert said in capsys.readouterr().out


def test_options_are_checked(options: Options) -> None:
    for change, said in (({"workers": 0}, "--workers 0"), ({"max_rejected": 2.0}, "--max-rejected 2.0")):
        with pytest.raises(UserError, match=said):
            replace(options(), **change)  # type: ignore[arg-type]
