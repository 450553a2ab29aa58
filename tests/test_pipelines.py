"""The recipes: their own arithmetic, and each of them whole, on drawn pictures."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import tyro
from numpy.typing import NDArray
from PIL import Image

import lmk_data.cli
from lmk_data.cli import main
from lmk_data.errors import UserError
from lmk_train.config.commands import EvalConfig
from lmk_train.config.training import TrainConfig
from lmk_train.evaluation.evaluate import evaluate_run
from lmk_train.evaluation.sweep import ADJUSTMENT, PostHoc
from lmk_train.training.loop import train
from pipelines import cifar10_lt, landmarks_lt
from pipelines.bench import post_hoc
from pipelines.cifar10_lt import METHODS, Benchmark, draw_tail
from pipelines.compare import Row, bootstrap, comparison
from pipelines.scores import METRICS, Scores, difference
from pipelines.steps import evaluate
from pipelines.table1_top12 import TABLE as TABLE1
from pipelines.table2_top20 import TABLE as TABLE2
from pipelines.table3_full import TABLE as TABLE3
from tests.drawing import draw

ROOT = Path(__file__).resolve().parents[1]


def row(name: str, targets: NDArray[np.int64], right: float, seed: int) -> Row:
    """A run that is right with a probability, independently for each picture."""
    random = np.random.default_rng(seed)
    labels = np.where(random.random(len(targets)) < right, targets, (targets + 1) % 10)
    keys = [f"{i:05d}" for i in range(len(targets))]
    return Row(name, {}, None, 0, 0, 0.0, pd.DataFrame({"target": targets, "label_1": labels}, index=keys))


def test_the_interval_holds_the_true_difference_and_leaves_out_nought() -> None:
    targets = np.random.default_rng(0).integers(0, 10, 4000)
    found = bootstrap(row("a", targets, 0.80, 1), row("b", targets, 0.85, 2), 300)
    for middle, low, high in found.values():
        assert 0 < low < middle < high
        assert low < 0.05 < high
        # Independent answers: the variance is that of two binomials.
        assert high - low == pytest.approx(2 * 1.96 * np.sqrt((0.8 * 0.2 + 0.85 * 0.15) / 4000), rel=0.25)
    same = bootstrap(row("a", targets, 0.8, 1), row("a", targets, 0.8, 1), 50)
    assert set(same.values()) == {(0.0, 0.0, 0.0)}


def test_runs_on_other_pictures_are_not_compared() -> None:
    targets = np.random.default_rng(0).integers(0, 10, 100)
    with pytest.raises(UserError, match="other pictures"):
        bootstrap(row("a", targets, 0.8, 1), row("b", targets[::-1].copy(), 0.8, 1), 10)


@pytest.mark.slow
def test_the_table_of_runs(dataset_path: Path, tmp_path: Path) -> None:
    """Folders of one name are told apart, training accuracy is there where it is known, one run has no differences."""
    run, other = tmp_path / "a" / "run", tmp_path / "b" / "run"
    chosen = {"model": "resnet32", "epochs": 1, "batch_size": 10, "device": "cpu", "amp": "off", "quiet": True}
    train(TrainConfig(str(dataset_path), run, **chosen))  # type: ignore[arg-type]
    alone = comparison([run], "test", 10, 0.0).splitlines()
    assert len(alone) == 3
    assert alone[2].startswith("| run | ")
    assert "training accuracy" not in alone[0]
    shutil.copytree(run, other)
    evaluate_run(EvalConfig(run, split="train", device="cpu", amp="off", quiet=True))
    table = [line.split(" | ") for line in comparison([run, other], "test", 10, 0.0).splitlines()]
    column = table[0].index("training accuracy")
    accuracy = json.loads((run / "eval-train.json").read_text())["accuracy"]
    assert [(row[0], row[column]) for row in table[2:4]] == [(f"| {run}", f"{accuracy:.4f}"), (f"| {other}", "")]
    assert table[-1] == [f"| {other}", "+0.0000 (+0.0000 to +0.0000)", "+0.0000 (+0.0000 to +0.0000) |"]
    with pytest.raises(UserError, match="--resamples 0: must be at least 1"):
        comparison([run, other], "test", 0)


def recipe(module: str, *arguments: object, code: int = 0) -> str:
    """Run a recipe to its end; what it said, on stdout or, if it is to fail, on stderr."""
    done = subprocess.run(_command(module, *arguments), cwd=ROOT, capture_output=True, text=True, timeout=550)
    assert done.returncode == code, (done.stdout + done.stderr)[-3000:]
    return done.stderr if code else done.stdout


def _command(module: str, *arguments: object) -> list[str]:
    return [sys.executable, "-m", f"pipelines.{module}", *map(str, arguments)]


TABLES = {"table1_top12": TABLE1, "table2_top20": TABLE2, "table3_full": TABLE3}


@pytest.mark.parametrize("module", TABLES)
def test_every_row_of_every_table_is_a_command_line(module: str) -> None:
    table = TABLES[module]
    tyro.cli(lmk_data.cli.Subset, args=["shards", "--out", "view", *map(str, table.subset)])
    for row in table.rows:
        words = ["--shards", "shards", *map(str, row.arguments)]
        config = tyro.cli(TrainConfig, args=words, config=(tyro.conf.FlagCreatePairsOff,)).resolved()
        assert config.model == words[words.index("--model") + 1]


@pytest.mark.slow
def test_a_table_is_made_and_not_made_twice(tmp_path: Path) -> None:
    table = TABLE1
    said = recipe("table1_top12", "--smoke", "--out", tmp_path)
    assert said.count("$ lmk-train") == len(table.rows)
    made = (tmp_path / f"{table.name}.md").read_text()
    assert made in said
    for row in table.rows:
        (line,) = [line for line in made.splitlines() if line.startswith(f"| {row.name} |")]
        assert f"{100 * row.reported[1]:.2f} %" in line  # type: ignore[operator]
    assert "nothing" in made.splitlines()[0], "it says that drawn pictures prove nothing"
    again = recipe("table1_top12", "--smoke", "--out", tmp_path)
    assert "$ lmk-train" not in again
    assert "$ lmk-eval" not in again


def class_folders(folder: Path, sizes: dict[str, int], suffix: str = "png") -> Path:
    for number, (name, size) in enumerate(sizes.items()):
        for i in range(size):
            draw(folder / name / f"{i:04d}.{suffix}", number, i, (32, 32))
    return folder


def test_figures_of_other_weights_or_pictures_do_not_enter_a_table(tmp_path: Path) -> None:
    said = {"accuracy": 0.5, "trained_on": "a" * 64, "dataset": "a" * 64, "checkpoint": "best"}
    path = tmp_path / "eval-test.json"
    path.write_text(json.dumps(said))
    assert evaluate(tmp_path, "test") == said
    for other in ({"dataset": "b" * 64}, {"checkpoint": "last"}):
        path.write_text(json.dumps({**said, **other}))
        with pytest.raises(
            UserError, match=r"eval-test\.json: of the (best|last) weights on dataset .*, asked for the best on"
        ):
            evaluate(tmp_path, "test")


def test_the_tail_falls_exponentially(tmp_path: Path) -> None:
    folder = class_folders(tmp_path, dict.fromkeys("abcdef", 32))
    tail = draw_tail(folder, 32)
    assert tail["class"].value_counts().sort_index().tolist() == [32, *(int(32 * 32 ** (-i / 5)) for i in range(1, 6))]
    assert draw_tail(folder, 32).equals(tail)
    assert all((folder / path).exists() for path in tail["path"])
    archive = shutil.make_archive(str(tmp_path / "zipped"), "zip", folder, ".")
    assert draw_tail(Path(archive), 32).equals(tail), "a zip of the same folders"
    with pytest.raises(UserError, match="needs two or more folders"):
        draw_tail(folder / "a", 10)


def test_the_tail_of_landmarks_falls_exponentially_to_two() -> None:
    sizes = pd.Series({f"c{i:02d}": 300 - i for i in range(38)} | {"d": 4, "e": 1})
    kept = landmarks_lt.draw_tail(sizes)
    ranked = [*(f"c{i:02d}" for i in range(38)), "d", "e"]
    assert [kept[name] for name in ranked] == [
        *(max(2, int(100 * 50 ** (-rank / 39))) for rank in range(38)),
        2,
        1,
    ], "no class keeps more than it has"


def test_the_difference_of_methods_weighs_classes_alike() -> None:
    targets = np.repeat([0, 1], [90, 10])
    right = np.zeros((2, 3, 100), dtype=bool)
    right[0, :, :90] = True
    right[1, :, :90] = True
    right[1, :, 90:95] = True
    first, other = (Scores(pd.DataFrame(), correct, targets) for correct in right)
    middle, low, high = difference(first, other)
    assert middle == pytest.approx(25.0)  # half of one class of two
    assert 0 < low < 25 < high < 50
    assert difference(first, first) == (0.0, 0.0, 0.0)


def test_accuracy_under_the_training_prior_weighs_classes_by_their_training_pictures() -> None:
    targets = np.repeat([0, 1], [4, 12])
    labels = np.where(np.arange(16) < 2, 1, targets)  # half of class 0 is wrong, all of class 1 right
    scores = landmarks_lt._scores([landmarks_lt.Judged({}, targets, labels)], np.array([90, 10]))
    assert scores.metrics["prior_accuracy"].tolist() == pytest.approx([0.9 * 0.5 + 0.1])


def test_a_tau_is_judged_on_the_half_that_did_not_pick_it() -> None:
    """A tau that is right about one half only is picked there, and wrong on the other; the plain head is half right."""
    targets, head = np.tile([0, 0, 1, 1], 20), torch.nn.Linear(2, 2)
    methods, first = PostHoc.of(head, np.array([30, 10]), None), np.arange(80) % 2 == 0
    answers = np.repeat((1 - targets)[:, None], len(methods.columns), axis=1)
    answers[first, 2], answers[~first, 4] = targets[first], targets[~first]
    answers[:40, 0] = targets[:40]
    found = post_hoc._both_halves(methods.columns, answers, targets, np.array([30, 10]))
    assert found["none"]["accuracy"] == 50
    assert found[ADJUSTMENT]["accuracy"] == 0


@pytest.mark.parametrize(
    ("heading", "training", "seeds"),
    [
        ("**Heads on features of the frozen network**", "heads, 10 seeds", 10),
        ("**Whole networks**", "fine-tuned, 3 seeds", 3),
    ],
)
def test_a_table_of_landmarks_in_the_docs_is_that_of_its_results(heading: str, training: str, seeds: int) -> None:
    results = pd.read_csv(ROOT / "docs" / "results" / "landmarks_lt.csv")
    results = results[results["training"] == training]
    page = (ROOT / "docs" / "recipes.md").read_text().partition(heading)[2].partition("\n**")[0].partition("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| ")][1:]
    shown = {cells[0]: cells[1 : len(METRICS) + 2] for cells in rows}
    assert list(shown) == list(results["method"].unique())
    for name, runs in results.groupby("method"):
        means = [f"{100 * runs[column].mean():.1f}" for column in METRICS]
        recalls = 100 * runs["macro_recall"]
        assert len(runs) == seeds
        assert shown[str(name)] == [*means, f"{recalls.min():.1f} to {recalls.max():.1f}"], name


def test_the_table_of_cifar_in_the_docs_is_that_of_its_results() -> None:
    results = pd.read_csv(ROOT / "docs" / "results" / "cifar10_lt.csv")
    page = (ROOT / "docs" / "recipes.md").read_text().partition("## CIFAR-10-LT")[2].partition("\n## ")[0]
    tables = [cifar10_lt.table(runs, epochs) for epochs, runs in results.groupby("epochs")]
    rows = [line for table in tables for line in table.splitlines() if line.startswith("|")]
    assert [line for line in page.splitlines() if line.startswith("|")] == rows


def test_the_table_of_answers_in_the_docs_is_that_of_its_results() -> None:
    results = pd.read_csv(ROOT / "docs" / "results" / "answers.csv")
    page = (ROOT / "docs" / "recipes.md").read_text()
    mean = results[results["run"] == "mean"].drop(columns="run").set_index("answers")
    for name, *values in mean.itertuples():
        assert f"| {name} | {' | '.join(f'{100 * value:.1f}' for value in values)} |" in page
    runs = results[results["run"] != "mean"].drop(columns="run").groupby("answers").mean()
    pd.testing.assert_frame_equal(runs, mean.sort_index(), rtol=1e-4)


def test_the_table_of_post_hoc_methods_in_the_docs_is_that_of_its_results() -> None:
    results = pd.read_csv(ROOT / "docs" / "results" / "landmarks_lt_post_hoc.csv").groupby(["loss", "post_hoc"])
    page = (ROOT / "docs" / "recipes.md").read_text().partition("**Post-hoc methods**")[2].partition("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 10
    for loss, method, *shown in rows:
        runs = results.get_group((loss, method))
        assert len(runs) == 10
        assert shown == [f"{runs[name].mean():.1f}" for name in post_hoc._SHOWN], (loss, method)


def test_the_post_hoc_figures_of_cifar_in_the_docs_are_those_of_their_results() -> None:
    results = pd.read_csv(ROOT / "docs" / "results" / "cifar10_lt_post_hoc.csv")
    means = results.groupby(["loss", "post_hoc"])["accuracy"].mean()
    page = " ".join((ROOT / "docs" / "recipes.md").read_text().partition("**Post-hoc methods on the same")[2].split())
    words = {"none": "as it is", "logit adjustment": "with logit adjustment", "nearest class mean": "by the nearest"}
    for loss, sentence in (("CE", "- cross entropy: "), ("LDAM", "- LDAM: ")):
        shown = page.partition(sentence)[2].partition(";" if loss == "CE" else ". ")[0]
        assert all(f"{means[loss, method]:.1f} {said}" in shown for method, said in words.items())
    assert f"{means['CE', 'tau-normalised head']:.1f} with a tau-normalised head" in page


@pytest.mark.slow
def test_the_benchmark_of_landmarks_makes_its_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, (name, size) in enumerate({"a": 60, "b": 30, "c": 15}.items()):
        for i in range(size):
            coarse = np.random.default_rng([number, i]).integers(0, 255, (8, 8, 3), dtype=np.uint8)
            coarse[..., number] = 255
            path = tmp_path / "images" / name / f"{i:04d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(coarse).resize((64, 64)).save(path)  # pictures that are no duplicates of each other
    images = tmp_path / "images"
    chosen = {name: landmarks_lt.METHODS[name] for name in ("cross entropy", "ArcFace, 3 centres")}
    whole = {name: landmarks_lt.FINE_TUNED[name] for name in ("cross entropy", "cross entropy, retrained head")}
    monkeypatch.setattr(landmarks_lt, "METHODS", chosen)
    monkeypatch.setattr(landmarks_lt, "FINE_TUNED", whole)
    monkeypatch.setattr(landmarks_lt, "_FINE_TUNING_SEEDS", 1)
    monkeypatch.setattr(landmarks_lt, "_FINE_TUNING", ("--model", "resnet32", "--epochs", 1, "--batch-size", 16))
    monkeypatch.setattr(landmarks_lt, "_BUILD", ("--no-report", "--size", 64))
    monkeypatch.setitem(landmarks_lt._HEAD, "epochs", 2)
    monkeypatch.setitem(landmarks_lt._HEAD, "freeze_backbone_epochs", 2)
    monkeypatch.setitem(landmarks_lt._HEAD, "batch_size", 8)
    text = landmarks_lt.benchmark(images, tmp_path / "out", 2, True)
    assert (tmp_path / "out" / "table.md").read_text() == text
    assert text.count("| cross entropy |") == 2
    assert text.count("| ArcFace, 3 centres |") == text.count("| cross entropy, retrained head |") == 1
    table = pd.read_csv(tmp_path / "out" / "table.csv")
    assert table.groupby("training")["seed"].count().tolist() == [2, 4]
    assert table["macro_recall"].between(0, 1).all()
    assert table["prior_accuracy"].between(0, 1).all()
    checkpoints = sorted((tmp_path / "out" / "heads").glob("*/checkpoints/best.pt"))
    made = [path.stat().st_mtime_ns for path in checkpoints]
    assert landmarks_lt.benchmark(images, tmp_path / "out", 2, True) == text
    assert [path.stat().st_mtime_ns for path in checkpoints] == made, "finished trainings are not repeated"


def test_what_cannot_make_a_table_is_said_at_once(tmp_path: Path) -> None:
    train, test, out = (tmp_path / name for name in ("train", "test", "out"))
    class_folders(train, dict.fromkeys("ab", 2))
    class_folders(test, dict.fromkeys("abc", 1))
    with pytest.raises(UserError, match=re.escape(f"{test}: 1 of its class folders are not in {train}, such as c")):
        Benchmark(train, test, out, [10], 1, 1)
    with pytest.raises(UserError, match=f"{out}: needs two or more folders"):
        Benchmark(train, out, out, [10], 1, 1)
    right = {"imbalances": (1,), "epochs": 1, "seeds": 1, "jobs": 1}
    for flag, wrong in {
        "imbalance": {"imbalances": (0,)},
        **{name: {name: 0} for name in ("epochs", "seeds", "jobs")},
    }.items():
        with pytest.raises(UserError, match=f"--{flag} 0: must be at least 1"):
            Benchmark(train, train, out, **{**right, **wrong})  # type: ignore[arg-type]
    assert not out.exists()


def test_every_method_of_the_benchmark_is_a_command_line(tmp_path: Path) -> None:
    folder = class_folders(tmp_path, dict.fromkeys("ab", 1))
    asked = Benchmark(folder, folder, tmp_path / "out", [100], 200, 1)
    for name, method in METHODS.items():
        words = ["--shards", "shards", *map(str, asked.arguments(name, 100, 0))]
        config = tyro.cli(TrainConfig, args=words, config=(tyro.conf.FlagCreatePairsOff,)).resolved()
        assert config.freeze_backbone_epochs == (0 if method.backbone is None else config.epochs)
        assert config.epochs == (200 if method.backbone is None else 10)
    assert asked.run("balanced softmax, cosine head", 100, 2).name == "balanced-softmax-cosine-head-100-2"
    recipe = "--model resnet32 --epochs 200 --warmup-epochs 5.0 --crop-padding 4 --color-jitter 0"
    assert " ".join(map(str, asked.arguments("LDAM-DRW", 100, 1))) == f"{recipe} --loss ldam --drw-start 0.8 --seed 1"


@pytest.mark.slow
def test_the_long_tail_benchmark_makes_its_table(tmp_path: Path) -> None:
    train = class_folders(tmp_path / "train", dict.fromkeys("abcde", 80), "jpg")
    test = class_folders(tmp_path / "test", dict.fromkeys("abcde", 8))
    options = ("--out", tmp_path / "out", "--imbalance", 10, "--epochs", 1, "--seeds", 1)
    methods = ("LDAM-DRW", "LDAM-DRW, reference SGD", "CE, retrained head")
    said = recipe("cifar10_lt", train, test, *options, "--methods", *methods, "--jobs", 2)
    table = (tmp_path / "out" / "table.md").read_text()
    assert table in said
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| 10")]
    assert [row[1] for row in rows] == ["CE", *methods]
    assert [row[5:] for row in rows] == [["86.39"], ["88.16"], ["88.16"], []]
    assert "1 epochs" in table
    figures = pd.read_csv(tmp_path / "out" / "table.csv")
    assert [f"{100 * one:.2f}" for one in figures["accuracy"]] == [row[2] for row in rows]
    assert (tmp_path / "out" / "ce-10-0.log").read_text()
    kept, retrained = (
        torch.load(tmp_path / "out" / f"{name}-10-0" / "checkpoints" / "best.pt", weights_only=True)["model"]
        for name in ("ce", "ce-retrained-head")
    )
    assert all(torch.equal(one, retrained[name]) == name.startswith("backbone.") for name, one in kept.items())
    out, other = tmp_path / "out", class_folders(tmp_path / "other", dict.fromkeys("abcde", 4))
    said = recipe("cifar10_lt", train, test, *options, "--methods", "CE", "--epochs", 2, code=1)
    assert f"cifar10_lt: error: {out}/ce-10-0: trained with `--model resnet32 --epochs 1 " in said
    assert "asked for `--model resnet32 --epochs 2 " in said
    assert "holds another build" in recipe("cifar10_lt", train, other, *options, code=1)
    assert (out / "table.md").read_text() == table, "no false table"


def test_a_table_has_every_finished_run_of_these_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever command trained it, seed by seed; runs of other epochs are not in it."""
    folder = class_folders(tmp_path / "images", dict.fromkeys("ab", 1))
    asked = Benchmark(folder, folder, tmp_path / "out", [10], 40, 1, methods=["CE"])
    for imbalance in (10, 100):
        asked.dataset(imbalance).mkdir(parents=True)
        (asked.dataset(imbalance) / "dataset.json").write_text(json.dumps({"content_sha256": f"{imbalance:064d}"}))
    for method, imbalance, seed, epochs in (
        ("LDAM", 100, 0, 40),
        ("LDAM", 100, 1, 40),
        ("ArcFace", 100, 2, 40),
        ("CE", 10, 0, 30),
    ):
        out, data = asked.run(method, imbalance, seed), f"{imbalance:064d}"
        out.mkdir()
        words = replace(asked, epochs=epochs).arguments(method, imbalance, seed)
        (out / "trained").write_text(f"{' '.join(map(str, words))} on {data[:12]}")
    monkeypatch.setattr(
        cifar10_lt, "evaluate", lambda out, *_: {"accuracy": 0.5 + int(out.name[-1]) / 10, "macro_f1": 0.5}
    )
    found = cifar10_lt.finished(asked)
    assert found[["method", "seed"]].to_numpy().tolist() == [["LDAM", 0], ["LDAM", 1], ["ArcFace", 2]]
    assert "| 100 | LDAM | 55.00 | 50.00 to 60.00 | 2 | 73.35 |" in cifar10_lt.table(found, 40)


_STEP = """
import sys
from pathlib import Path
from lmk_data.system.terminal import run_command
from pipelines.steps import train
sys.exit(run_command("recipe", lambda: train(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])))
"""


@pytest.mark.slow
def test_a_recipe_that_is_stopped_saves_its_training_and_goes_on(tmp_path: Path) -> None:
    images, shards, run = (
        class_folders(tmp_path / "images", {"a": 100, "b": 100}),
        tmp_path / "shards",
        tmp_path / "run",
    )
    source = ["--images", str(images), "--labels", "classes", "--out", str(shards), "--size", "32", "--quiet"]
    assert main(["build", *source, "--split", "1", "0", "0"]) == 0
    options = ["--model", "resnet32", "--batch-size", "1", "--epochs", "1", "--device", "cpu"]
    command = [sys.executable, "-c", _STEP, str(shards), str(run), *options]
    metrics, last = run / "metrics.jsonl", run / "checkpoints" / "last.pt"
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        while not metrics.exists() or not metrics.read_text():
            assert process.poll() is None
            time.sleep(0.05)
        assert not last.exists(), "it is in the middle of its only epoch"
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate()
    assert process.returncode == 130, said
    assert "lmk-train: interrupted; give the same command with --resume to resume at step " in said
    assert said.splitlines()[-1] == "recipe: interrupted; run it again to resume"
    assert last.exists()
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=550)
    assert again.returncode == 0, again.stderr
    assert "--resume" in again.stdout
    assert (run / "trained").exists()


@pytest.mark.slow
def test_the_demo_that_is_stopped_says_so_in_a_line(tmp_path: Path) -> None:
    environment, pipe = {**os.environ, "PYTHONPATH": str(ROOT)}, subprocess.PIPE
    with subprocess.Popen(_command("demo"), cwd=tmp_path, env=environment, stderr=pipe, text=True) as process:
        assert process.stderr is not None
        assert any("drawing" in line for line in process.stderr)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate()
    assert process.returncode == 130
    assert said.splitlines()[-1] == "demo: interrupted; run it again to resume"
    assert "Traceback" not in said
