"""Evaluation on other datasets, the sweep over tau, and the report of a run."""

import json
import re
import shutil
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import simplejpeg
import torch
from PIL import Image

from lmk_data.build import BuildOptions, build
from lmk_data.dataset import ShardedDataset
from lmk_data.errors import UserError
from lmk_data.format import Recipe
from lmk_data.plan import PlanRule
from lmk_data.subset import Selection, write_view
from lmk_train.augment import Augmentation, Preprocess
from lmk_train.checkpoint import BEST, load_checkpoint, weights_to_evaluate
from lmk_train.cli import eval_main
from lmk_train.config import TrainConfig
from lmk_train.evaluation import (
    CONFIG,
    SOURCE,
    TAUS,
    Classes,
    Evaluation,
    best_tau,
    evaluate_run,
    model_of,
    tau_adjustments,
    write_evaluation,
)
from lmk_train.loop import train
from lmk_train.metrics import Predictions, summarize
from lmk_train.models import ARCHITECTURES
from lmk_train.options import EvalConfig
from lmk_train.report import write_run_report
from tests.browser import browse
from tests.conftest import make_collection

EXACT = ["--amp", "off", "--device", "cpu"]
ODD_NAMES = ("<script>alert(1)</script>", r"Price $\foo$ place", "故宫")


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


def relabelled(dataset_path: Path, out: Path, change: Callable[["pd.Series[Any]"], "pd.Series[Any]"]) -> Path:
    """A copy of a dataset with other landmark ids."""
    shutil.copytree(dataset_path, out)
    for path in (out / "classes.parquet", *(out / "index").iterdir()):
        table = pd.read_parquet(path)
        table["landmark_id"] = change(table["landmark_id"])
        table.to_parquet(path)
    return out


def test_ids_that_are_text_on_one_side_are_joined(run: Path, dataset_path: Path, tmp_path: Path) -> None:
    """One class whose id is no number makes the ids of its whole dataset text."""
    before = json.loads((run / "eval-test.json").read_text())
    other = relabelled(dataset_path, tmp_path / "other", lambda ids: ids.astype(str).replace("7", "tower"))
    (found,) = evaluate_run(EvalConfig(run, str(other), device="cpu", amp="off", quiet=True))
    with ShardedDataset.open(other) as dataset:
        towers = int(dataset.classes.set_index("landmark_id").loc["tower", "test"])
    assert found.metrics["num_unknown"] == towers > 0
    assert found.metrics["num_samples"] == before["num_samples"] - towers


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
    write_view(dataset, Selection(top=3), str(tmp_path / "view"))
    with ShardedDataset.open(tmp_path / "view") as view:
        evaluated = view.manifest["content_sha256"]
    last = ["--checkpoint", "last", "--quiet", *EXACT]
    assert eval_main([str(run), "--shards", str(tmp_path / "view"), *last]) == 0
    said = json.loads((run / "eval-test.json").read_text())
    assert [said[name] for name in SOURCE] == [evaluated, trained_on, str(tmp_path / "view"), "last"]
    assert header(index) == ["metric", "test"]
    html = index.read_text()
    assert trained_on in html
    assert evaluated in html
    assert "of another dataset than it was trained on" in html
    assert eval_main([str(run), *last]) == 0
    assert header(index) == ["metric", "test"], "the best checkpoint's validation is not the last one's"


def header(report: Path) -> list[str]:
    """The head of the table of metrics."""
    (row,) = re.findall(r"<tr><th>metric</th>.*?</tr>", report.read_text())
    return re.findall(r"<th[^>]*>(.*?)</th>", row)


def test_a_split_without_a_known_landmark_is_refused_before_anything_is_written(
    run: Path, dataset_path: Path, tmp_path: Path
) -> None:
    other = relabelled(dataset_path, tmp_path / "other", lambda ids: ids.where(ids == 7, ids + 1_000_000))
    classes = pd.read_parquet(other / "classes.parquet")
    (gone,) = classes.index[classes["landmark_id"] == 7]
    index = pd.read_parquet(other / "index" / "test.parquet")
    moved = index["landmark_id"] == 7
    stranger = classes.index[classes["landmark_id"] != 7][0]
    index.loc[moved, ["label", "landmark_id"]] = [stranger, classes.loc[stranger, "landmark_id"]]
    classes.loc[stranger, "test"] += moved.sum()
    classes.loc[gone, "test"] = 0
    index.to_parquet(other / "index" / "test.parquet")
    classes.to_parquet(other / "classes.parquet")
    before = (run / "eval-test.json").read_text()
    with pytest.raises(UserError, match=r"--split test: none of its images in .*/other is of one of the 5 classes"):
        evaluate_run(EvalConfig(run, str(other), tau=True, device="cpu", amp="off", quiet=True))
    assert (run / "eval-test.json").read_text() == before
    assert not list(run.glob("tau-*"))


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
    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lmk_train.evaluation._write_table", no_space)
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


def test_landmarks_that_the_model_does_not_know_are_counted_and_kept(
    run: Path, dataset_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = relabelled(dataset_path, tmp_path / "other", lambda ids: ids.replace(138982, 777))
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
    picked = best_tau(validation.by_tau)
    said = json.loads((run / "tau-test.json").read_text())
    assert said == {"picked": picked, "picked_on": "val", "sweep": test.by_tau}
    counts = Classes.of_dataset(dataset).train_counts
    expected = -np.outer(TAUS, np.log(counts / counts.sum()))
    torch.testing.assert_close(tau_adjustments(counts), torch.from_numpy(expected).float())
    assert eval_main([str(run), "--tau", *EXACT]) == 0
    assert f"{picked:g} has the best macro F1 on val" in capsys.readouterr().out
    assert f"the ring is {picked:g}, the best macro F1 on val" in (run / "report" / "index.html").read_text()
    assert max(row["macro_f1"] or 0 for row in validation.by_tau) == next(
        row["macro_f1"] for row in validation.by_tau if row["tau"] == picked
    )
    assert eval_main([str(run), *EXACT, "--quiet"]) == 0
    assert not (run / "tau-test.json").exists(), "a sweep of another evaluation does not stay"
    assert "Post-hoc logit adjustment" not in (run / "report" / "index.html").read_text()


def test_tau_changes_answers_as_the_logits_say(run: Path, dataset: ShardedDataset) -> None:
    """Tau 1 and 2, computed anew from the logits of the test pictures."""
    _, test = evaluate_run(EvalConfig(run, tau=True, device="cpu", amp="off", quiet=True))
    state = load_checkpoint(run, BEST)
    model = model_of(TrainConfig.from_json(state["config"]), dataset.num_classes, dataset.recipe.size)
    model.load_state_dict(weights_to_evaluate(state))
    samples = list(dataset.samples("test"))
    pixels = torch.from_numpy(np.stack([simplejpeg.decode_jpeg(sample.jpeg, "RGB") for sample in samples]))
    normalization = ARCHITECTURES["efficientnet-lite0"].normalization
    with torch.inference_mode():
        logits = model.eval()(Preprocess(normalization, Augmentation(), torch.device("cpu"))(pixels, None)).numpy()
    counts, targets = np.array(state["train_counts"]), np.array([sample.label for sample in samples])
    plain = logits.argmax(axis=1)
    for tau in (1.0, 2.0):
        answers = (logits - tau * np.log(counts / counts.sum())).argmax(axis=1)
        assert (answers != plain).any()
        (row,) = [row for row in test.by_tau if row["tau"] == tau]
        assert row["accuracy"] == pytest.approx((answers == targets).mean())


def test_without_a_validation_split_no_tau_is_picked(
    run: Path, options: Callable[..., BuildOptions], capsys: pytest.CaptureFixture[str]
) -> None:
    made = options(rule=PlanRule(split=(0.8, 0.0, 0.2), samples_per_shard=8))
    build(made)
    assert eval_main([str(run), "--shards", str(made.out), "--tau", *EXACT]) == 0
    assert "no validation split to pick one on" in capsys.readouterr().out
    said = json.loads((run / "tau-test.json").read_text())
    assert (said["picked"], said["picked_on"], len(said["sweep"])) == (None, None, len(TAUS))
    assert "no validation split to pick one on" in (run / "report" / "index.html").read_text()


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
    found = sections(run / "report" / "index.html")
    assert found["Post-hoc logit adjustment"].count("<svg ") == 1
    assert "Accuracy and macro F1 after each epoch" in found["Training"]


def made_up_run(dataset: ShardedDataset, run: Path, seed: int = 0) -> "pd.DataFrame":
    """A run's folder with predictions of the test split that are right for two in three samples; its classes."""
    run.mkdir()
    (run / CONFIG).write_text(json.dumps(TrainConfig(dataset.location, run).resolved().json()))
    shares = {"data_share": 0.25, "copy_share": 0.0, "compute_share": 0.75}
    lines = [{"kind": "train", "step": step, "images_per_second": 9.0, **shares} for step in (50, 100)]
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
    nothing = predictions.rows(targets < 0)
    write_evaluation(run, Evaluation(0, "test", dict.fromkeys(SOURCE, "x"), metrics, predictions, nothing, []), classes)
    return pd.read_parquet(run / "per-class-test.parquet")


def sections(report: Path) -> dict[str, str]:
    """The parts of a page by their titles."""
    return dict(re.findall(r"<h2>(.*?)</h2>(.*?)</section>", report.read_text(), re.DOTALL))


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
    confused = found["What is taken for what"]
    assert "<svg " not in confused
    assert confused.count("taken for") == 10
    assert confused.count("<img ") >= 10
    assert found["The most confident mistakes"].count("<img ") == 12
    surprises = found["Large classes that do badly, small ones that do well"]
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
    assert found["Training"].count("<svg ") == 1
    assert (
        "Throughput of the training; of its time on average: 25.0% data, 0.0% copy, 75.0% compute" in found["Training"]
    )
    assert found["What is taken for what"].count("<svg ") == 1
    assert found["What is taken for what"].count("<img ") > 0


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
        assert name in unescape(sections(run / "report" / "index.html")["Every class"])
    assert capfd.readouterr() == ("", "")


def test_a_metric_that_is_nought_is_shown(run: Path, dataset: ShardedDataset) -> None:
    said = json.loads((run / "eval-test.json").read_text())
    (run / "eval-test.json").write_text(json.dumps({**said, "few_accuracy": 0.0}))
    html = write_run_report(run, dataset, "test").read_text()
    assert re.search(r"<td>few accuracy</td><td[^>]*>0\.0</td>", html)


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
