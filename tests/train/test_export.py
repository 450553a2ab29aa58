"""`lmk-export`: what other programs load gives the checkpoint's probabilities, for any number of pictures."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pandas as pd
import pytest
import simplejpeg
import torch

from lmk_data.build import BuildOptions, build
from lmk_data.dataset import ShardedDataset
from lmk_data.options import PlanRule, Recipe
from lmk_train import export
from lmk_train.cli import export_main
from lmk_train.config.training import TrainConfig
from lmk_train.export import DESCRIPTION, Pixels, Program
from lmk_train.predict import Predictor
from lmk_train.training.loop import train

onnx = pytest.importorskip("onnx", reason="the extra `export` is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
PAGE = Path(__file__).resolve().parents[2] / "docs" / "evaluation.md"


@pytest.fixture(scope="module")
def full_size(collection: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The collection as a dataset of pictures as large as ImageNet's networks take them."""
    out, images, labels = (
        tmp_path_factory.mktemp("full-size") / "shards",
        collection / "train",
        collection / "train.csv",
    )
    options = {"rule": PlanRule(samples_per_shard=8), "recipe": Recipe(size=224), "workers": 1, "quiet": True}
    build(BuildOptions(images=[str(images)], labels=str(labels), out=out, **options))  # type: ignore[arg-type]
    return out


def trained(dataset_path: Path, run: Path, model: str, **changes: object) -> Path:
    """A run of one epoch, with running statistics of its last batch alone: else the pictures would hardly matter."""
    chosen: dict[str, object] = {"epochs": 1, "batch_size": 10, "device": "cpu", "amp": "off", "bn_momentum": 1.0}
    train(TrainConfig(str(dataset_path), run, model, quiet=True, **{**chosen, **changes}))  # type: ignore[arg-type]
    return run


@pytest.fixture(scope="module")
def small_run(dataset_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of ResNet-32, not to be written to."""
    return trained(dataset_path, tmp_path_factory.mktemp("export") / "run", "resnet32", weights=None)


def stored_pictures(dataset_path: Path) -> tuple[list[str], Pixels]:
    """Keys and pixels of the test split."""
    with ShardedDataset.open(dataset_path) as dataset:
        samples = list(dataset.samples("test"))
    return [s.key for s in samples], np.stack([simplejpeg.decode_jpeg(s.jpeg, "RGB") for s in samples])


def check(run: Path, dataset_path: Path, program: Program) -> None:
    """Each test picture has the labels and probabilities that the evaluation wrote, and it is that picture's pixels, in
    RGB, that decide them."""
    evaluated = pd.read_parquet(run / "predictions-test.parquet").set_index("key")
    keys, pixels = stored_pictures(dataset_path)
    probabilities = program(pixels)
    for key, row in zip(keys, probabilities, strict=True):
        assert row.sum() == pytest.approx(1, abs=1e-5)
        for place in range(1, 6):
            wanted = evaluated.loc[key, f"probability_{place}"]
            assert row[evaluated.loc[key, f"label_{place}"]] == pytest.approx(wanted, rel=1e-3)
    for other in (np.zeros_like(pixels), np.ascontiguousarray(pixels[..., ::-1])):
        logarithms = (np.log(np.maximum(found, 1e-9)) for found in (program(other), probabilities))
        assert np.abs(np.subtract(*logarithms)).max() > 0.05


@pytest.mark.parametrize(
    ("model", "weights", "loss"),
    [
        pytest.param("efficientnet-lite0", "imagenet", "ldam", marks=pytest.mark.slow),
        pytest.param("efficientnet-b0", "none", "ldam", marks=pytest.mark.slow),
        pytest.param("resnet50", "none", "ce", marks=pytest.mark.slow),
        ("resnet32", "none", "arcface"),
    ],
)
def test_both_forms_give_the_checkpoints_probabilities(
    full_size: Path,
    dataset_path: Path,
    tmp_path: Path,
    model: str,
    weights: str,
    loss: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    gently: dict[str, object] = {"lr": 0.01, "head_lr": 0.01, "bn_momentum": 0.5}
    if model != "resnet32":  # which is for small pictures, and is certain of one class after one epoch at its own rates
        dataset_path, gently = full_size, {}
    if loss == "arcface":
        gently |= {"pool": "gem", "neck": 16}
    run = trained(dataset_path, tmp_path / "run", model, weights=weights, loss=loss, **gently)
    assert export_main([str(run), "--to", "onnx"]) == 0
    assert export_main([str(run), "--to", "torch"]) == 0
    assert capsys.readouterr().out.count("of the checkpoint on val pictures of") == 2
    _, pixels = stored_pictures(dataset_path)

    onnx.checker.check_model(onnx.load(run / "model.onnx"))
    session = onnxruntime.InferenceSession(run / "model.onnx", providers=["CPUExecutionProvider"])
    check(run, dataset_path, lambda pixels: session.run(None, {"pixels": pixels})[0])
    said = json.loads(session.get_modelmeta().custom_metadata_map["lmk"])
    with ShardedDataset.open(dataset_path) as dataset:
        assert [entry["landmark_id"] for entry in said["classes"]] == dataset.classes["landmark_id"].tolist()
        assert said["content_sha256"] == dataset.manifest["content_sha256"]
        assert said["recipe"]["size"] == pixels.shape[1]

    files = {DESCRIPTION: ""}
    program = torch.export.load(run / "model.pt2", extra_files=files).module()
    check(run, dataset_path, lambda pixels: program(torch.from_numpy(pixels)).numpy())
    assert json.loads(files[DESCRIPTION]) == said


@pytest.mark.slow
@pytest.mark.parametrize(
    "wrong",
    [
        lambda program: lambda pixels: np.roll(program(pixels), 1, axis=1),
        lambda program: lambda pixels: program(np.ascontiguousarray(pixels[..., ::-1])),
        lambda program: lambda pixels: program(pixels) ** 1.01,
        lambda program: lambda pixels: np.full_like(program(pixels), np.nan),
    ],
    ids=["labels moved", "BGR", "other probabilities, the same best label", "not numbers"],
)
def test_a_program_that_differs_is_not_written(
    small_run: Path,
    wrong: Callable[[Program], Program],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make = export._program
    monkeypatch.setattr(export, "_program", lambda kind, data: wrong(make(kind, data)))
    assert export_main([str(small_run), "--to", "torch"]) == 1
    assert "nothing was written" in capsys.readouterr().err
    assert not (small_run / "model.pt2").exists()


def test_a_folder_that_is_not_there_is_named_before_the_work(
    small_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "nowhere" / "x.pt2"
    assert export_main([str(small_run), "--to", "torch", "--out", str(out)]) == 1
    assert f"--out {out}: there is no folder {out.parent}" in capsys.readouterr().err


@pytest.mark.slow
def test_only_an_export_is_replaced(small_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "model.pt2"
    out.write_text("mine")
    assert export_main([str(small_run), "--to", "torch", "--out", str(out)]) == 1
    assert f"--out {out}: exists and is no export of a run" in capsys.readouterr().err
    assert out.read_text() == "mine"
    out.unlink()
    os.mkfifo(out)
    assert export_main([str(small_run), "--to", "torch", "--out", str(out)]) == 1
    out.unlink()
    shutil.copy(small_run / "checkpoints" / "best.pt", out)
    assert export_main([str(small_run), "--to", "torch", "--out", str(out)]) == 1
    out.write_text('{"content_sha256": "0"}')
    assert export_main([str(small_run), "--to", "torch", "--out", str(out)]) == 1
    out.unlink()
    for _ in range(2):
        assert export_main([str(small_run), "--to", "torch", "--out", str(out)]) == 0


@pytest.mark.slow
def test_the_docs_way_from_a_photo_to_an_answer_gives_the_predictors(
    small_run: Path,
    dataset_path: Path,
    collection: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Every Python example of the page, run."""
    key = stored_pictures(dataset_path)[0][0]
    shutil.copy(collection / "train" / key[0] / key[1] / key[2] / f"{key}.jpg", tmp_path / "photo.jpg")
    shutil.copytree(small_run, tmp_path / "runs" / "efficientnet-b0-balanced-softmax")
    monkeypatch.chdir(tmp_path)
    assert export_main(["runs/efficientnet-b0-balanced-softmax", "--to", "onnx", "--quiet"]) == 0
    examples = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(examples) == 2
    found: dict[str, Any] = {}
    for example in examples:
        exec(example, found)
    (expected,) = Predictor(small_run, device="cpu", amp="off")("photo.jpg")
    for guess in expected.guesses:
        assert found["probabilities"][0][guess.label] == pytest.approx(guess.probability, rel=1e-3)
    assert f"'landmark_id': {expected.guesses[0].landmark_id}" in capsys.readouterr().out


def test_pictures_of_a_remote_dataset_are_fetched_into_the_cache_that_was_named(
    small_run: Path, dataset_path: Path, tmp_path: Path
) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(f"{dataset_path}/", "/exported/shards/", recursive=True)
    cache, out = tmp_path / "cache", tmp_path / "model.pt2"
    command = [str(small_run), "--to", "torch", "--out", str(out), "--shards", "memory://exported/shards"]
    try:
        assert export_main([*command, "--cache", str(cache), "--quiet"]) == 0
    finally:
        memory.rm("/exported", recursive=True)
    assert list(cache.rglob("*.tar"))
    assert out.exists()


def test_a_run_without_its_dataset_is_checked_on_noise_and_says_so(
    dataset_path: Path, full_size: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone, out = tmp_path / "gone", tmp_path / "elsewhere.pt2"
    shutil.copytree(dataset_path, gone)
    run = trained(gone, tmp_path / "run", "resnet32", weights=None)
    shutil.rmtree(gone)
    command = [str(run), "--to", "torch", "--out", str(out)]
    assert export_main(command) == 0
    assert "noise, since the dataset of the run cannot be read any more" in capsys.readouterr().out
    out.unlink()
    for shards, said in ((gone, "no such file"), (full_size, "its pictures have 224 pixels, those of the run 32")):
        assert export_main([*command, "--shards", str(shards)]) == 1
        assert said in capsys.readouterr().err
    assert not out.exists()
