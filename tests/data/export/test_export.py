"""What an export links, replaces and refuses."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest

from lmk_data.cli import main
from lmk_data.dataset import ShardedDataset
from lmk_data.system.storage import held, open_folder
from tests.data.export.readers import export

DIALECTS = ("wids", "timm", "dali", "energon", "croissant")


@pytest.mark.parametrize("dialect", DIALECTS)
def test_an_export_links_and_may_be_made_again(
    dataset: ShardedDataset, dataset_path: Path, tmp_path: Path, dialect: str, capsys: pytest.CaptureFixture[str]
) -> None:
    root = export(dataset_path, dialect, tmp_path / "out")
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    shard = dataset.shards("train")[0]["name"]
    assert (root / shard).samefile(dataset_path / shard)
    (root / shard).unlink()
    if dialect != "energon":  # its own index is a database file
        written = next(path for path in before if not path.samefile(dataset_path / shard) and path.stat().st_nlink == 1)
        written.write_bytes(b"cut")
    export(dataset_path, dialect, root)
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before
    (root / "notes.txt").write_text("mine")
    assert main(["export", str(dataset_path), "--to", dialect, "--out", str(root)]) == 1
    assert "holds notes.txt" in capsys.readouterr().err
    assert (root / "notes.txt").read_text() == "mine"


def test_a_view_is_refused_and_its_copy_is_not(
    dataset_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    view, copy = tmp_path / "view", tmp_path / "copy"
    assert main(["subset", str(dataset_path), "--out", str(view), "--top", "2", "--quiet"]) == 0
    assert main(["export", str(view), "--to", "timm"]) == 1
    assert "subset --copy" in capsys.readouterr().err
    assert main(["subset", str(dataset_path), "--out", str(copy), "--top", "2", "--copy", "--quiet"]) == 0
    assert main(["export", str(copy), "--to", "timm"]) == 0
    assert json.loads((tmp_path / "copy-timm" / "_info.json").read_text())["splits"]["train"]["num_samples"] > 0


def test_a_folder_within_the_dataset_is_refused(dataset_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(dataset_path), "--to", "timm", "--out", str(dataset_path / "timm")]) == 1
    assert "lies within the dataset" in capsys.readouterr().err
    assert not (dataset_path / "timm").exists()


def test_another_file_system_is_an_error_that_says_what_to_do(
    dataset_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere = Path("/dev/shm")
    if not elsewhere.is_dir() or elsewhere.stat().st_dev == dataset_path.stat().st_dev:
        pytest.skip("there is no second file system at /dev/shm")
    out = elsewhere / f"lmk-export-{os.getpid()}"
    try:
        assert main(["export", str(dataset_path), "--to", "timm", "--out", str(out)]) == 1
        assert "same file system" in capsys.readouterr().err
    finally:
        shutil.rmtree(out, ignore_errors=True)


def test_another_datasets_export_is_never_replaced(
    dataset_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its tars may be the only copies left: an export's links outlive the dataset."""
    other, root = tmp_path / "other", tmp_path / "out"
    assert main(["subset", str(dataset_path), "--out", str(other), "--top", "2", "--copy", "--quiet"]) == 0
    export(other, "wids", root)
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    assert main(["export", str(dataset_path), "--to", "wids", "--out", str(root)]) == 1
    assert "may be the only copy of another" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before
    copied = tmp_path / "copied"
    shutil.copytree(root, copied)  # the same bytes, but no links
    export(other, "wids", copied)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "train.json").write_text("mine")
    assert main(["export", str(dataset_path), "--to", "wids", "--out", str(tmp_path / "mine")]) == 1
    assert "holds train.json, but no tar of this export" in capsys.readouterr().err
    assert (tmp_path / "mine" / "train.json").read_text() == "mine"


def test_an_export_goes_through_no_link(dataset_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    elsewhere, root = tmp_path / "elsewhere", tmp_path / "out"
    elsewhere.mkdir()
    root.mkdir()
    (root / "shards").symlink_to(elsewhere)
    assert main(["export", str(dataset_path), "--to", "timm", "--out", str(root)]) == 1
    assert "is a symbolic link" in capsys.readouterr().err
    assert not list(elsewhere.iterdir())


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP])
def test_tars_are_copied_where_links_are_refused(
    dataset: ShardedDataset,
    dataset_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    code: int,
) -> None:
    def link(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("os.link", link)
    root = export(dataset_path, "timm", tmp_path / "out")
    assert "the tars are copied and take space" in capsys.readouterr().err
    shard = dataset.shards("train")[0]["name"]
    assert (root / shard).read_bytes() == (dataset_path / shard).read_bytes()
    assert not (root / shard).samefile(dataset_path / shard)
    export(dataset_path, "timm", root)


def test_two_exports_do_not_share_a_folder(
    dataset_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with held(open_folder(tmp_path / "out"), "another export is at work there"):
        assert main(["export", str(dataset_path), "--to", "timm", "--out", str(tmp_path / "out")]) == 1
    assert "another export is at work there" in capsys.readouterr().err
    root = export(dataset_path, "timm", tmp_path / "out")
    assert not (root / ".build").exists()
