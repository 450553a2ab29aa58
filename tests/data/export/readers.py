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

SPLITS = ("train", "val")
# Prints what a tool read of each split, as [key or null, label, sha256 of the JPEG or null]: `read` is the tool's part.
_READ_SPLITS = """
import hashlib, json

for split in json.loads(sys.argv[2]):
    samples = [[key, int(label), jpeg and hashlib.sha256(jpeg).hexdigest()] for key, label, jpeg in read(split)]
    print("READ", json.dumps(samples))
"""


def run_apart(code: str, root: Path, home: Path, *arguments: str, path: Path | None = None) -> str:
    """Run a program of another tool, which finds `root` under that name, away from the network; returns its output."""
    environment = {
        **os.environ,
        "HOME": str(home),
        "HF_HUB_OFFLINE": "1",
        "WIDS_CACHE": str(home / "wids"),
        "PYTHONPATH": str(path or ""),
    }
    program = [sys.executable, "-c", "import sys\nroot = sys.argv[1]\n" + code, str(root), *arguments]
    done = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def run_reader(code: str, root: Path, home: Path, path: Path | None = None) -> dict[str, list[list[Any]]]:
    """What another tool reads of each of SPLITS, in one process; `code` defines `read(split)`, which yields samples."""
    said = run_apart(code + _READ_SPLITS, root, home, json.dumps(SPLITS), path=path)
    lines = [line for line in said.splitlines() if line.startswith("READ ")]
    return {split: json.loads(line[5:]) for split, line in zip(SPLITS, lines, strict=True)}


def expected(dataset: ShardedDataset) -> dict[str, list[list[Any]]]:
    return {split: _samples(dataset, split) for split in SPLITS}


def _samples(dataset: ShardedDataset, split: str) -> list[list[Any]]:
    return [[s.key, s.label, hashlib.sha256(s.jpeg).hexdigest()] for s in dataset.samples(split)]


def export(dataset_path: Path, dialect: str, out: Path) -> Path:
    assert main(["export", str(dataset_path), "--to", dialect, "--out", str(out), "--quiet"]) == 0
    return out
