"""`lmk-tune`: whole searches, and what is refused."""

import json
import shlex
import sys
from pathlib import Path

import pytest
import tyro

from lmk_train.cli import eval_main, tune_main
from lmk_train.config.training import TrainConfig
from tests.train.tuning.searches import HEAD, record, searching
from tests.web import serving

pytest.importorskip("ax", reason="the extra `tune` is not installed")


def test_without_ax_nothing_is_left_behind(
    dataset_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ax.api.client", None)
    assert tune_main(searching(dataset_path, tmp_path)) == 1
    assert "pip install '.[tune]'" in capsys.readouterr().err
    assert not (tmp_path / "search").exists()


@pytest.mark.slow
def test_a_grid_with_a_trial_that_diverges(
    dataset_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    space = "[search]\nhead_lr = [1e-2, 1e30]\nlabel_smoothing = [0.0, 0.1]\n[fixed]\nbatch_size = 10\namp = 'off'\n"
    arguments = searching(
        dataset_path, tmp_path, "--strategy", "grid", "--loss", "ce", "--objective", "loss", space=space
    )
    assert tune_main(arguments) == 0
    said = capsys.readouterr().out
    assert "4 trials: 2 done, 2 failed" in said
    search = tmp_path / "search"
    best = json.loads((search / "best.json").read_text())
    # The winner alone has seen the test split, and every trial is a run that can be evaluated.
    assert [path.parent.name for path in search.glob("trials/*/eval-test.json")] == [f"{best['trial']:03d}"]
    assert best["test"] == json.loads((search / "trials" / f"{best['trial']:03d}" / "eval-test.json").read_text())
    other = min({0, 1} - {best["trial"]})
    assert eval_main([str(search / "trials" / f"{other:03d}"), "--split", "val", "--quiet"]) == 0
    judged = json.loads((search / "trials" / f"{other:03d}" / "eval-val.json").read_text())
    assert judged["loss"] >= best["loss"] - 1e-4
    failed = (search / "trials" / "002.log").read_text()
    assert "the loss is not finite at step" in failed
    page = (search / "report" / "index.html").read_text()
    assert "the loss is not finite at step" in page
    # The command that it gives trains what the trial trained.
    words = shlex.split(best["command"])
    assert words[0] == "lmk-train"
    assert best["command"] in said
    pasted = tyro.cli(TrainConfig, args=words[1:], config=(tyro.conf.FlagCreatePairsOff,)).resolved().json()
    trained = json.loads((search / "trials" / f"{best['trial']:03d}" / "config.json").read_text())
    assert {k: v for k, v in pasted.items() if trained[k] != v}.keys() <= {"out", "quiet", "device"}


@pytest.mark.slow
def test_whole_trainings_with_the_default_space_after_a_start_that_died(dataset_path: Path, tmp_path: Path) -> None:
    search = tmp_path / "search"
    search.mkdir()
    for left in (".lock", "experiment.json", "search.json.7-ab.tmp", ".DS_Store"):
        (search / left).touch()
    words = ["--shards", str(dataset_path), "--out", str(search), "--model", "efficientnet-lite0", "--device", "cpu"]
    assert tune_main([*words, "--epochs", "1", "--trials", "2", "--strategy", "random"]) == 0
    best = json.loads((search / "best.json").read_text())
    assert {"lr", "head_lr", "color_jitter", "batch_size"} <= best["parameters"].keys()
    assert "--freeze-backbone-epochs" not in best["command"]
    assert best["test"]["accuracy"] >= 0
    assert len(record(tmp_path)) == 2
    assert not (search / "features").exists()


@pytest.mark.slow
def test_a_search_behind_a_url_keeps_no_secret_and_is_resumed_with_the_url(dataset_path: Path, tmp_path: Path) -> None:
    with serving(dataset_path) as place:
        for trials, more in (("1", ()), ("2", ("--resume",))):
            words = searching(dataset_path, tmp_path, "--trials", trials, "--cache", str(tmp_path / "cache"), *more)
            words[1] = f"http://alice:s3cr3t@{place}"
            assert tune_main(words) == 0
    assert len(record(tmp_path)) == 2
    files = [path for path in (tmp_path / "search").rglob("*") if path.is_file()]
    assert not [path for path in files if b"s3cr3t" in path.read_bytes()]


@pytest.mark.slow
def test_a_search_ends_when_every_point_was_tried(
    dataset_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    space = "[search]\nbatch_size = [8, 10]\n"
    assert tune_main(searching(dataset_path, tmp_path, "--trials", "4", "--parallel", "2", space=space)) == 0
    said = capsys.readouterr().out
    assert said.count("after 2 trials every proposed point has been tried") == 1
    assert "2 trials: 2 done" in said


@pytest.mark.slow
def test_the_loss_may_be_searched(dataset_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    space = "[search]\nloss = ['ce', 'ldam']\nldam_max_margin = [0.3, 0.5]\n"
    assert tune_main(searching(dataset_path, tmp_path, "--strategy", "grid", space=space)) == 0
    assert "3 trials: 3 done" in capsys.readouterr().out
    losses = [json.loads(path.read_text())["loss"] for path in (tmp_path / "search" / "trials").glob("*/config.json")]
    assert sorted(losses) == ["ce", "ldam", "ldam"]


def test_a_flag_for_what_is_searched_is_refused(
    dataset_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    space = "[search]\nloss = ['ce', 'ldam']\n"
    assert tune_main(searching(dataset_path, tmp_path, "--loss", "ce", space=space)) == 1
    assert "--loss ce: --search varies it; leave one of them out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        (["--resume"], "has no search to resume"),
        (["--strategy", "grid", "--trials", "3"], "--trials 3: the grid has 9 points"),
        (["--objective", "many_accuracy"], "--objective many_accuracy: the validation split has no class"),
        (["--loss", "ce", "--objective", "few_accuracy", "--search", "nowhere.toml"], "nowhere.toml: no such file"),
    ],
)
def test_mistakes_are_one_line(
    dataset_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], complaint: str
) -> None:
    assert tune_main([*searching(dataset_path, tmp_path), *more]) == 1
    said = capsys.readouterr().err.strip()
    assert complaint in said
    assert "\n" not in said
    assert not (tmp_path / "search").exists()


def test_what_says_nothing_to_a_frozen_backbone_is_refused(
    dataset_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tune_main(searching(dataset_path, tmp_path, space="[search]\ncolor_jitter = [0.1, 0.2]\n")) == 1
    assert "color_jitter has no effect on a frozen backbone's features" in capsys.readouterr().err
    fixed = HEAD + "[fixed]\nweights = 'none'\n"
    assert tune_main(searching(dataset_path, tmp_path, space=fixed)) == 1
    assert "--cached-features: random weights" in capsys.readouterr().err
    assert tune_main(searching(dataset_path, tmp_path, space="[search]\nbatch_size = [8, 4096]\n")) == 1
    assert "batch size 4096: more than the" in capsys.readouterr().err
