"""Training by several processes (gloo): the same global batches for any world, exact resume, exact evaluation."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lmk_data.build import BuildOptions, build
from lmk_data.options import PlanRule, Recipe
from lmk_train.cli import eval_main, train_main
from tests import forked
from tests.forked import Main, run_ranks, wait_until
from tests.ports import free_port
from tests.train.training import recorded_training, unlucky_rank

pytestmark = pytest.mark.slow


# Without pretrained weights: what is compared are batches, gradients and exit codes.
OPTIONS = ["--model", "resnet32", "--weights", "none", "--epochs", "2", "--batch-size", "10"]
OPTIONS += ["--device", "cpu", "--amp", "off", "--quiet"]
INTERRUPTED = 130


def train(dataset: Path, run: Path, log: Path, *words: str, world: int = 1, stop_after: int = 0) -> set[int]:
    """Run the recorded training on so many ranks; returns their exit codes."""
    given = ["--shards", str(dataset), "--out", str(run), *OPTIONS, *words]
    return run_world(recorded_training.main, [str(log), str(stop_after), *given], log.parent, world)


def run_world(main: Main, words: list[str], folder: Path, world: int) -> set[int]:
    if world > 1:
        return set(run_ranks(main, words, folder, world))
    return {forked.run(main, words, folder / "said.txt")[0]}


def steps(log: Path) -> dict[int, dict[str, list[Any]]]:
    """What each step's global batch was, in order of rank and micro-batch."""
    lines = [json.loads(line) for path in log.parent.glob(f"{log.name}.*") for line in path.read_text().splitlines()]
    found: dict[int, dict[str, list[Any]]] = {}
    for line in sorted(lines, key=lambda line: line["place"]):
        step = found.setdefault(line["place"][0], {"picks": [], "labels": [], "pictures": []})
        for name in step:
            step[name] += line[name]
    return found


def weights(run: Path) -> dict[str, torch.Tensor]:
    model: dict[str, torch.Tensor] = torch.load(run / "checkpoints" / "last.pt", weights_only=True)["model"]
    return model


@pytest.mark.parametrize("sampling", ["uniform", "class-balanced"])
def test_another_world_goes_on_with_the_same_batches(dataset_path: Path, tmp_path: Path, sampling: str) -> None:
    """1 process with 2 threads, stopped on the way, goes on as 2 processes with 1 thread and 2 micro-batches each."""
    more = ["--sampling", sampling]
    assert train(dataset_path, tmp_path / "whole", tmp_path / "a", *more, "--workers", "2") == {0}
    whole = steps(tmp_path / "a")
    parts = ["--workers", "2", *more]
    assert train(dataset_path, tmp_path / "parts", tmp_path / "b", *parts, stop_after=3) == {INTERRUPTED}
    parts = ["--workers", "1", "--grad-accum", "2", "--resume", *more]
    assert train(dataset_path, tmp_path / "parts", tmp_path / "b", *parts, world=2) == {0}
    assert (tmp_path / "b.1").exists()
    assert len(whole) > 6
    assert steps(tmp_path / "b") == whole
    assert all(len(step["picks"]) == 10 for step in whole.values())


def test_three_processes_stop_and_go_on_as_one_with_the_same_batches(dataset_path: Path, tmp_path: Path) -> None:
    """Promise (a): 10 samples are no whole number each, and one of 3 processes has 4 of them."""
    assert train(dataset_path, tmp_path / "whole", tmp_path / "a", "--workers", "2") == {0}
    whole = steps(tmp_path / "a")
    parts = ["--workers", "1", "--grad-accum", "2"]
    assert train(dataset_path, tmp_path / "parts", tmp_path / "b", *parts, world=3, stop_after=3) == {INTERRUPTED}
    assert (tmp_path / "b.2").exists()
    assert train(dataset_path, tmp_path / "parts", tmp_path / "b", "--resume") == {0}
    assert steps(tmp_path / "b") == whole


@pytest.mark.parametrize(
    "loss",
    [
        ["--loss", "ldam", "--drw-start", "0.3", "--mixup", "0.4", "--cutmix", "1", "--batch-size", "12"],
        ["--loss", "ce", "--ema", "0.9"],
    ],
)
def test_any_world_computes_the_same_where_batch_normalisation_does_not_look_at_the_batch(
    dataset_path: Path, tmp_path: Path, loss: list[str]
) -> None:
    """Promise (c): with a frozen backbone, no dropout and SGD, 1, 2 and 3 processes agree within 1e-5."""
    fixed = ["--freeze-backbone-epochs", "2", "--drop-rate", "0", "--optimizer", "sgd", "--head-lr", "0.1", *loss]
    worlds = ((1, "1"), (1, "3"), (2, "1"), (3, "2"))
    runs = []
    for world, accumulated in worlds:
        run = tmp_path / f"{world}-{accumulated}"
        more = [*fixed, "--grad-accum", accumulated]
        assert train(dataset_path, run, tmp_path / f"log-{run.name}", *more, world=world) == {0}
        epochs = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        losses = [line["train_loss"] for line in epochs if line["kind"] == "epoch"]
        runs.append((losses, weights(run)["head.weight"]))
    for losses, head in runs[1:]:
        assert losses == pytest.approx(runs[0][0], rel=1e-5)
        torch.testing.assert_close(head, runs[0][1], atol=1e-5, rtol=1e-5)


def test_a_rank_that_dies_ends_the_others_with_a_message(dataset_path: Path, tmp_path: Path) -> None:
    words = ["--shards", str(dataset_path), "--out", str(tmp_path / "run"), "--model", "resnet32", "--device", "cpu"]
    words += ["--batch-size", "10", "--epochs", "500"]
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    first, second = (
        forked.start(train_main, words, tmp_path / f"said-{rank}.txt", RANK=str(rank), LOCAL_RANK=str(rank), **place)
        for rank in range(2)
    )
    wait_until((tmp_path / "run" / "checkpoints" / "last.pt").exists, first)
    os.kill(second.pid, signal.SIGKILL)
    code, said = first.finish()
    assert second.finish()[0] == -signal.SIGKILL
    assert code == 1, said
    assert "another process of the training" in said
    assert "Traceback" not in said


def test_an_error_in_one_rank_is_a_line_though_the_group_cannot_be_destroyed(
    dataset_path: Path, tmp_path: Path
) -> None:
    """As on NCCL, whose destruction waits for the other ranks."""
    words = ["--shards", str(dataset_path), "--out", str(tmp_path / "run"), *OPTIONS]
    assert run_ranks(unlucky_rank.fails, words, tmp_path, 2) == [1, 1]
    assert (tmp_path / "said-1.txt").read_text() == "lmk-train: error: out of luck\n"
    said = (tmp_path / "said-0.txt").read_text()
    assert said.startswith("lmk-train: error: another process of the training ended")
    assert said.count("\n") == 1


def test_a_bug_in_one_rank_keeps_its_traceback(dataset_path: Path, tmp_path: Path) -> None:
    words = ["--shards", str(dataset_path), "--out", str(tmp_path / "run"), *OPTIONS]
    assert run_ranks(unlucky_rank.has_a_bug, words, tmp_path, 2) == [1, 1]
    assert (tmp_path / "said-1.txt").read_text().endswith("ZeroDivisionError: a bug\n")


def test_a_rank_that_waits_for_its_device_says_that_another_was_killed(dataset_path: Path, tmp_path: Path) -> None:
    """As on NCCL, where a rank waits in a call that does not return: for each of three, whichever is killed."""
    words = ["--shards", str(dataset_path), "--out", str(tmp_path / "run"), *OPTIONS]
    assert run_ranks(unlucky_rank.is_killed, words, tmp_path, 3) == [1, 1, -signal.SIGKILL]
    for rank in (0, 1):
        said = (tmp_path / f"said-{rank}.txt").read_text()
        assert said.startswith("lmk: error: another process of the training ended")
        assert said.count("\n") == 1


def test_under_torchrun_two_ranks_stop_and_resume(dataset_path: Path, tmp_path: Path) -> None:
    """As users start it: torchrun, its variables, and its exit code, which is 1 for any other than 0."""
    words = ["--shards", str(dataset_path), "--out", str(tmp_path / "run"), *OPTIONS]
    module, log = ["-m", "tests.train.training.recorded_training"], str(tmp_path / "a")
    for stop_after, more, code in ((3, [], 1), (0, ["--resume"], 0)):
        launch = ["-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}"]
        command = [sys.executable, *launch, *module, log, str(stop_after), *words, *more]
        done = subprocess.run(command, capture_output=True, text=True, timeout=500)
        assert done.returncode == code, done.stderr[-3000:]
    assert (tmp_path / "a.1").exists()
    assert sorted(steps(tmp_path / "a")) == list(range(8))


@pytest.mark.parametrize(
    ("world", "more"),
    [(2, ["--ema", "0.9", "--freeze-backbone-epochs", "1"]), (3, [])],
    ids=["averaged weights, and a backbone that thaws after the stop", "the order of a sum of three matters"],
)
def test_one_rank_asked_to_stop_stops_all_and_they_resume_to_the_same_bits(
    dataset_path: Path, tmp_path: Path, world: int, more: list[str]
) -> None:
    assert train(dataset_path, tmp_path / "whole", tmp_path / "a", *more, world=world) == {0}
    assert train(dataset_path, tmp_path / "parts", tmp_path / "b", *more, world=world, stop_after=3) == {INTERRUPTED}
    saved = torch.load(tmp_path / "parts" / "checkpoints" / "last.pt", weights_only=True)
    assert saved["progress"]["step"] == 3
    assert len(saved["buffers"]) == world
    assert train(dataset_path, tmp_path / "parts", tmp_path / "b", "--resume", *more, world=world) == {0}
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_evaluation_counts_every_sample_once_whatever_the_world(dataset_path: Path, tmp_path: Path) -> None:
    assert train(dataset_path, tmp_path / "run", tmp_path / "a", world=3) == {0}
    exact = ["--amp", "off", "--device", "cpu", "--quiet"]
    by_three = (tmp_path / "run" / "eval-test.json").read_text()
    post_hoc = ["--tau", "--class-means"]
    assert run_world(eval_main, [str(tmp_path / "run"), "--batch-size", "3", *post_hoc, *exact], tmp_path, 1) == {0}
    sweep = json.loads((tmp_path / "run" / "tau-val.json").read_text())
    alone, together = json.loads((tmp_path / "run" / "eval-test.json").read_text()), json.loads(by_three)
    # GAP orders samples by probabilities, which a hardly trained network gives to within their rounding.
    assert alone | {"gap": 0} == pytest.approx(together | {"gap": 0})
    assert run_world(eval_main, [str(tmp_path / "run"), "--split", "train", *post_hoc, *exact], tmp_path, 2) == {0}
    assert json.loads((tmp_path / "run" / "tau-val.json").read_text()) == sweep, "class means of all ranks"
    counted = json.loads((tmp_path / "run" / "eval-train.json").read_text())["num_samples"]
    assert counted == json.loads((dataset_path / "dataset.json").read_text())["splits"]["train"]["num_samples"]


def test_a_temperature_is_the_same_in_any_world(dataset_path: Path, collection: Path, tmp_path: Path) -> None:
    judged = tmp_path / "judged"
    images, labels = [str(collection / "train")], str(collection / "train.csv")
    rule, recipe = PlanRule(split=(0.0, 1.0, 0.0)), Recipe(size=32)
    build(BuildOptions(images=images, labels=labels, out=judged, rule=rule, recipe=recipe, workers=1, quiet=True))
    assert train(dataset_path, tmp_path / "run", tmp_path / "a") == {0}
    words = [str(tmp_path / "run"), "--shards", str(judged), "--split", "val", "--calibrate", "--quiet"]
    found = []
    for world in (1, 2):
        assert run_world(eval_main, [*words, "--amp", "off", "--device", "cpu"], tmp_path, world) == {0}
        found.append(json.loads((tmp_path / "run" / "calibration.json").read_text()))
        written = json.loads((tmp_path / "run" / "eval-val.json").read_text())
        assert written["temperature"] == found[-1]["temperature"]
    for name, value in found[0].items():
        assert found[1][name] == (pytest.approx(value, rel=1e-3) if isinstance(value, float) else value)
