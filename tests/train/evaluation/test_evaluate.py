"""`lmk-eval`: what is evaluated, recorded and refused."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch

from lmk_data.dataset import ShardedDataset
from lmk_data.mark import Mark
from lmk_data.options import Selection
from lmk_data.views.view import write_view
from lmk_train.cli import eval_main
from lmk_train.evaluation.evaluate import SOURCE
from lmk_train.training.loop import train
from tests.pages import header
from tests.train.run_files import Config


def test_evaluation_refuses_what_does_not_fit(
    config: Config, tmp_path: Path, dataset_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert eval_main([str(tmp_path)]) == 1
    assert "is " in capsys.readouterr().err
    train(config(epochs=1))
    other = tmp_path / "other"
    shutil.copytree(dataset_path, other)
    classes = pd.read_parquet(other / "classes.parquet")
    classes["landmark_id"] += 1_000_000
    classes.to_parquet(other / "classes.parquet")
    assert eval_main([str(tmp_path / "run"), "--shards", str(other)]) == 1
    assert "has none of the 5 classes of the run" in capsys.readouterr().err
    assert eval_main([str(tmp_path / "run"), "--split", "val"]) == 0
    assert "val (" in capsys.readouterr().out


EXACT = ["--amp", "off", "--device", "cpu"]


def test_what_was_evaluated_is_recorded_and_only_its_like_is_put_beside_it(
    run: Path, dataset: ShardedDataset, tmp_path: Path
) -> None:
    trained_on = dataset.manifest["content_sha256"]
    at_first = json.loads((run / "eval-test.json").read_text())
    assert [at_first[name] for name in SOURCE] == [trained_on, trained_on, dataset.location, "best"]
    assert eval_main([str(run), "--split", "val", "--quiet", *EXACT]) == 0
    index = run / "report" / "index.html"
    assert header(index) == ["metric", "val", "test"], "the page of another split shows every split too"
    assert header(run / "report" / "val.html") == ["metric", "val", "test"]
    moved = dataset.index("test").set_index("landmark_id")["key"][20409]
    write_view(dataset, Selection(top=3, marks={moved: Mark("relabel", "83144")}), str(tmp_path / "view"))
    with ShardedDataset.open(tmp_path / "view") as view:
        evaluated = view.manifest["content_sha256"]
    last = ["--checkpoint", "last", "--quiet", *EXACT]
    assert eval_main([str(run), "--shards", str(tmp_path / "view"), *last]) == 0
    targets = pd.read_parquet(run / "predictions-test.parquet").set_index("key")["target"]
    assert dataset.classes["landmark_id"][targets[moved]] == 83144, "the run's label of the class that a mark gave"
    said = json.loads((run / "eval-test.json").read_text())
    assert [said[name] for name in SOURCE] == [evaluated, trained_on, str(tmp_path / "view"), "last"]
    assert header(index) == ["metric", "test"]
    html = index.read_text()
    assert trained_on in html
    assert evaluated in html
    assert "of another dataset than it was trained on" in html
    assert eval_main([str(run), *last]) == 0
    assert header(index) == ["metric", "test"], "the best checkpoint's validation is not the last one's"


def test_a_checkpoint_alone_is_evaluated(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "alone" / "checkpoints").mkdir(parents=True)
    shutil.copy(run / "checkpoints" / "best.pt", tmp_path / "alone" / "checkpoints")
    assert eval_main([str(tmp_path / "alone"), *EXACT]) == 0
    assert "test (" in capsys.readouterr().out
    assert (tmp_path / "alone" / "report" / "index.html").exists()


def test_options_that_make_no_sense_are_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = (["--cache-gb", "-3"], ["--cache-gb", "inf"])
    for words in (["--batch-size", "0"], ["--batch-size", "-1"], ["--workers", "-1"], *sizes):
        assert eval_main([str(run), *words]) == 1
        assert (
            f"{words[0]} {float(words[1]) if words[0] == '--cache-gb' else words[1]}: must be"
            in capsys.readouterr().err
        )


def test_a_run_that_went_on_where_its_dataset_is_now_is_evaluated_there(
    run: Path, dataset_path: Path, tmp_path: Path
) -> None:
    """config.json still says where it began; a line of its record was cut short."""
    moved = tmp_path / "moved"
    shutil.copytree(dataset_path, moved)
    best = torch.load(run / "checkpoints" / "best.pt", weights_only=True)
    best["config"]["shards"] = str(moved)
    torch.save(best, run / "checkpoints" / "best.pt")
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, "shards": str(tmp_path / "gone")}))
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"kind": "train", "st')
    (run / "report" / "index.html").unlink()
    assert eval_main([str(run), "--quiet", *EXACT]) == 0
    assert (run / "report" / "index.html").exists()


def test_an_evaluation_that_is_cut_short_leaves_no_figures_of_the_one_before(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pyarrow.parquet.write_table", no_space)
    assert eval_main([str(run), "--checkpoint", "last", "--quiet", *EXACT]) == 1
    assert not (run / "eval-test.json").exists()


def test_a_run_is_called_by_its_folder_from_within_too(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run)
    assert eval_main([".", "--quiet", *EXACT]) == 0
    assert f"<h1>{run.name}" in (run / "report" / "index.html").read_text()


def test_weights_that_are_not_finite_are_said_in_a_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    best = torch.load(run / "checkpoints" / "best.pt", weights_only=True)
    best["model"]["head.weight"][0, 0] = torch.nan
    torch.save(best, run / "checkpoints" / "best.pt")
    assert eval_main([str(run), *EXACT]) == 1
    assert "its probabilities are not finite in float32; evaluate it with --amp off" in capsys.readouterr().err
