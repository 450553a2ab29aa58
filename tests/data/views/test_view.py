"""Views hold what a direct build would, and open as datasets."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import fsspec
import pandas as pd
import pytest

from lmk_data.build import BuildOptions, build
from lmk_data.cli import main
from lmk_data.dataset import ShardedDataset
from lmk_data.dataset.format import canonical_json
from lmk_data.errors import DatasetError, UserError
from lmk_data.options import PlanRule, Recipe, Selection
from lmk_data.report.dataset import write_report
from lmk_data.system.storage import open_folder
from lmk_data.views.view import view_fingerprint, write_view
from tests.data.views.members import members
from tests.published import hashes

Options = Callable[..., BuildOptions]


@pytest.mark.parametrize("rule", [{"top": 3}, {"min_samples": 10}, {"min_samples": 7, "top": 2}])
def test_a_view_holds_what_a_direct_build_would(
    options: Options, dataset_path: Path, tmp_path: Path, rule: dict[str, int]
) -> None:
    direct = {"min_samples": 6, **rule}
    build(options(rule=PlanRule(**direct, samples_per_shard=8), out=tmp_path / "direct"))  # type: ignore[arg-type]
    with ShardedDataset.open(dataset_path) as dataset:
        write_view(dataset, Selection(**rule), str(tmp_path / "view"))
    assert members(tmp_path / "view") == members(tmp_path / "direct")
    with ShardedDataset.open(tmp_path / "view") as view, ShardedDataset.open(tmp_path / "direct") as built:
        columns = ["label", "landmark_id", "name", "train", "val", "test"]
        pd.testing.assert_frame_equal(view.classes[columns], built.classes[columns])
        assert (view.classes["listed"] == view.classes[["train", "val", "test"]].sum(axis=1)).all()
        assert all(sample.label < view.num_classes for sample in view)


def test_rules_combine_and_views_of_views_point_at_the_root(dataset_path: Path, tmp_path: Path) -> None:
    with ShardedDataset.open(dataset_path) as dataset:
        write_view(dataset, Selection(max_per_class=5), str(tmp_path / "a" / "capped"))
        write_view(dataset, Selection(top=2, max_per_class=5), str(tmp_path / "direct"))
    with ShardedDataset.open(tmp_path / "a" / "capped") as capped:
        assert capped.classes["train"].max() == 5
        assert capped.num_samples("val") == ShardedDataset.open(dataset_path).num_samples("val")
        manifest = write_view(capped, Selection(top=2), str(tmp_path / "b"))
    assert members(tmp_path / "b") == members(tmp_path / "direct")
    assert (tmp_path / "b" / manifest["view_of"]["path"]).resolve() == dataset_path.resolve()
    assert manifest["view_of"]["selection"] == [{"max_per_class": 5}, {"top": 2}]
    assert manifest["view_of"]["removed"]["classes"] == 3
    with ShardedDataset.open(tmp_path / "b") as view:
        removed = sum(manifest["view_of"]["removed"][split] for split in ("train", "val", "test"))
        assert len(view) == manifest["counts"]["written"] == len(dataset) - removed
        first = view.index("train").iloc[0]
        assert view.sample(first["key"]).jpeg == view.read("train", 0).jpeg


def test_a_view_opens_everywhere(dataset_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["subset", str(dataset_path), "--out", str(tmp_path / "view"), "--top", "2", "--quiet"]) == 0
    assert main(["subset", str(dataset_path), "--out", str(tmp_path / "view"), "--top", "2", "--quiet"]) == 0
    assert sorted(os.listdir(tmp_path / "view")) == ["classes.parquet", "dataset.json", "index"]
    with ShardedDataset.open(tmp_path / "view") as view:
        write_report(view, open_folder(tmp_path / "report"), workers=1)
        with pytest.raises(UserError, match="subset --copy"):
            view.webdataset("train")
    html = (tmp_path / "report" / "index.html").read_text()
    figures = json.loads((tmp_path / "report" / "report.json").read_bytes())
    assert figures["view_of"]["selection"] == [{"top": 2}]
    assert "the 2 largest classes" in html
    assert "rule of the original dataset" in html
    assert "webdataset(" not in html
    stored = sum(int(view.index(split)["jpg_size"].sum()) for split in view.splits)
    assert f"<b>{stored / 1e6:,.1f} MB</b><span>of images</span>" in html
    assert main(["report", str(tmp_path / "view"), "--out", str(tmp_path / "report")]) == 0
    printed = capsys.readouterr().out
    removed = sum(view.manifest["view_of"]["removed"][split] for split in ("train", "val", "test"))
    assert f"{len(view) + removed} images in the original dataset = {len(view)} chosen" in printed
    assert "chosen: the 2 largest classes" in printed
    assert main(["verify", str(tmp_path / "view"), "--quiet"]) == 0
    with pytest.raises(UserError, match="view_of"):
        write_view(ShardedDataset.open(dataset_path), Selection(top=3), str(tmp_path / "view"))


def test_a_view_of_a_base_that_changed_or_went_is_refused(dataset_path: Path, options: Options, tmp_path: Path) -> None:
    build(options())
    base = tmp_path / "shards"
    with ShardedDataset.open(base) as dataset:
        write_view(dataset, Selection(top=2), str(tmp_path / "view"))
    build(options(recipe=Recipe(size=32), overwrite=True))
    with pytest.raises(DatasetError, match="a view of another dataset"):
        ShardedDataset.open(tmp_path / "view")
    shutil.rmtree(base)
    with pytest.raises(DatasetError, match="no such file"):
        ShardedDataset.open(tmp_path / "view")


@pytest.mark.parametrize("name", ["a::b", "a\u00a0b", "sh\udce9"])
def test_a_base_that_no_view_can_name_is_told_before_anything_is_written(
    dataset_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    shutil.copytree(dataset_path, tmp_path / name)
    assert main(["subset", str(tmp_path / name), "--out", str(tmp_path / "view"), "--top", "2"]) == 1
    assert "a view cannot name it" in capsys.readouterr().err
    assert not (tmp_path / "view").exists()
    assert main(["subset", str(tmp_path / name), "--out", str(tmp_path / "copy"), "--top", "2", "--copy"]) == 0


def test_a_base_behind_a_link_is_named_by_the_link(dataset_path: Path, tmp_path: Path) -> None:
    (tmp_path / "proj").mkdir()
    (tmp_path / "proj" / "ds").symlink_to(dataset_path)
    with ShardedDataset.open(tmp_path / "proj" / "ds") as dataset:
        manifest = write_view(dataset, Selection(top=2), str(tmp_path / "proj" / "view"))
    assert manifest["view_of"]["path"] == "../ds"  # type: ignore[typeddict-item]


def test_a_view_written_through_a_link_opens_by_all_its_paths(dataset_path: Path, tmp_path: Path) -> None:
    (tmp_path / "far" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to("far/deep")
    with ShardedDataset.open(dataset_path) as dataset:
        write_view(dataset, Selection(top=2), str(tmp_path / "link" / "view"))
    for path in ("link/view", "far/deep/view"):
        with ShardedDataset.open(tmp_path / path) as view:
            assert view.read("train", 0).jpeg


def test_a_moved_pair_of_base_and_view_still_opens(dataset_path: Path, tmp_path: Path) -> None:
    shutil.copytree(dataset_path, tmp_path / "here" / "base")
    write_view(ShardedDataset.open(tmp_path / "here" / "base"), Selection(top=2), str(tmp_path / "here" / "view"))
    (tmp_path / "here").rename(tmp_path / "there")
    assert len(list(ShardedDataset.open(tmp_path / "there" / "view"))) > 10


def test_a_subset_never_replaces_what_it_is_of(dataset_path: Path, tmp_path: Path) -> None:
    shutil.copytree(dataset_path, tmp_path / "base")
    (tmp_path / "link").symlink_to(tmp_path / "base")
    with ShardedDataset.open(tmp_path / "base") as base:
        write_view(base, Selection(top=3), str(tmp_path / "view"))
    before = hashes(tmp_path / "base")
    for source, out in (("base", "base"), ("view", "base"), ("view", "view"), ("base", "link")):
        for more in ((), ("--copy",)):
            words = ["subset", str(tmp_path / source), "--out", str(tmp_path / out), "--top", "2", "--overwrite", *more]
            assert main(words) == 1
    assert hashes(tmp_path / "base") == before


@pytest.mark.parametrize(
    "path", ["reference://::memory://spec.json", "github://a:b@c/d", "/etc", "ftp://127.0.0.1:1/x"]
)
def test_a_view_that_names_what_no_view_may_name_is_refused(dataset_path: Path, tmp_path: Path, path: str) -> None:
    assert main(["subset", str(dataset_path), "--out", str(tmp_path / "view"), "--top", "2", "--quiet"]) == 0
    manifest = json.loads((tmp_path / "view" / "dataset.json").read_bytes())
    manifest["view_of"]["path"] = path
    (tmp_path / "view" / "dataset.json").write_text(json.dumps(manifest))
    with pytest.raises(DatasetError, match=r"dataset.json: view_of.path is .*; do not trust this dataset"):
        ShardedDataset.open(tmp_path / "view")


def test_a_base_elsewhere_is_opened_only_when_it_is_named(
    dataset_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    view, place = tmp_path / "view", "http://127.0.0.1:1/shards"
    assert main(["subset", str(dataset_path), "--out", str(view), "--top", "2", "--quiet"]) == 0
    manifest = json.loads((view / "dataset.json").read_bytes())
    manifest["view_of"]["path"] = place
    manifest["fingerprint"] = view_fingerprint(manifest)
    (view / "dataset.json").write_bytes(canonical_json(manifest) + b"\n")
    commands = (
        ["verify", str(view), "--quick", "--workers", "1"],
        ["report", str(view), "--workers", "1"],
        ["subset", str(view), "--top", "1", "--out", str(tmp_path / "smaller")],
        ["subset", str(view), "--top", "1", "--out", str(tmp_path / "copy"), "--copy", "--workers", "1"],
    )
    for words in commands:
        assert main([*words, "--quiet"]) == 1
        assert f"opened only if you name it; if you trust that place, give --base {place}" in capsys.readouterr().err
        assert main([*words, "--quiet", "--base", str(dataset_path)]) == 0
    assert main(["export", str(view), "--to", "wids"]) == 1
    assert "a view, whose tars hold another dataset's labels" in capsys.readouterr().err


def test_base_is_for_views(dataset_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(dataset_path), "--base", "elsewhere"]) == 1
    assert "is no view and has its own shards" in capsys.readouterr().err


def test_the_hint_after_a_view_of_a_dataset_elsewhere_names_its_base(
    dataset_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fsspec.filesystem("memory").put(f"{dataset_path}/", "/far/", recursive=True)
    try:
        assert main(["subset", "memory://far", "--out", str(tmp_path / "view"), "--top", "2"]) == 0
    finally:
        fsspec.filesystem("memory").rm("/far", recursive=True)
    assert f"lmk-train --shards {tmp_path / 'view'} --base memory://far" in capsys.readouterr().out
    assert main(["subset", f"file://{dataset_path}", "--out", str(tmp_path / "near"), "--top", "2"]) == 0
    assert f"lmk-train --shards {tmp_path / 'near'}\n" in capsys.readouterr().out
    ShardedDataset.open(tmp_path / "near").close()
