"""Compare runs on one split: metrics, parameters, speed, and confidence intervals of the differences.

    python -m pipelines.compare RUN RUN [RUN ...] [--split test] [--resamples 1000]

All runs must have been evaluated on the same images (`lmk-eval RUN --split SPLIT`). Differences are relative to the
first run, with a 95 % interval by a paired bootstrap over images. If the training split was evaluated too, its accuracy
is a column. Prints Markdown.
"""

import argparse
import json
import shlex
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from lmk_data.errors import UserError
from lmk_data.system.terminal import run_command
from lmk_train.config.option import require
from lmk_train.config.training import ResolvedConfig
from lmk_train.evaluation.evaluate import same_source
from lmk_train.evaluation.metrics import ClassCounts
from lmk_train.models.registry import build_model, num_parameters
from lmk_train.runs.checkpoint import BEST, load_checkpoint, weights_to_evaluate
from lmk_train.runs.folder import RunFolder
from lmk_train.runtime.precision import Precision, resolve_device

_METRICS = ("accuracy", "top5_accuracy", "macro_precision", "macro_recall", "macro_f1", "few_accuracy", "gap")
_BATCH, SECONDS = 32, 3.0


@dataclass(frozen=True)
class Row:
    """One run: metrics, accuracy on its training split (None if not evaluated), parameters, images per second, and the
    targets and best labels by key."""

    name: str
    metrics: dict[str, float | None]
    train_accuracy: float | None
    backbone_parameters: int
    head_parameters: int
    images_per_second: float
    predictions: pd.DataFrame


def read_run(run: Path, name: str, split: str, seconds: float) -> Row:
    """Return the figures of a run, and the speed of its model on this machine, measured for `seconds`.

    Raises UserError if the run was not evaluated on `split`, or with its last weights.
    """
    path = RunFolder(run).evaluation(split)
    if not path.exists():
        raise UserError(f"{path}: not there; run `lmk-eval {shlex.quote(str(run))} --split {split}` first")
    state = load_checkpoint(run, BEST)
    trained, size = ResolvedConfig.from_json(state["config"]), state["recipe"]["size"]
    model = build_model(trained, len(state["classes"]), size)
    model.load_state_dict(weights_to_evaluate(state))
    predictions = pd.read_parquet(RunFolder(run).predictions(split), columns=["key", "target", "label_1"])
    metrics = json.loads(path.read_text())
    if metrics["checkpoint"] != "best":
        raise UserError(
            f"{path}: of the last weights; run `lmk-eval {shlex.quote(str(run))} --split {split}` for the best ones"
        )
    return Row(
        name=name,
        metrics=metrics,
        train_accuracy=_train_accuracy(run, metrics),
        backbone_parameters=num_parameters(model.backbone),
        head_parameters=num_parameters(model.head),
        images_per_second=_speed(model.eval(), size, seconds),
        predictions=predictions[predictions["target"].notna()].set_index("key").sort_index(),
    )


def _train_accuracy(run: Path, metrics: dict[str, float | None]) -> float | None:
    """Return the accuracy on the training split of the same dataset with the same checkpoint, or None."""
    path = RunFolder(run).evaluation("train")
    found = json.loads(path.read_text()) if path.exists() else {}
    return found["accuracy"] if found and same_source(found, metrics) else None


def bootstrap(first: Row, other: Row, resamples: int) -> dict[str, tuple[float, float, float]]:
    """Return the differences of accuracy and macro F1 (other - first), each with 2.5 % and 97.5 % bootstrap quantiles.

    Raises UserError if the two were evaluated on different images.
    """
    if not first.predictions["target"].equals(other.predictions["target"]):
        raise UserError(f"{other.name} was evaluated on other pictures or classes than {first.name}")
    targets = first.predictions["target"].to_numpy(np.int64)
    chosen = [row.predictions["label_1"].to_numpy(np.int64) for row in (first, other)]
    num_classes = int(max(targets.max(), *(labels.max() for labels in chosen))) + 1
    random = np.random.default_rng(0)

    def differences(rows: NDArray[np.int64]) -> tuple[float, float]:
        scores = [_scores(targets[rows], labels[rows], num_classes) for labels in chosen]
        return scores[1][0] - scores[0][0], scores[1][1] - scores[0][1]

    observed = differences(np.arange(len(targets)))
    drawn = np.array([differences(random.integers(0, len(targets), len(targets))) for _ in range(resamples)])
    low, high = np.quantile(drawn, (0.025, 0.975), axis=0)
    return {name: (observed[i], float(low[i]), float(high[i])) for i, name in enumerate(("accuracy", "macro_f1"))}


def _scores(targets: NDArray[np.int64], labels: NDArray[np.int64], num_classes: int) -> tuple[float, float]:
    counts = ClassCounts.of(targets, labels, num_classes)
    return float((targets == labels).mean()), float(counts.f1()[counts.support > 0].mean())


def _speed(model: torch.nn.Module, size: int, seconds: float) -> float:
    """Return images per second of the forward pass, from normalised images to logits."""
    device = resolve_device("auto")
    precision = Precision.resolve("auto", device)
    model.to(device).to(memory_format=torch.channels_last)
    pictures = torch.randn(_BATCH, 3, size, size, device=device).to(memory_format=torch.channels_last)
    batches, started = -2, time.perf_counter()
    with torch.inference_mode(), precision.autocast():
        while time.perf_counter() - started < seconds or batches < 1:
            model(pictures).sum().item()
            batches += 1
            if not batches:
                started = time.perf_counter()
    return batches * _BATCH / (time.perf_counter() - started)


def comparison(runs: list[Path], split: str, resamples: int, seconds: float = SECONDS) -> str:
    """Return the tables of these runs as Markdown; each model is timed for `seconds`.

    Raises UserError for a run that was not evaluated on the split.
    """
    require(resamples >= 1, "--resamples", resamples, "at least 1")
    names = [run.resolve().name for run in runs]
    if len(set(names)) < len(names):
        names = [str(run) for run in runs]
    rows = [read_run(run, name, split, seconds) for run, name in zip(runs, names, strict=True)]
    judged_on_train = split != "train" and any(row.train_accuracy is not None for row in rows)
    header = [*(name.replace("_", " ") for name in _METRICS), *(["training accuracy"] if judged_on_train else [])]
    lines = [
        f"| run | {' | '.join(header)} | backbone, M | head, M | images/s |",
        f"|---|{'---:|' * (len(header) + 3)}",
    ]
    for row in rows:
        values = [*(row.metrics[name] for name in _METRICS), *([row.train_accuracy] if judged_on_train else [])]
        cells = ["" if value is None else f"{value:.4f}" for value in values]
        sizes = [f"{row.backbone_parameters / 1e6:.1f}", f"{row.head_parameters / 1e6:.2f}"]
        lines.append(f"| {' | '.join([row.name, *cells, *sizes, f'{row.images_per_second:,.0f}'])} |")
    if len(rows) == 1:
        return "\n".join(lines)
    lines += ["", f"| against {rows[0].name}, 95 % interval | accuracy | macro F1 |", "|---|---:|---:|"]
    for row in rows[1:]:
        found = bootstrap(rows[0], row, resamples)
        cells = [f"{middle:+.4f} ({low:+.4f} to {high:+.4f})" for middle, low, high in found.values()]
        lines.append(f"| {row.name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("--split", default="test", choices=("train", "val", "test"))
    parser.add_argument("--resamples", type=int, default=1000)
    arguments = parser.parse_args()
    return run_command("compare", lambda: print(comparison(arguments.runs, arguments.split, arguments.resamples)))


if __name__ == "__main__":
    raise SystemExit(main())
