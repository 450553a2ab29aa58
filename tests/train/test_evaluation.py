"""Evaluation on other datasets, the sweep over tau, and the report of a run."""

import json
import re
import shutil
from html import unescape
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from lmk_data.dataset import ShardedDataset
from lmk_data.subset import Selection, write_view
from lmk_train.cli import eval_main
from lmk_train.config import TrainConfig
from lmk_train.evaluation import TAUS, Classes, best_tau, evaluate_run, tau_adjustments
from lmk_train.loop import train
from lmk_train.options import EvalConfig
from tests.browser import browse

EXACT = ["--amp", "off", "--device", "cpu"]


@pytest.fixture(scope="module")
def finished(dataset_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs, not to be written to."""
    run = tmp_path_factory.mktemp("evaluation") / "run"
    chosen = {"epochs": 2, "batch_size": 10, "device": "cpu", "amp": "off", "quiet": True}
    train(TrainConfig(str(dataset_path), run, "efficientnet-lite0", **chosen))  # type: ignore[arg-type]
    return run


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of that run."""
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def test_a_view_with_other_labels_is_joined_by_landmark(run: Path, dataset: ShardedDataset, tmp_path: Path) -> None:
    """A view numbers its classes anew; the metrics are those of the same samples under the run's labels."""
    write_view(dataset, Selection(classes=("83144", "113209", "7")), str(tmp_path / "view"))
    (found,) = evaluate_run(EvalConfig(run, str(tmp_path / "view"), device="cpu", amp="off", quiet=True))
    with ShardedDataset.open(tmp_path / "view") as view:
        index = view.index("test").set_index("key")
    whole = pd.read_parquet(run / "predictions-test.parquet").set_index("key")
    landmark = dataset.classes["landmark_id"]
    assert len(whole) == len(index) == found.metrics["num_samples"]
    assert {key: landmark[target] for key, target in whole["target"].items()} == index["landmark_id"].to_dict()
    assert found.metrics["num_unknown"] == 0


def test_weights_that_are_not_finite_are_said_in_a_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    best = torch.load(run / "checkpoints" / "best.pt", weights_only=True)
    best["model"]["head.weight"][0, 0] = torch.nan
    torch.save(best, run / "checkpoints" / "best.pt")
    assert eval_main([str(run), *EXACT]) == 1
    assert "its probabilities are not finite in float32; evaluate it with --amp off" in capsys.readouterr().err


def test_landmarks_that_the_model_does_not_know_are_counted_and_kept(
    run: Path, dataset_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    shutil.copytree(dataset_path, other)
    for path in (other / "classes.parquet", *(other / "index").iterdir()):
        table = pd.read_parquet(path)
        table["landmark_id"] = table["landmark_id"].replace(138982, 777)
        table.to_parquet(path)
    assert eval_main([str(run), "--shards", str(other), *EXACT]) == 0
    with ShardedDataset.open(dataset_path) as dataset:
        index = dataset.index("test")
    strangers = set(index.loc[index["landmark_id"] == 138982, "key"])
    metrics = json.loads((run / "eval-test.json").read_text())
    assert metrics["num_unknown"] == len(strangers) > 0
    assert metrics["num_samples"] == len(index) - len(strangers)
    predictions = pd.read_parquet(run / "predictions-test.parquet")
    assert set(predictions.loc[predictions["target"].isna(), "key"]) == strangers
    assert len(predictions) == len(index)
    assert f"{len(strangers)} of landmarks it does not know" in capsys.readouterr().out


def test_tau_is_the_adjustment_of_the_logits_and_validation_picks_it(
    run: Path, dataset: ShardedDataset, capsys: pytest.CaptureFixture[str]
) -> None:
    validation, test = evaluate_run(EvalConfig(run, tau=True, device="cpu", amp="off", quiet=True))
    assert [validation.split, test.split] == ["val", "test"]
    assert [row["tau"] for row in test.by_tau] == list(TAUS)
    assert test.by_tau[0]["accuracy"] == test.metrics["accuracy"]
    assert test.by_tau[0]["macro_f1"] == pytest.approx(test.metrics["macro_f1"])
    assert json.loads((run / "tau-test.json").read_text()) == test.by_tau
    counts = Classes.of_dataset(dataset).train_counts
    expected = -np.outer(TAUS, np.log(counts / counts.sum()))
    torch.testing.assert_close(tau_adjustments(counts), torch.from_numpy(expected).float())
    assert eval_main([str(run), "--tau", *EXACT]) == 0
    picked = best_tau(validation.by_tau)
    assert f"{picked:g} has the best macro F1 on val" in capsys.readouterr().out
    assert max(row["macro_f1"] or 0 for row in validation.by_tau) == next(
        row["macro_f1"] for row in validation.by_tau if row["tau"] == picked
    )


def test_the_report_has_every_part_and_names_are_escaped(run: Path, dataset: ShardedDataset) -> None:
    html = (run / "report" / "index.html").read_text()
    parts = re.findall(r"<h2>(.*?)</h2>", html)
    assert parts == [
        "In short",
        "Training",
        "Classes",
        "What is taken for what",
        "Large classes that do badly, small ones that do well",
        "The most confident mistakes",
        "Every class",
        "Configuration",
    ]
    assert "default-src 'none'" in html
    assert dataset.manifest["content_sha256"] in html
    shown = json.loads((run / "eval-test.json").read_text())
    assert f"<b>{shown['accuracy']:.1%}</b>" in html
    assert eval_main([str(run), "--tau", *EXACT, "--quiet"]) == 0
    assert "<h2>Post-hoc logit adjustment</h2>" in (run / "report" / "index.html").read_text()


_MEASURE = """
const frame = document.getElementById("f");
frame.onload = () => {
  const page = frame.contentDocument, root = page.documentElement;
  const seen = [root.scrollWidth, root.clientWidth, page.querySelectorAll("svg").length];
  setTimeout(() => (document.title = JSON.stringify(seen)), 500);
};
"""


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
def test_the_report_opens_in_a_browser(run: Path, tmp_path: Path, chromium: str, width: int) -> None:
    outer = tmp_path / "outer.html"
    outer.write_text(
        f'<iframe id="f" src="run/report/index.html" width="{width}" height="900"></iframe><script>{_MEASURE}</script>'
    )
    done = browse(chromium, tmp_path, "--dump-dom", outer.as_uri())
    scroll_width, client_width, figures = json.loads(unescape(re.findall(r"<title>(.*?)</title>", done.stdout)[0]))
    assert scroll_width <= client_width <= width
    assert figures == (run / "report" / "index.html").read_text().count("<svg ") >= 5
    screenshot = tmp_path / "report.png"
    browse(
        chromium,
        tmp_path,
        f"--screenshot={screenshot}",
        "--window-size=800,3000",
        (run / "report" / "index.html").as_uri(),
    )
    with Image.open(screenshot) as picture:
        assert len(np.unique(np.asarray(picture.convert("L")))) > 100
