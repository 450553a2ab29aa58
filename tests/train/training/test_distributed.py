"""Training by several processes (gloo): the same global batches for any world, exact resume, exact evaluation."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.ports import free_port

pytestmark = pytest.mark.slow


def train(dataset: Path, run: Path, log: Path, *words: str, world: int = 1, stop_after: int = 0) -> int:
    """Run the recorded training with so many processes; returns its exit code."""
    given = ["--shards", str(dataset), "--out", str(run), "--model", "efficientnet-lite0", "--weights", "none"]
    given += ["--epochs", "2", "--batch-size", "10", "--device", "cpu", "--amp", "off", "--quiet", *words]
    return run_module("tests.train.training.recorded_training", str(log), str(stop_after), *given, world=world)


def run_module(module: str, *words: str, world: int) -> int:
    launch = ["-m", "torch.distributed.run", f"--nproc-per-node={world}", f"--master-port={free_port()}"]
    launcher = launch if world > 1 else []
    done = subprocess.run(
        [sys.executable, *launcher, "-m", module, *words], capture_output=True, text=True, timeout=500
    )
    if done.returncode not in (0, 1, 130):
        raise AssertionError(done.stderr[-3000:])
    return done.returncode


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
    assert train(dataset_path, tmp_path / "whole", tmp_path / "a", *more, "--workers", "2") == 0
    whole = steps(tmp_path / "a")
    parts = ["--workers", "2", *more]
    assert train(dataset_path, tmp_path / "parts", tmp_path / "b", *parts, stop_after=3) == 130
    parts = ["--workers", "1", "--grad-accum", "2", "--resume", *more]
    assert train(dataset_path, tmp_path / "parts", tmp_path / "b", *parts, world=2) == 0
    assert (tmp_path / "b.1").exists()
    assert len(whole) > 6
    assert steps(tmp_path / "b") == whole
    assert all(len(step["picks"]) == 10 for step in whole.values())


def test_three_processes_stop_and_go_on_as_one_with_the_same_batches(dataset_path: Path, tmp_path: Path) -> None:
    """Promise (a): 10 samples are no whole number each, and one of 3 processes has 4 of them."""
    assert train(dataset_path, tmp_path / "whole", tmp_path / "a", "--workers", "2") == 0
    whole = steps(tmp_path / "a")
    parts = ["--workers", "1", "--grad-accum", "2"]
    assert train(dataset_path, tmp_path / "parts", tmp_path / "b", *parts, world=3, stop_after=3) != 0
    assert (tmp_path / "b.2").exists()
    assert train(dataset_path, tmp_path / "parts", tmp_path / "b", "--resume") == 0
    assert steps(tmp_path / "b") == whole


@pytest.mark.parametrize("loss", [["--loss", "ldam", "--drw-start", "0.3"], ["--loss", "ce", "--ema", "0.9"]])
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
        assert train(dataset_path, run, tmp_path / f"log-{run.name}", *more, world=world) == 0
        epochs = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        losses = [line["train_loss"] for line in epochs if line["kind"] == "epoch"]
        runs.append((losses, weights(run)["head.weight"]))
    for losses, head in runs[1:]:
        assert losses == pytest.approx(runs[0][0], rel=1e-5)
        torch.testing.assert_close(head, runs[0][1], atol=1e-5, rtol=1e-5)


def test_a_process_that_dies_ends_the_others_with_a_message(dataset_path: Path, tmp_path: Path) -> None:
    port = free_port()
    words = ["--shards", str(dataset_path), "--out", str(tmp_path / "run"), "--model", "resnet32", "--device", "cpu"]
    workers = []
    for rank in range(2):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
        environment = {**os.environ, **place, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        command = [sys.executable, "-m", "lmk_train.cli", *words, "--batch-size", "10", "--epochs", "500"]
        workers.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    saved = tmp_path / "run" / "checkpoints" / "last.pt"
    deadline = time.monotonic() + 240
    while not saved.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert saved.exists()
    workers[1].kill()
    _, said = workers[0].communicate(timeout=240)
    workers[1].communicate()
    assert workers[0].returncode == 1, said
    assert "another process of the training" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("world", "more"),
    [(2, ["--ema", "0.9", "--freeze-backbone-epochs", "1"]), (3, [])],
    ids=["averaged weights, and a backbone that thaws after the stop", "the order of a sum of three matters"],
)
def test_one_process_asked_to_stop_stops_all_and_they_go_on_to_the_same_bits(
    dataset_path: Path, tmp_path: Path, world: int, more: list[str]
) -> None:
    assert train(dataset_path, tmp_path / "whole", tmp_path / "a", *more, world=world) == 0
    # torchrun reports any other exit code than 0 as 1; what counts is the checkpoint.
    assert train(dataset_path, tmp_path / "parts", tmp_path / "b", *more, world=world, stop_after=3) != 0
    saved = torch.load(tmp_path / "parts" / "checkpoints" / "last.pt", weights_only=True)
    assert saved["progress"]["step"] == 3
    assert len(saved["buffers"]) == world
    assert train(dataset_path, tmp_path / "parts", tmp_path / "b", "--resume", *more, world=world) == 0
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_evaluation_counts_every_sample_once_whatever_the_world(dataset_path: Path, tmp_path: Path) -> None:
    assert train(dataset_path, tmp_path / "run", tmp_path / "a", world=3) == 0
    exact = ["--amp", "off", "--device", "cpu", "--quiet"]
    by_three = (tmp_path / "run" / "eval-test.json").read_text()
    assert run_module("tests.train.training.evaluate", str(tmp_path / "run"), "--batch-size", "3", *exact, world=1) == 0
    alone, together = json.loads((tmp_path / "run" / "eval-test.json").read_text()), json.loads(by_three)
    # GAP orders samples by probabilities, which a hardly trained network gives to within their rounding.
    assert alone | {"gap": 0} == pytest.approx(together | {"gap": 0})
    assert run_module("tests.train.training.evaluate", str(tmp_path / "run"), "--split", "train", *exact, world=2) == 0
    counted = json.loads((tmp_path / "run" / "eval-train.json").read_text())["num_samples"]
    assert counted == json.loads((dataset_path / "dataset.json").read_text())["splits"]["train"]["num_samples"]
