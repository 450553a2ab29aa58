"""Cached features of a search, which are computed in a process of their own."""

import os
import signal
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from lmk_data.dataset import ShardedDataset
from lmk_data.errors import TrainingError, UserError
from lmk_train.data.features import CachedFeatures
from lmk_train.tuning import feature_process
from lmk_train.tuning.feature_process import ensure_features
from tests.train.run_files import Config


@pytest.mark.slow
def test_a_search_leaves_features_to_another_process(
    config: Config, dataset: ShardedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which leaves the device when it has ended. Its errors are those of the search."""
    monkeypatch.setattr(feature_process, "compute_features", lambda *_: pytest.fail("computed by the search itself"))
    chosen, folder, said = config(freeze_backbone_epochs=2).resolved(), tmp_path / "features", list[str]()
    with open(tmp_path / "lock", "w") as lock:
        with pytest.raises(UserError, match=r"absent\.pt"):
            ensure_features(replace(chosen, weights=str(tmp_path / "absent.pt")), folder, lock.fileno(), said.append)
        ensure_features(chosen, folder, lock.fileno(), said.append)
        assert said == ["resnet32: random weights; computing its features once"]
        monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("they are there"))
        ensure_features(chosen, folder, lock.fileno(), said.append)
    CachedFeatures.open(folder, dataset, chosen)


def test_features_whose_process_was_killed_are_a_line(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = subprocess.Popen

    def killed(*_: object, **options: object) -> "subprocess.Popen[str]":
        process: subprocess.Popen[str] = start(["cat"], **options)  # type: ignore[call-overload]
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        return process

    monkeypatch.setattr(subprocess, "Popen", killed)
    with (
        open(tmp_path / "lock", "w") as lock,
        pytest.raises(TrainingError, match="was killed by signal 9; run it again"),
    ):
        ensure_features(config().resolved(), tmp_path / "features", lock.fileno(), lambda _: None)
