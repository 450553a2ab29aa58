"""Cached features of a frozen backbone."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lmk_data.dataset import ShardedDataset
from lmk_data.errors import UserError
from lmk_train.cli import eval_main
from lmk_train.config.training import TrainConfig
from lmk_train.data.features import CachedFeatures, compute_features
from lmk_train.training.loop import train


def frozen(dataset_path: Path, out: Path) -> TrainConfig:
    return TrainConfig(
        str(dataset_path),
        out,
        "efficientnet-lite0",
        epochs=2,
        batch_size=10,
        freeze_backbone_epochs=2,
        hflip=0.0,
        color_jitter=0.0,
        device="cpu",
        amp="off",
        workers=2,
        quiet=True,
    )


def test_a_head_on_cached_features_is_the_training_with_a_frozen_backbone(
    dataset_path: Path, dataset: ShardedDataset, tmp_path: Path
) -> None:
    config = frozen(dataset_path, tmp_path / "pictures")
    compute_features(config.resolved(), tmp_path / "features", lambda _: None)
    train(config, evaluate_test=False)
    on_features = replace(config, out=tmp_path / "head")
    result = train(on_features, features=tmp_path / "features", evaluate_test=False)
    assert result.test is None
    assert not list((tmp_path / "head").glob("eval-*"))
    epochs = [
        [json.loads(line) for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()]
        for run in ("pictures", "head")
    ]
    for one, other in zip(*([line for line in lines if line["kind"] == "epoch"] for lines in epochs), strict=True):
        assert one["train_loss"] == pytest.approx(other["train_loss"], rel=1e-4)
        assert one["val_loss"] == pytest.approx(other["val_loss"], rel=1e-4)
    # What it leaves is a whole model: evaluated on pictures, it is as good as it was on features.
    assert eval_main([str(tmp_path / "head"), "--split", "val", "--checkpoint", "last", "--amp", "off", "--quiet"]) == 0
    judged = json.loads((tmp_path / "head" / "eval-val.json").read_text())
    assert judged["loss"] == pytest.approx(epochs[1][-1]["val_loss"], rel=1e-4)
    predictions = pd.read_parquet(tmp_path / "head" / "predictions-val.parquet")
    assert dataset.num_classes <= 5, "all probabilities are in the table"
    own = [
        row[f"probability_{1 + [row[f'label_{k}'] for k in range(1, dataset.num_classes + 1)].index(row['target'])}"]
        for _, row in predictions.iterrows()
    ]
    assert judged["loss"] == pytest.approx(-np.log(own).mean(), rel=1e-4)


def test_a_disk_without_room_is_said_before_anything_is_computed(
    dataset_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, usage = frozen(dataset_path, tmp_path / "run"), shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1 << 20))
    with pytest.raises(UserError, match=r"/features: the features take 0\.0 GB more, and 0\.0 GB are free there; make"):
        compute_features(config.resolved(), tmp_path / "features", lambda _: None)
    assert not list((tmp_path / "features").iterdir())


def test_features_of_another_dataset_or_damaged_ones_are_refused(
    dataset_path: Path, dataset: ShardedDataset, tmp_path: Path
) -> None:
    config = frozen(dataset_path, tmp_path / "run").resolved()
    compute_features(config, tmp_path / "features", lambda _: None)
    path = tmp_path / "features" / "val.npy"
    whole = path.read_bytes()
    for damaged in (whole[:-4], b"", np.zeros(3, np.float32).tobytes()):
        path.write_bytes(damaged)
        with pytest.raises(Exception, match=r"val\.npy.*remove the folder"):
            CachedFeatures.open(tmp_path / "features", dataset, config).reader("val")
    with pytest.raises(Exception, match="another dataset or backbone"):
        CachedFeatures.open(tmp_path / "features", dataset, replace(config, amp="bf16"))
