"""Measure metrics, files and report of an evaluation at full scale: seconds and megabytes beyond the forward pass.

    python -m pipelines.bench.metrics FULL

FULL is a dataset of the size of GLR2020, made by `pipelines.bench.full_scale --only-make`. Its test split gets made-up
predictions that are right for four in five samples. Prints a table.
"""

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from lmk_data.dataset import ShardedDataset
from lmk_train.config.training import TrainConfig
from lmk_train.evaluation.evaluate import SOURCE, Evaluation, write_evaluation
from lmk_train.evaluation.metrics import confusion, summarize
from lmk_train.evaluation.predictions import TOP_K, Predictions
from lmk_train.evaluation.report import write_run_report
from lmk_train.runs.classes import Classes
from lmk_train.runs.folder import RunFolder


def made_up(dataset: ShardedDataset) -> Predictions:
    """Return made-up predictions of the test split."""
    index = dataset.index("test", ["key", "label"])
    random, num_classes = np.random.default_rng(0), dataset.num_classes
    targets = index["label"].to_numpy(np.int64)
    labels = random.integers(0, num_classes, (len(targets), TOP_K))
    right = random.random(len(targets)) < 0.8
    labels[right, 0] = targets[right]
    probabilities = -np.sort(-random.dirichlet(np.ones(TOP_K), len(targets)).astype(np.float32), axis=1)
    losses = random.exponential(1.0, len(targets)).astype(np.float32)
    return Predictions(index["key"].to_numpy(object), targets, labels, probabilities, losses)


def measure(what: str, action: Callable[[], object]) -> None:
    """Print a row: the seconds of the action, and the growth of the peak memory of this process."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    action()
    seconds = time.perf_counter() - started
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(f"| {what} | {seconds:.2f} | {grown / 1024:.0f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("full", type=Path)
    arguments = parser.parse_args()
    with ShardedDataset.open(arguments.full) as dataset, tempfile.TemporaryDirectory() as folder:
        run, classes, predictions = Path(folder), Classes.of_dataset(dataset), made_up(dataset)
        print(f"{len(predictions.targets):,} samples of {dataset.num_classes:,} classes\n")
        print("| step | seconds | extra MB |\n|---|---:|---:|")
        measure("every metric", lambda: summarize(predictions, classes.train_counts))
        measure("sparse confusion matrix", lambda: confusion(predictions, dataset.num_classes))
        metrics = {**summarize(predictions, classes.train_counts), "num_unknown": 0}
        nothing = predictions.select(np.zeros(len(predictions.targets), dtype=bool))
        evaluation = Evaluation(0, "test", dict.fromkeys(SOURCE, "made up"), metrics, predictions, nothing, {})
        measure("all files of the evaluation", lambda: write_evaluation(run, evaluation, classes))
        config = TrainConfig(str(arguments.full), run).resolved()
        RunFolder(run).config.write_text(json.dumps(config.json()))
        RunFolder(run).metrics.write_text("")
        measure("report", lambda: write_run_report(run, dataset, "test"))
        print(f"\nThe report has {RunFolder(run).report().stat().st_size / 1e6:.1f} MB.")


if __name__ == "__main__":
    main()
