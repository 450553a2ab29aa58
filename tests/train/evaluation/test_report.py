"""The page of a run."""

import json
import re
import shlex
import shutil
from html import unescape
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from lmk_data.build import BuildOptions, build
from lmk_data.dataset import ShardedDataset
from lmk_data.options import Recipe
from lmk_train.cli import eval_main
from lmk_train.config.training import TrainConfig
from lmk_train.evaluation.evaluate import SOURCE, Evaluation, write_evaluation
from lmk_train.evaluation.metrics import summarize
from lmk_train.evaluation.predictions import Predictions
from lmk_train.evaluation.report import write_run_report
from lmk_train.runs.classes import Classes
from lmk_train.runs.folder import RunFolder
from tests.browser import browse
from tests.drawing import make_collection
from tests.pages import sections

EXACT = ["--amp", "off", "--device", "cpu"]


ODD_NAMES = ("<script>alert(1)</script>", r"Price $\foo$ place", "故宫")


def test_the_report_shows_metrics_curves_classes_and_the_sweep(run: Path, dataset: ShardedDataset) -> None:
    path = run / "report" / "index.html"
    assert "default-src 'none'" in path.read_text()
    parts = sections(path)
    metrics = json.loads((run / "eval-test.json").read_text())
    assert f"<b>{metrics['accuracy']:.1%}</b>" in parts["Summary"]
    assert dataset.manifest["content_sha256"] in parts["Configuration"]
    for curve in ("training loss", "validation macro F1", "images per second"):
        assert f">{curve}</text>" in parts["Training"]
    for landmark_id in dataset.classes["landmark_id"]:
        assert f'"{landmark_id}"' in parts["All classes"]
    assert "Post-hoc logit adjustment" not in parts
    assert eval_main([str(run), "--tau", *EXACT, "--quiet"]) == 0
    sweep = json.loads((run / "tau-test.json").read_text())
    drawn = sections(path)["Post-hoc logit adjustment"]
    assert {f"{row['tau']:g}" for row in sweep["sweep"]} <= set(re.findall(r"<text [^>]*>([^<]*)</text>", drawn))
    assert f"Ring: tau {sweep['picked']:g}" in drawn


def made_up_run(dataset: ShardedDataset, run: Path, seed: int = 0) -> "pd.DataFrame":
    """A run's folder with predictions of the test split that are right for two in three samples; its classes."""
    run.mkdir()
    RunFolder(run).config.write_text(json.dumps(TrainConfig(dataset.location, run).resolved().json()))
    shares = {"data_share": 0.25, "copy_share": 0.0, "compute_share": 0.75}
    lines = [{"kind": "train", "epoch": 1, "step": step, "images_per_second": 9.0, **shares} for step in (50, 100)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    index, random = dataset.index("test"), np.random.default_rng(seed)
    targets, num_classes = index["label"].to_numpy(np.int64), dataset.num_classes
    labels = (targets[:, None] + np.arange(min(5, num_classes))) % num_classes
    labels[::3] = labels[::3, ::-1]
    probabilities = -np.sort(-random.dirichlet(np.ones(labels.shape[1]), len(targets)).astype(np.float32), axis=1)
    keys = index["key"].to_numpy(object)
    predictions = Predictions(keys, targets, labels, probabilities, np.ones(len(targets), np.float32))
    classes = Classes.of_dataset(dataset)
    metrics = {**summarize(predictions, classes.train_counts), "num_unknown": 0}
    nothing = predictions.select(targets < 0)
    write_evaluation(run, Evaluation(0, "test", dict.fromkeys(SOURCE, "x"), metrics, predictions, nothing, []), classes)
    return pd.read_parquet(run / "per-class-test.parquet")


@pytest.fixture(scope="module")
def long_tail(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of 104 classes: three of over 100 training images, one of 40, a hundred of few."""
    folder = tmp_path_factory.mktemp("long-tail")
    sizes = {1: 170, 2: 160, 3: 150, 4: 60} | dict.fromkeys(range(100, 200), 6)
    make_collection(folder, sizes, (40, 30))
    out = folder / "shards"
    images, labels = [str(folder / "train")], str(folder / "train.csv")
    build(BuildOptions(images=images, labels=labels, out=out, recipe=Recipe(size=32), workers=1, quiet=True))
    return out


def test_many_classes_have_pairs_and_no_matrix_and_surprises_are_of_many_and_few_shots(
    long_tail: Path, tmp_path: Path
) -> None:
    with ShardedDataset.open(long_tail) as dataset:
        classes = made_up_run(dataset, tmp_path / "run")
        found = sections(write_run_report(tmp_path / "run", dataset, "test"))
    assert "<svg " not in found["Confusions"]
    pairs = re.findall(r"<h3>(\w+) recognised as (\w+) <span>(\d+) images?</span>", found["Confusions"])
    assert len({(target, predicted) for target, predicted, _ in pairs}) == 10
    counts = [int(count) for _, _, count in pairs]
    assert counts == sorted(counts, reverse=True)
    mistakes = re.findall(r"probability ([\d.]+)", found["Most confident mistakes"])
    assert [float(p) for p in mistakes] == sorted(map(float, mistakes), reverse=True)
    assert len(mistakes) == 12
    surprises = found["Weak large classes and strong small classes"]
    notes = re.findall(r"<h3>(\w+) <span>(\w+): (\d+) training images, F1 ([\d.]+) on", surprises)
    large = classes[(classes["train"] > 100) & (classes["support"] > 0)].sort_values("f1")
    assert len(large) == 3
    assert [note[0] for note in notes if note[1] == "large"] == large["landmark_id"].astype(str).tolist()
    small = [float(note[3]) for note in notes if note[1] == "small"]
    assert len(small) == 5
    assert small == sorted(small, reverse=True)
    assert small[0] == pytest.approx(classes.loc[classes["train"] < 20, "f1"].max(), abs=0.005)


def test_without_many_and_few_shots_surprises_are_above_and_below_the_median(
    dataset: ShardedDataset, tmp_path: Path
) -> None:
    classes = made_up_run(dataset, tmp_path / "run")
    assert classes["train"].max() <= 100
    found = sections(write_run_report(tmp_path / "run", dataset, "test"))
    notes = re.findall(r"(large|small): (\d+) training images, F1 ([\d.]+) on", "".join(found.values()))
    large = [(float(f1), -int(train)) for kind, train, f1 in notes if kind == "large"]
    assert large == sorted(large)
    assert large
    assert all(-train > classes["train"].median() for _, train in large)
    assert "Average shares of the time: 25.0% data, 0.0% copy, 75.0% compute" in found["Training"]
    assert "training loss" not in found["Training"], "there is no line of an epoch"
    assert "share of the true class" in found["Confusions"]


def test_any_name_of_a_class_can_be_shown(
    run: Path, dataset_path: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Markup, what matplotlib takes for mathematics, and letters that its font lacks."""
    shutil.copytree(dataset_path, tmp_path / "named")
    for path in (tmp_path / "named" / "classes.parquet", run / "per-class-test.parquet"):
        table = pd.read_parquet(path)
        table["name"] = [*ODD_NAMES, None, None]
        table.to_parquet(path)
    with ShardedDataset.open(tmp_path / "named") as dataset:
        html = write_run_report(run, dataset, "test").read_text()
    assert "<script>alert" not in html
    (drawn,) = [svg for svg in re.findall(r"<svg.*?</svg>", html, re.DOTALL) if "true class" in svg]
    for name in ODD_NAMES:
        assert unescape(drawn).count(f">{name[:24]}<") == 2, "on both axes, as text"
        assert name in unescape(sections(run / "report" / "index.html")["All classes"])
    assert capfd.readouterr() == ("", "")


def test_the_page_names_the_next_commands(run: Path, dataset: ShardedDataset) -> None:
    found = sections(write_run_report(run, dataset, "test"))
    browse = shlex.join(["lmk-shard", "browse", dataset.location, "--run", str(run)])
    assert browse in unescape(found["Confusions"])
    inspect = shlex.join(["lmk-inspect", str(run), "--shards", dataset.location])
    assert inspect in unescape(found["Weak large classes and strong small classes"])


def test_a_metric_that_is_nought_is_shown(run: Path, dataset: ShardedDataset) -> None:
    said = json.loads((run / "eval-test.json").read_text())
    (run / "eval-test.json").write_text(json.dumps({**said, "few_accuracy": 0.0}))
    html = write_run_report(run, dataset, "test").read_text()
    assert re.search(r"<td>few accuracy</td><td[^>]*>0\.0000</td>", html)


_MEASURE = """
const frame = document.getElementById("f");
frame.onload = () => {
  const page = frame.contentDocument, root = page.documentElement;
  const heights = [...page.querySelectorAll("svg")].map((svg) => svg.getBoundingClientRect().height);
  const seen = [root.scrollWidth, root.clientWidth, Math.min(...heights)];
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
    scroll_width, client_width, least_height = json.loads(unescape(re.findall(r"<title>(.*?)</title>", done.stdout)[0]))
    assert scroll_width <= client_width <= width
    assert least_height > 100, "every figure has room"
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
