"""`lmk-train --profile-input`."""

from pathlib import Path

import pytest

from lmk_train.cli import train_main
from lmk_train.training import profile_input as bottleneck


def test_profiling_says_what_limits_and_writes_nothing(
    dataset_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bottleneck, "_SECONDS", 0.3)
    given = ["--shards", str(dataset_path), "--out", str(tmp_path / "run"), "--model", "resnet32", "--device", "cpu"]
    assert train_main([*given, "--batch-size", "10", "--profile-input"]) == 0
    said = capsys.readouterr().out
    for what in ("images per second of one rank:", "reader alone", "model alone", "both"):
        assert what in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("reader", "model", "both", "said"),
    [
        (1000, 100, 96, "the model limits; the reader could feed 10.0 times as much"),
        (50, 100, 48, "the reader limits: give it more --workers, or shards on a faster disk"),
        (150, 100, 80, "each alone is faster than training is (20% lost)"),
    ],
)
def test_what_a_profile_says(reader: float, model: float, both: float, said: str) -> None:
    assert bottleneck.InputProfile(0, reader, model, both).verdict().endswith(said)
