"""Folders whose paths are not UTF-8: what works there works, and what cannot says so in a line."""

import os
import shutil
from pathlib import Path

import pytest

from lmk_data.cli import main
from lmk_data.dataset import ShardedDataset
from lmk_train.cli import eval_main, train_main, tune_main

TRAINING = ["--model", "resnet32", "--weights", "none", "--epochs", "1", "--batch-size", "10", "--quiet"]


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """A folder that was named on a system of another encoding."""
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    folder.mkdir()
    return folder


@pytest.mark.slow
def test_a_dataset_is_built_read_verified_reported_and_trained_on(
    dataset_path: Path, odd: Path, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    dataset, run = odd / "shards", tmp_path / "run"
    shutil.copytree(dataset_path, dataset)
    for command in ("verify", "report"):
        assert main([command, str(dataset)]) == 0, capfdbinary.readouterr().err
    assert main(["subset", str(dataset), "--max-per-class", "5", "--out", str(odd / "view")]) == 0
    with ShardedDataset.open(odd / "view") as view:
        assert view.read("train", 0).jpeg
    assert train_main(["--shards", str(dataset), "--out", str(run), *TRAINING]) == 0, capfdbinary.readouterr().err


@pytest.mark.slow
def test_a_run_is_evaluated_where_no_training_can_write(
    dataset_path: Path, odd: Path, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    words = ["--shards", str(dataset_path), *TRAINING]
    assert train_main([*words, "--out", str(odd / "run")]) == 1
    said = capfdbinary.readouterr().err
    assert said.count(b"\n") == 1
    assert said.endswith(b"TensorBoard writes only where the path is UTF-8; name another folder\n")
    assert not (odd / "run").exists()
    assert tune_main(["--shards", str(dataset_path), "--out", str(odd / "search"), "--trials", "1", "--quiet"]) == 1
    assert b"TensorBoard writes only where the path is UTF-8" in capfdbinary.readouterr().err
    assert not (odd / "search").exists()
    assert train_main([*words, "--out", str(tmp_path / "run")]) == 0
    shutil.move(tmp_path / "run", odd / "run")
    assert eval_main([str(odd / "run"), "--split", "test", "--quiet"]) == 0, capfdbinary.readouterr().err
    assert b"caf?" in (odd / "run" / "report" / "index.html").read_bytes()
