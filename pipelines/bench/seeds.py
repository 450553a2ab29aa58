"""Train with the defaults over several split seeds: accuracy and macro F1 of validation and test together, last epoch.

    python -m pipelines.bench.seeds IMAGES LABELS [--seeds 5] [--model efficientnet-lite0] [--out bench-seeds]

IMAGES and LABELS are those of `lmk-shard build`. For each seed the collection is split and built again, then a model is
trained with cross entropy and another with LDAM. Prints a table and writes OUT/seeds.json.
"""

import argparse
import json
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lmk_data.build import BuildOptions, build
from lmk_data.options import PlanRule
from lmk_train.config.commands import EvalConfig
from lmk_train.config.training import TrainConfig
from lmk_train.evaluation.evaluate import evaluate_run
from lmk_train.evaluation.metrics import ClassCounts
from lmk_train.runs.folder import RunFolder
from lmk_train.training.loop import train

_LOSSES = ("ce", "ldam")


def judged(run: Path) -> tuple[float, float]:
    """Return accuracy and macro F1 of the last epoch over validation and test together."""
    tables = []
    for split in ("val", "test"):
        evaluate_run(EvalConfig(run, split=split, checkpoint="last", quiet=True))
        tables.append(pd.read_parquet(RunFolder(run).predictions(split)))
    both = pd.concat(tables)
    targets, predicted = both["target"].to_numpy(np.int64), both["label_1"].to_numpy(np.int64)
    counts = ClassCounts.of(targets, predicted, int(max(targets.max(), predicted.max())) + 1)
    return float((targets == predicted).mean()), float(np.mean(counts.f1()[counts.support > 0]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images")
    parser.add_argument("labels")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--model", default="efficientnet-lite0")
    parser.add_argument("--out", type=Path, default=Path("bench-seeds"))
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for seed in range(arguments.seeds):
        shards = arguments.out / f"shards-{seed}"
        shutil.rmtree(shards, ignore_errors=True)
        build(BuildOptions([arguments.images], arguments.labels, str(shards), rule=PlanRule(seed=seed), quiet=True))
        for loss in _LOSSES:
            run = arguments.out / f"{loss}-{seed}"
            shutil.rmtree(run, ignore_errors=True)
            started = time.monotonic()
            train(TrainConfig(str(shards), run, model=arguments.model, loss=loss, quiet=True))  # type: ignore[arg-type]
            accuracy, macro_f1 = judged(run)
            seconds = time.monotonic() - started
            rows.append({"loss": loss, "seed": seed, "accuracy": accuracy, "macro_f1": macro_f1, "seconds": seconds})
            print(rows[-1], flush=True)
    (arguments.out / "seeds.json").write_text(json.dumps(rows, indent=2))
    print("\n| loss | accuracy, mean | min | max | macro F1, mean | min | max | seconds |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for loss in _LOSSES:
        chosen = [row for row in rows if row["loss"] == loss]
        cells = []
        for name in ("accuracy", "macro_f1"):
            values = [row[name] for row in chosen]
            cells += [f"{statistics.mean(values):.3f}", f"{min(values):.3f}", f"{max(values):.3f}"]
        seconds = statistics.median(row["seconds"] for row in chosen)
        print(f"| {loss} | {' | '.join(cells)} | {seconds:.0f} |")


if __name__ == "__main__":
    main()
