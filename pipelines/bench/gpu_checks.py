"""What has to hold on a device whatever its speed: the tests, exact resume, an overflow, running out of memory."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from importlib.util import find_spec
from io import StringIO
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from lmk_data.dataset import ShardedDataset
from lmk_train.cli import train_main
from lmk_train.runs.folder import RunFolder
from lmk_train.runtime.world import SINGLE
from lmk_train.training.assembly import make_trainer
from lmk_train.training.loop import train, training_step
from lmk_train.training.profile_input import endless_batches
from pipelines.bench.gpu_speed import Case, Speed, release, training_config

_MODEL = "resnet32"
_OVERFLOWING_SCALE = 2.0**100
_ROOM_BYTES = 256 << 20  # of the device's memory, in which a training does not fit
_ESTIMATE_WITHIN, _OR_BYTES = 0.3, 500_000_000
_MAX_TEST_PROCESSES = 6  # each has a context of half a GB on the device
_TEST_NEEDS = ("pytest", "pytest_timeout", "hypothesis")


@dataclass(frozen=True)
class Check:
    """The outcome of a check: `ok` is None if it was skipped."""

    name: str
    ok: bool | None
    said: str

    def line(self) -> str:
        """Return the outcome in a line."""
        outcome = {True: "ok", False: "FAILED", None: "skipped"}[self.ok]
        return f"{outcome:8}{self.name}: {self.said}"


def run_tests(device: torch.device) -> Check:
    """Run the tests that need the device."""
    name = "tests -m cuda"
    missing = [package for package in _TEST_NEEDS if find_spec(package) is None]
    if missing:
        return Check(name, None, f"not installed: {', '.join(missing)}")
    if device.type != "cuda":
        return Check(name, None, "the CPU runs the same tests in `make test`")
    words = [sys.executable, "-m", "pytest", "-m", "cuda", "-q", "-p", "no:cacheprovider", "--timeout=180"]
    words += ["--durations=10"]
    if find_spec("xdist") is not None:  # most of their time is imports and one thread's work
        words += ["--numprocesses", str(min(_MAX_TEST_PROCESSES, len(os.sched_getaffinity(0)))), "--dist", "worksteal"]
    tests = Path(__file__).parents[2] / "tests" / "train"
    done = subprocess.run([*words, str(tests)], check=False, stdout=subprocess.PIPE, text=True)
    print(done.stdout)
    last = (done.stdout.strip().splitlines() or ["nothing was said"])[-1]
    return Check(name, done.returncode == 0 and " passed" in last, last)


def check_resume(dataset: Path, device: torch.device, folder: Path) -> Check:
    """Stop a deterministic training in the middle and resume it: the weights are those of an uninterrupted one."""
    case = Case(_MODEL, 0, min(64, _num_train(dataset) // 4), "auto")
    config = training_config(case, dataset, device, epochs=1, optimizer="sgd", lr=0.01, deterministic=True)
    weights = []
    for name, stop_after in (("whole", None), ("parts", 2)):
        run = replace(config, out=folder / name)
        if stop_after is not None:
            with stopped_after(stop_after):
                try:
                    train(run, evaluate_test=False)
                    return Check("resume", False, "the training did not stop")
                except KeyboardInterrupt:
                    run = replace(run, resume=True)
        train(run, evaluate_test=False)
        last = RunFolder(run.out or folder).checkpoint("last")
        weights.append(torch.load(last, map_location="cpu", weights_only=True)["model"])
    differing = [name for name in weights[0] if not torch.equal(weights[0][name], weights[1][name])]
    said = f"{len(differing)} of {len(weights[0])} tensors differ from those of an uninterrupted training"
    return Check("resume", not differing, said)


@contextmanager
def stopped_after(num_updates: int) -> Iterator[None]:
    """Send this process a SIGTERM after so many updates."""
    numbers = count(1)

    def hook(*_: Any) -> None:
        if next(numbers) == num_updates:
            os.kill(os.getpid(), signal.SIGTERM)

    handle = register_optimizer_step_post_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def check_overflow(dataset: Path, device: torch.device) -> Check:
    """Let the gradients of a float16 update overflow: it is skipped and counted, and the next ones are not."""
    case = Case(_MODEL, 0, min(16, _num_train(dataset)), "fp16")
    config = training_config(case, dataset, device, optimizer="sgd").resolved()
    with ShardedDataset.open(dataset) as opened:
        trainer = make_trainer(config, opened, SINGLE, lambda _: None)
        with closing(trainer.train), closing(endless_batches(trainer)) as batches:
            trainer.scaler = torch.amp.GradScaler(device.type, init_scale=_OVERFLOWING_SCALE, backoff_factor=2.0**-90)
            before = [parameter.detach().clone() for parameter in trainer.model.parameters()]
            training_step(trainer, batches)
            kept = all(map(torch.equal, before, trainer.model.parameters()))
            training_step(trainer, batches)
            learnt = not all(map(torch.equal, before, trainer.model.parameters()))
            skipped = int(trainer.epoch_sums.skipped)
    said = f"{skipped} update skipped, weights {'kept' if kept else 'CHANGED'}, then {'' if learnt else 'NOT '}trained"
    return Check("overflow of float16", kept and learnt and skipped == 1, said)


def check_out_of_memory(dataset: Path, device: torch.device, folder: Path, model: str, batch_size: int) -> Check:
    """Take the device's memory away: `lmk-train` says so in one line and ends with 1, and afterwards trains again."""
    name = "out of memory"
    if device.type != "cuda":
        return Check(name, None, "the CPU has no limit to set")
    words = ["--shards", str(dataset), "--model", model, "--weights", "none", "--batch-size", str(batch_size)]
    words += ["--epochs", "1", "--device", "cuda", "--quiet", "--dry-run"]
    release(device)
    there = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved(device) + _ROOM_BYTES) / there, device)
    said, sink = StringIO(), StringIO()
    try:
        with redirect_stderr(said), redirect_stdout(sink):
            code = train_main([*words, "--out", str(folder / "small")])
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
    lines = said.getvalue().strip().splitlines()
    release(device)
    with redirect_stderr(sink), redirect_stdout(sink):
        afterwards = train_main([*words, "--out", str(folder / "large")])
    ok = code == 1 and len(lines) == 1 and "out of memory" in lines[0] and afterwards == 0
    return Check(name, ok, f"exit code {code}, then {afterwards}; {' / '.join(lines) or 'nothing was said'}")


def check_estimate(speeds: dict[Case, Speed]) -> Check:
    """Compare the memory that was allocated with the estimate of `--dry-run`, for every case that was measured."""
    name = "memory estimate"
    ratios = []
    for case, speed in speeds.items():
        if speed.allocated is None or speed.estimated is None:
            continue
        counted = speed.estimated - (speed.overhead or 0)
        if abs(counted - speed.allocated) > max(_ESTIMATE_WITHIN * speed.allocated, _OR_BYTES):
            said = f"{counted / 1e9:.1f} GB estimated, {speed.allocated / 1e9:.1f} allocated by {case}"
            return Check(name, False, said)
        ratios.append(counted / speed.allocated)
    if not ratios:
        return Check(name, None, "measured on CUDA only")
    return Check(name, True, f"{min(ratios):.2f} to {max(ratios):.2f} of what was allocated")


def _num_train(dataset: Path) -> int:
    with ShardedDataset.open(dataset) as opened:
        return opened.num_samples("train")
