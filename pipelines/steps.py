"""The steps of a recipe as a user would type them; what is done is not done again."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any


def run(*command: object) -> None:
    """Show a command and run it from this environment; stop with its exit code if it fails."""
    words = [str(word) for word in command]
    print("\n$", " ".join(words), flush=True)
    program = Path(sys.executable).parent / words[0]
    code = subprocess.run([program, *words[1:]], check=False).returncode
    if code:
        raise SystemExit(code)


def view(dataset: Path, out: Path, *arguments: object) -> Path:
    """A view of a dataset, by `lmk-shard subset`."""
    if not (out / "dataset.json").exists():
        run("lmk-shard", "subset", dataset, "--out", out, *arguments)
    return out


def train(dataset: Path, out: Path, *arguments: object) -> Path:
    """A run, trained to its end: from the start, or on from its last checkpoint."""
    if not (out / "trained").exists():
        going_on = ("--resume",) if (out / "checkpoints" / "last.pt").exists() else ()
        if not going_on and out.exists():
            shutil.rmtree(out)  # it was interrupted before its first checkpoint
        run("lmk-train", "--shards", dataset, "--out", out, *arguments, *going_on)
        (out / "trained").touch()
    return out


def evaluate(run_folder: Path, split: str, *arguments: object) -> dict[str, Any]:
    """The metrics of a run on a split."""
    path = run_folder / f"eval-{split}.json"
    if not path.exists():
        run("lmk-eval", run_folder, "--split", split, *arguments)
    metrics: dict[str, Any] = json.loads(path.read_text())
    return metrics
