"""Reproduce a table of the report: build the full set once, make a view, train, evaluate and compare every row."""

import argparse
from dataclasses import dataclass
from pathlib import Path

from lmk_data.system.terminal import run_command
from pipelines.compare import SECONDS, comparison
from pipelines.steps import evaluate, run, train, view

# What `--smoke` changes: small synthetic images instead of Kaggle's, and one epoch from random weights.
_SMOKE_BUILD = ("--min-samples", 2, "--size", 64)
_SMOKE_TRAIN = ("--weights", "none", "--epochs", 1, "--batch-size", 16)
_RESAMPLES = 1000
BEST = ("--loss", "balanced-softmax")  # no recipe in docs/recipes.md is better by more than the seeds differ


@dataclass(frozen=True)
class Row:
    """A row: its name, the arguments of `lmk-train`, and the report's training accuracy, testing accuracy and F1."""

    name: str
    arguments: tuple[object, ...]
    reported: tuple[float | None, float | None, float | None]


@dataclass(frozen=True)
class Table:
    """A table: the name of its folder, the arguments of `lmk-shard subset` (none: the full set), and its rows."""

    name: str
    subset: tuple[object, ...]
    rows: tuple[Row, ...]


def main(table: Table, description: str) -> int:
    """Run the command line of a recipe and return the exit code."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "folder", type=Path, nargs="?", help="folder of the unpacked archive, with train.csv and train/"
    )
    parser.add_argument("--out", type=Path, help="folder for datasets, runs and tables (default: runs/report)")
    parser.add_argument(
        "--smoke", action="store_true", help="run everything on synthetic images, in minutes; the figures mean nothing"
    )
    arguments = parser.parse_args()
    if (arguments.folder is None) != arguments.smoke:
        parser.error("give the folder of Kaggle's data, or --smoke")
    out = arguments.out or Path("runs") / ("report-smoke" if arguments.smoke else "report")
    return run_command(table.name, lambda: print(repeat(table, arguments.folder, out)))


def repeat(table: Table, folder: Path | None, out: Path) -> str:
    """Run the steps that are not finished and return the table as Markdown; it is also written to OUT/<name>.md.

    Without a folder, the recipe runs on synthetic images.
    """
    smoke = folder is None
    if folder is None:
        folder = out / "images"
        run("lmk-shard", "sample", folder, "--classes", 24, "--images", 240)
    shards = out / "shards"
    kept = _SMOKE_BUILD if smoke else ("--min-samples", 6)
    source = ("--images", folder / "train", "--labels", folder / "train.csv")
    run("lmk-shard", "build", *source, "--out", shards, *kept)
    dataset = view(shards, out / table.name / "view", *table.subset) if table.subset else shards
    runs, lines = (
        [],
        [
            f"{table.name}: {'synthetic images, to try the recipe; the figures mean nothing' if smoke else folder}",
            "",
            "| model | training accuracy | report | testing accuracy | report | testing macro F1 | report |",
            "|---|---:|---:|---:|---:|---:|---:|",
        ],
    )
    for row in table.rows:
        name = row.name.lower().replace(" + ", "-").replace(" ", "-")
        done = train(dataset, out / table.name / name, *row.arguments, *(_SMOKE_TRAIN if smoke else ()))
        training, testing = (evaluate(done, split) for split in ("train", "test"))
        ours = (training["accuracy"], testing["accuracy"], testing["macro_f1"])
        cells = [f"{_percent(own)} | {_percent(theirs)}" for own, theirs in zip(ours, row.reported, strict=True)]
        lines.append(f"| {row.name} | {' | '.join(cells)} |")
        runs.append(done)
    text = "\n".join([*lines, "", comparison(runs, "test", _RESAMPLES, 0.0 if smoke else SECONDS), ""])
    (out / f"{table.name}.md").write_text(text)
    return text


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2f} %"
