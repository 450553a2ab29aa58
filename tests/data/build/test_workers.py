from contextlib import nullcontext
from pathlib import Path

import pytest

from lmk_data.build import BuildOptions, workers
from lmk_data.build.workers import started_beside_the_plan


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    """A label table for several shards for each of two workers."""
    path = tmp_path / "train.csv"
    path.write_text("id,landmark_id\n" + "".join(f"{number:016x},1\n" for number in range(10_000)))
    return path


def _are_started(monkeypatch: pytest.MonkeyPatch, options: BuildOptions) -> list[int]:
    started = []

    def start(number: int, module: str) -> nullcontext[None]:
        assert module == "lmk_data.build.shard"
        started.append(number)
        return nullcontext()

    monkeypatch.setattr(workers, "workers_started", start)
    with started_beside_the_plan(options):
        return started


def test_a_build_of_some_size_starts_all_its_workers(
    labels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "shards"
    assert _are_started(monkeypatch, BuildOptions(labels=str(labels), out=out, workers=2)) == [2]
    out.mkdir()
    assert _are_started(monkeypatch, BuildOptions(labels=str(labels), out=out, workers=2)) == [2]


def test_no_worker_is_started_that_may_have_nothing_to_do(
    labels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, small = tmp_path / "shards", tmp_path / "small.csv"
    small.write_text("id,landmark_id\na,1\n")
    others = [
        BuildOptions(labels=str(labels), out=out, workers=1),
        BuildOptions(labels=str(labels), out=out, workers=40),
        BuildOptions(labels=str(small), out=out, workers=2),
        BuildOptions(labels=str(tmp_path / "absent.csv"), out=out, workers=2),
        BuildOptions(labels=str(tmp_path), out=out, workers=2),
        BuildOptions(labels="classes", out=out, workers=2),
        BuildOptions(labels="https://host/train.csv", out=out, workers=2),
        BuildOptions(labels="nul\0", out=out, workers=2),
        BuildOptions(labels=str(labels), out=small, workers=2),
        BuildOptions(labels=str(labels), out=tmp_path, workers=2),
        BuildOptions(labels=str(labels), out=out, scheduler="tcp://host:8786"),
    ]
    assert [_are_started(monkeypatch, options) for options in others] == [[]] * len(others)
