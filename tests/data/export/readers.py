"""Other tools that read an export in a process of their own."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from lmk_data.cli import main
from lmk_data.dataset import ShardedDataset

# What a tool read, printed by the program that read it: [key or null, label, sha256 of the JPEG or null].
_PRELUDE = """
import hashlib, json, sys

def say(samples):
    read = [[key, int(label), jpeg and hashlib.sha256(jpeg).hexdigest()] for key, label, jpeg in samples]
    print("READ", json.dumps(read))

root, split = sys.argv[1:]
"""


def run_reader(code: str, root: Path, split: str, home: Path, path: Path | None = None) -> list[list[Any]]:
    """Run another tool in a process of its own, away from the network; returns what it read."""
    environment = {
        **os.environ,
        "HOME": str(home),
        "HF_HUB_OFFLINE": "1",
        "WIDS_CACHE": str(home / "wids"),
        "PYTHONPATH": str(path or ""),
    }
    done = subprocess.run(
        [sys.executable, "-c", _PRELUDE + code, str(root), split],
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    read: list[list[Any]] = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("READ"))[5:])
    return read


def expected(dataset: ShardedDataset, split: str) -> list[list[Any]]:
    return [[s.key, s.label, hashlib.sha256(s.jpeg).hexdigest()] for s in dataset.samples(split)]


def export(dataset_path: Path, dialect: str, out: Path) -> Path:
    assert main(["export", str(dataset_path), "--to", dialect, "--out", str(out), "--quiet"]) == 0
    return out
