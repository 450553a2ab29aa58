"""A build of a few seconds in a process of its own, which tests watch and disturb."""

import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow.parquet as pq

NUM_IMAGES, SAMPLES_PER_SHARD = 400, 8


def words(source: Path, out: Path, *more: str) -> list[str]:
    """The command line of that build, which writes no report: only the dataset is of interest."""
    given = ["--images", str(source / "train"), "--labels", str(source / "train.csv"), "--out", str(out)]
    shape = ["--size", "96", "--samples-per-shard", str(SAMPLES_PER_SHARD), "--no-report"]
    return [sys.executable, "-m", "lmk_data.cli", "build", *given, *shape, *more]


def start(command: Sequence[str]) -> "subprocess.Popen[str]":
    return subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def wait_for(is_so: Callable[[], bool], process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 240
    while not is_so():
        assert process.poll() is None, f"ended too early: {process.communicate()}"
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.005)


def receipts(out: Path) -> int:
    folder = out / ".build" / "receipts"
    return len(list(folder.glob("*.parquet"))) if folder.is_dir() else 0


def one_line(error: str) -> str:
    """The one line that a command that failed leaves on stderr, beside its progress."""
    lines = [line for line in error.splitlines() if line and not re.match(r"(building|scanning): ", line)]
    assert len(lines) == 1, error
    assert lines[0].startswith("lmk-shard: error: ")
    return lines[0]


def rejects(out: Path) -> list[tuple[str, str, str]]:
    """Key, reason and detail of every rejected picture."""
    return [(row["key"], row["reason"], row["detail"]) for row in pq.read_table(out / "rejects.parquet").to_pylist()]
