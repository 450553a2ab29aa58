"""`lmk-export`: what other programs load gives the checkpoint's probabilities, for any number of pictures."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pandas as pd
import pytest
import simplejpeg
import torch

from lmk_data.dataset import ShardedDataset
from lmk_train.cli import export_main
from lmk_train.config import TrainConfig
from lmk_train.export import DESCRIPTION
from lmk_train.loop import train


def trained(dataset_path: Path, run: Path, model: str, **changes: object) -> Path:
    """A run of one epoch."""
    chosen: dict[str, object] = {"weights": "none", "epochs": 1, "batch_size": 10, "device": "cpu", "amp": "off"}
    train(TrainConfig(str(dataset_path), run, model, quiet=True, **{**chosen, **changes}))  # type: ignore[arg-type]
    return run


def stored_pictures(dataset_path: Path) -> tuple[list[str], "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]"]:
    """Keys and pixels of the test split."""
    with ShardedDataset.open(dataset_path) as dataset:
        samples = list(dataset.samples("test"))
    return [s.key for s in samples], np.stack([simplejpeg.decode_jpeg(s.jpeg, "RGB") for s in samples])


def check(run: Path, dataset_path: Path, probabilities: "np.ndarray[tuple[int, ...], np.dtype[np.float32]]") -> None:
    """The best label of each test picture has the probability that the evaluation wrote."""
    evaluated = pd.read_parquet(run / "predictions-test.parquet").set_index("key")
    for key, row in zip(stored_pictures(dataset_path)[0], probabilities, strict=True):
        assert row.sum() == pytest.approx(1, abs=1e-5)
        assert row[evaluated.loc[key, "label_1"]] == pytest.approx(evaluated.loc[key, "probability_1"], abs=1e-4)


@pytest.mark.parametrize(
    ("model", "loss"),
    [
        ("efficientnet-lite0", "ldam"),
        pytest.param("efficientnet-b0", "ldam", marks=pytest.mark.slow),
        pytest.param("resnet50", "ce", marks=pytest.mark.slow),
        pytest.param("resnet32", "balanced-softmax", marks=pytest.mark.slow),
    ],
)
def test_both_forms_give_the_checkpoints_probabilities(
    dataset_path: Path, tmp_path: Path, model: str, loss: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained(dataset_path, tmp_path / "run", model, loss=loss, ema=0.9)
    assert export_main([str(run), "--to", "onnx"]) == 0
    assert export_main([str(run), "--to", "torch"]) == 0
    assert capsys.readouterr().out.count("of the checkpoint on val pictures of") == 2
    _, pixels = stored_pictures(dataset_path)

    onnx.checker.check_model(onnx.load(run / "model.onnx"))
    session = onnxruntime.InferenceSession(run / "model.onnx", providers=["CPUExecutionProvider"])
    check(run, dataset_path, session.run(None, {"pixels": pixels})[0])
    said = json.loads(session.get_modelmeta().custom_metadata_map["lmk"])
    with ShardedDataset.open(dataset_path) as dataset:
        assert [entry["landmark_id"] for entry in said["classes"]] == dataset.classes["landmark_id"].tolist()
        assert said["content_sha256"] == dataset.manifest["content_sha256"]
        assert said["recipe"]["size"] == pixels.shape[1]

    files = {DESCRIPTION: ""}
    program = torch.export.load(run / "model.pt2", extra_files=files).module()
    check(run, dataset_path, program(torch.from_numpy(pixels)).numpy())
    assert json.loads(files[DESCRIPTION]) == said


def test_a_program_that_differs_is_not_written(
    dataset_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained(dataset_path, tmp_path / "run", "resnet32", weights=None)
    monkeypatch.setattr("lmk_train.export._program", lambda *_: lambda pixels: np.zeros((len(pixels), 5), np.float32))
    assert export_main([str(run), "--to", "torch"]) == 1
    assert "nothing was written" in capsys.readouterr().err
    assert not (run / "model.pt2").exists()


def test_a_run_without_its_dataset_is_checked_on_noise_and_says_so(
    dataset_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained(dataset_path, tmp_path / "run", "resnet32", weights=None)
    out = tmp_path / "elsewhere.pt2"
    assert export_main([str(run), "--to", "torch", "--shards", str(tmp_path / "gone"), "--out", str(out)]) == 0
    assert "noise, since" in capsys.readouterr().out
    assert out.exists()
