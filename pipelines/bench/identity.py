"""Prove that a refactoring changes nothing: hashes and figures of whole programs, recorded before and compared after.

    python -m pipelines.bench.identity IMAGES LABELS RECORD.json [--work DIR]

Where RECORD.json does not exist, it is written; otherwise a new record is compared with it, every difference is named,
and the exit code is 1 if there is any. The record holds the sha256 of every file of a build, of a view, of a copy and
of each export, the figures of both reports, and the metrics and weights of two short trainings on one thread. Left out
is what cannot repeat: the HTML of reports, the times in metrics.jsonl, and paths of the folder that it worked in.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from lmk_train.runs.folder import RunFolder

_DIALECTS = ("wids", "timm", "dali", "energon", "croissant")
_TRAININGS = {
    "resnet32": ("--weights", "none", "--epochs", "2", "--batch-size", "32", "--drw-start", "0.5"),
    "efficientnet-lite0": ("--epochs", "2", "--batch-size", "32"),
}
_UNREPEATABLE = ("images_per_second", "data_share", "copy_share", "compute_share", "seconds", "shards")
_SHOWN_DIFFERENCES = 40


def record(images: Path, labels: Path, work: Path) -> dict[str, Any]:
    """Run every program in `work`, an empty folder; returns what must not change, by name."""
    found: dict[str, Any] = {}
    classes = ("--min-samples", "6", "--samples-per-shard", "64", "--title", "Identity")
    _run(work, "lmk-shard", "build", "--images", images, "--labels", labels, "--out", "shards", *classes)
    _run(work, "lmk-shard", "subset", "shards", "--out", "view", "--top", "8", "--max-per-class", "40")
    cleaned = ("--out", "copy", "--drop-duplicates", "near", "--copy")
    _run(work, "lmk-shard", "subset", "shards", *cleaned)
    for dialect in _DIALECTS:
        _run(work, "lmk-shard", "export", "shards", "--to", dialect)
    for name in ("shards", "view", "copy"):
        found |= _hashes(work / name, name)
    for dialect in _DIALECTS:
        found |= _hashes(work / f"shards-{dialect}", f"shards-{dialect}")
    _run(work, "lmk-shard", "report", "view")
    for name in ("shards", "view"):
        found |= _flat(json.loads((work / name / "report" / "report.json").read_bytes()), f"{name} report")
    small = ("--size", "64", "--out", "small", "--min-samples", "6")
    _run(work, "lmk-shard", "build", "--images", images, "--labels", labels, *small)
    for model, options in _TRAININGS.items():
        out = f"run-{model}"
        arguments = ("--model", model, "--loss", "ldam", "--device", "cpu", "--amp", "off", "--workers", "1")
        _run(work, "lmk-train", "--shards", "small", "--out", out, *arguments, *options)
        found |= _training(work / out, out)
    return found


def _run(work: Path, program: str, *arguments: object) -> None:
    words = [str(Path(sys.executable).parent / program), *map(str, arguments)]
    print("$", program, *map(str, arguments), flush=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    subprocess.run([*words, "--quiet"], cwd=work, env=environment, check=True)


def _hashes(folder: Path, name: str) -> dict[str, str]:
    """The sha256 of every file of a folder, its HTML report apart."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file() and "report" not in path.parts)
    return {
        f"{name}/{path.relative_to(folder)}": hashlib.sha256(path.read_bytes()).hexdigest()
        for path in paths
        if path.name != "lock"
    }


def _training(run: Path, name: str) -> dict[str, Any]:
    """The lines of metrics.jsonl without times, the test metrics, and the sha256 of the weights at the end."""
    folder = RunFolder(run)
    lines = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    found: dict[str, Any] = {
        f"{name} metrics line {number}": {key: value for key, value in line.items() if key not in _UNREPEATABLE}
        for number, line in enumerate(lines)
    }
    evaluation = json.loads(folder.evaluation("test").read_bytes())
    found[f"{name} eval-test"] = {key: value for key, value in evaluation.items() if key not in _UNREPEATABLE}
    state = torch.load(folder.checkpoint("last"), map_location="cpu", weights_only=True)
    digest = hashlib.sha256()
    for key, value in sorted(state["model"].items()):
        digest.update(key.encode() + value.contiguous().numpy().tobytes())
    return {**found, f"{name} weights": digest.hexdigest()}


def _flat(value: dict[str, Any], prefix: str) -> dict[str, Any]:
    """One entry for each leaf of nested objects."""
    return dict(_leaves(value, prefix))


def _leaves(value: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _leaves(item, f"{prefix}.{name}")
    else:
        yield prefix, value


def compare(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """One line for each entry that differs, is gone or is new."""
    return [
        f"{name}: {before.get(name, 'not there')} -> {after.get(name, 'not there')}"
        for name in sorted(before | after)
        if before.get(name) != after.get(name)
    ]


def main() -> int:
    """Record, or compare with the record that is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("labels", type=Path)
    parser.add_argument("record", type=Path)
    parser.add_argument("--work", type=Path, help="empty folder to work in, kept; by default a temporary one")
    options = parser.parse_args()
    work = options.work or Path(tempfile.mkdtemp(prefix="identity-"))
    work.mkdir(parents=True, exist_ok=True)
    try:
        found = record(options.images.resolve(), options.labels.resolve(), work.resolve())
    finally:
        if options.work is None:
            shutil.rmtree(work)
    found = json.loads(json.dumps(found))
    if not options.record.exists():
        options.record.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
        print(f"{options.record}: {len(found):,} entries recorded")
        return 0
    differences = compare(json.loads(options.record.read_text()), found)
    print("\n".join(differences[:_SHOWN_DIFFERENCES]))
    print(f"{len(found):,} entries, {len(differences):,} differ from {options.record}")
    return int(bool(differences))


if __name__ == "__main__":
    sys.exit(main())
