"""`lmk-inspect` as a whole: its files, what it takes up again, what it refuses, and the marks that it proposes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from lmk_data.dataset import ShardedDataset
from lmk_data.dataset.inspection import class_quality_schema, samples_schema
from lmk_data.views.marks import Mark, read_marks
from lmk_train.cli import inspect_main
from lmk_train.data.feature_pass import FeaturePass
from lmk_train.inspection.proposals import write_marks
from lmk_train.models.resnet32 import make_resnet32
from lmk_train.training.loop import train
from tests.train.run_files import Config

FILES = ("quality.json", "quality.parquet", "classes-quality.parquet", "index.html")


@pytest.fixture(scope="module")
def arguments(dataset_path: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Everything except --out: a small network with weights of its own."""
    path = tmp_path_factory.mktemp("weights") / "resnet32.pt"
    torch.manual_seed(0)
    torch.save(make_resnet32(32).state_dict(), path)
    options = ["--model", "resnet32", "--weights", str(path), "--device", "cpu", "--amp", "off", "--workers", "1"]
    return ["--shards", str(dataset_path), *options]


@pytest.fixture(scope="module")
def inspected(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("inspected") / "out"
    assert inspect_main([*arguments, "--out", str(out), "--quiet"]) == 0
    return out


@pytest.fixture
def out(inspected: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(inspected, tmp_path / "out"))


def test_the_files_of_an_inspection(inspected: Path, dataset: ShardedDataset) -> None:
    described = json.loads((inspected / "quality.json").read_text())
    assert described["dataset"] == dataset.manifest["content_sha256"]
    assert described["splits"] == {split: dataset.num_samples(split) for split in dataset.splits}
    ids = pq.read_schema(inspected / "quality.parquet").field("landmark_id").type
    samples, classes = (pq.read_table(inspected / name) for name in FILES[1:3])
    assert samples.schema.equals(samples_schema(ids))
    assert classes.schema.equals(class_quality_schema(ids))
    keys = [key for split in dataset.splits for key in dataset.index(split, ["key"])["key"]]
    assert samples["key"].to_pylist() == keys
    assert classes["landmark_id"].to_pylist() == dataset.classes["landmark_id"].tolist()
    assert sum(classes["num_samples"].to_pylist()) == len(samples) == described["counts"]["samples"]
    for split in dataset.splits:
        features = np.load(inspected / "features" / described["features"]["key"] / f"{split}.npy")
        assert features.dtype == np.float16
        assert features.shape == (dataset.num_samples(split), described["features"]["dim"])
        assert np.allclose(np.linalg.norm(features.astype(np.float32), axis=1), 1, atol=2e-3)


@pytest.mark.slow
def test_the_same_inspection_is_taken_up_and_gives_the_same_bytes(
    out: Path,
    arguments: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    before = {name: (out / name).read_bytes() for name in FILES}
    monkeypatch.setattr(FeaturePass, "__call__", lambda *_: pytest.fail("computed again"))
    for name in FILES:
        (out / name).unlink()
    marks = tmp_path / "marks.csv"
    assert inspect_main([*arguments, "--out", str(out), "--marks", str(marks)]) == 0
    assert {name: (out / name).read_bytes() for name in FILES} == before
    said = capsys.readouterr().out
    assert f"browse {arguments[1]} --quality {out} --marks {marks}" in said
    assert (f"subset {arguments[1]} --out VIEW --marks {marks}" in said) == bool(read_marks(str(marks)))


def test_what_a_system_leaves_in_the_folder_is_nobodys(out: Path, arguments: list[str]) -> None:
    for name in (".DS_Store", "features/.DS_Store", "desktop.ini"):
        (out / name).touch()
    assert inspect_main([*arguments, "--out", str(out)]) == 0


def _foreign(out: Path) -> None:
    (out / "notes.txt").touch()


def _another(out: Path) -> None:
    (out / "features" / "0123456789abcdef").mkdir()


def _retrained(out: Path) -> None:
    described = json.loads((out / "quality.json").read_text())
    described["features"] |= {"key": "0123456789abcdef", "weights": "0" * 64}
    (out / "quality.json").write_text(json.dumps(described))


def _damaged(out: Path) -> None:
    (out / "quality.json").write_text("[]")


@pytest.mark.parametrize(
    ("change", "more", "message"),
    [
        (_foreign, [], "holds notes.txt, which is not of an inspection"),
        (_another, [], "holds the inspection of another dataset, model, weights or precision; name another folder"),
        (_retrained, [], "holds the inspection of other weights: of another checkpoint, or before more training"),
        (_damaged, [], "quality.json: not the description of an inspection"),
        (None, ["--split", "train", "train"], "--split: names a split twice"),
        (None, ["--split", "val", "--marks", "m.csv"], "--marks: proposals are for the training split only"),
        (None, ["--min-confidence", "0.5"], "--min-confidence: chooses what --marks writes"),
        (None, ["--weights", "none"], "--weights none: random weights give no useful features"),
        (None, ["RUN"], "--model: RUN has its own network"),
    ],
)
def test_what_is_refused_in_a_line(
    out: Path,
    arguments: list[str],
    capsys: pytest.CaptureFixture[str],
    change: Callable[[Path], None] | None,
    more: list[str],
    message: str,
) -> None:
    if change is not None:
        change(out)
    assert inspect_main([*arguments, "--out", str(out), *more]) == 1
    assert message in capsys.readouterr().err


def test_without_run_and_dataset_there_is_nothing_to_inspect(capsys: pytest.CaptureFixture[str]) -> None:
    assert inspect_main([]) == 1
    assert "nothing to inspect" in capsys.readouterr().err
    assert inspect_main(["--shards", "absent", "--model", "resnet32"]) == 1


def test_a_disk_without_room_is_told_before_the_start(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1 << 20))
    monkeypatch.setattr(FeaturePass, "__call__", lambda *_: pytest.fail("there is no room"))
    assert inspect_main([*arguments, "--out", str(tmp_path / "out"), "--quiet"]) == 1
    assert "name a folder on a disk with more room" in capsys.readouterr().err


def test_marks_that_are_there_stay(tmp_path: Path) -> None:
    path = tmp_path / "marks.csv"
    path.write_text("key,action,landmark_id,note\na,relabel,7,mine\n")
    proposed = {"a": Mark("exclude", note="lmk-inspect: outlier"), "b": Mark("exclude", note="lmk-inspect: outlier")}
    written = write_marks(path, proposed)
    assert (written.added, written.kept, written.total) == (1, 1, 2)
    assert read_marks(str(path)) == {"a": Mark("relabel", "7", "mine"), "b": proposed["b"]}


def test_nothing_proposed_is_a_file_without_marks(tmp_path: Path) -> None:
    written = write_marks(tmp_path / "marks.csv", {})
    assert (written.added, written.kept, written.total) == (0, 0, 0)
    assert read_marks(str(tmp_path / "marks.csv")) == {}


def test_marks_that_cannot_be_written_are_told_before_the_start(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(FeaturePass, "__call__", lambda *_: pytest.fail("the pass takes hours"))
    (tmp_path / "folder").mkdir()
    (tmp_path / "list.csv").write_text("key\na\n")
    for name, said in {"folder": "cannot be read: Is a directory", "list.csv": "has no column action"}.items():
        assert inspect_main([*arguments, "--out", str(tmp_path / "out"), "--marks", str(tmp_path / name)]) == 1
        assert said in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_with_a_neck_is_inspected_by_what_its_head_sees(
    config: Config, dataset: ShardedDataset, tmp_path: Path
) -> None:
    train(config(epochs=1, neck=8), evaluate_test=False)
    run = tmp_path / "run"
    assert inspect_main([str(run), "--device", "cpu", "--amp", "off", "--quiet"]) == 0
    described = json.loads((run / "inspect" / "quality.json").read_text())
    assert described["features"]["dim"] == 8
    assert described["features"]["model"] == "resnet32"
