"""What post-hoc methods gain on the heads of `pipelines.landmarks_lt` or the networks of `pipelines.cifar10_lt`.

    python -m pipelines.bench.post_hoc [runs/landmarks-lt] [--methods "cross entropy" LDAM] [--csv FILE]
    python -m pipelines.bench.post_hoc runs/cifar10-lt --imbalance 100 --methods CE [--csv FILE]

The recipe has to be done: its features and heads, or its networks of an imbalance, are judged as they are. The test
pictures are halved: tau is picked on each half by macro F1, and judged on the other. Printed is the mean over all
seeds, in %.
"""

import argparse
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from lmk_data.dataset import ShardedDataset
from lmk_data.system.terminal import run_command
from lmk_train.config.commands import EvalConfig
from lmk_train.config.training import ResolvedConfig
from lmk_train.data.features import CachedFeatures, no_preprocessing
from lmk_train.evaluation.evaluate import evaluate_run
from lmk_train.evaluation.inference import Evaluator
from lmk_train.evaluation.sweep import ADJUSTMENT, METRICS, PostHoc, best_tau, swept
from lmk_train.models.registry import build_model
from lmk_train.runs.checkpoint import BEST, load_checkpoint, weights_to_evaluate
from lmk_train.runs.classes import Classes
from lmk_train.runtime.precision import Precision
from pipelines.methods import slug

_PLAIN = "none"
_SHOWN = tuple(name for name in METRICS if name != "many_accuracy")  # no class is so large
_LOSSES = ["cross entropy", "LDAM", "balanced softmax", "balanced softmax, cosine head"]
_CPU = torch.device("cpu")


def judge_head(run: Path, out: Path) -> dict[str, dict[str, float]]:
    """Return the figures of each post-hoc method for one head, means over both halves of the test pictures."""
    state = load_checkpoint(run, BEST)
    config, classes = ResolvedConfig.from_json(state["config"]), Classes.of_checkpoint(state)
    with ShardedDataset.open(out / "train") as training, ShardedDataset.open(out / "test") as test:
        model = build_model(config, len(classes.ids), test.recipe.size)
        model.load_state_dict(weights_to_evaluate(state))
        evaluator = Evaluator(model, no_preprocessing, Precision.resolve("off", _CPU), 512)
        with closing(CachedFeatures.open(out / "features-train", training, config).reader("train")) as reader:
            sums = evaluator.class_sums(reader, classes.labels_of(training), len(classes.ids))
        methods = PostHoc.of(model.head, classes.train_counts, sums)
        with closing(CachedFeatures.open(out / "features-test", test, config).reader("val")) as reader:
            found = evaluator.predict(reader, label_map=classes.labels_of(test), post_hoc=methods)
    assert found.adjusted is not None
    return _both_halves(methods.columns, found.adjusted, found.targets, classes.train_counts)


def judge_network(run: Path, out: Path) -> dict[str, dict[str, float]]:
    """Return the figures of each post-hoc method for one network, means over both halves of the test pictures."""
    found = evaluate_run(EvalConfig(run, str(out / "test"), tau=True, class_means=True, quiet=True))[-1]
    columns = [(method, row["tau"]) for method, rows in found.sweep.items() for row in rows]
    assert found.predictions.adjusted is not None
    counts = Classes.of_checkpoint(load_checkpoint(run, BEST)).train_counts
    return _both_halves(columns, found.predictions.adjusted, found.predictions.targets, counts)


def _both_halves(
    columns: Sequence[tuple[str, float | None]],
    answers: NDArray[np.int64],
    targets: NDArray[np.int64],
    train_counts: NDArray[np.int64],
) -> dict[str, dict[str, float]]:
    halves = [
        swept(columns, answers[first::2], targets[first::2], train_counts) for first in (0, 1)
    ]  # their order is a hash of the key, so that both have some of every class that has more than a few
    figures: dict[str, dict[str, float]] = {}
    for method in (_PLAIN, *halves[0]):
        rows = []
        for picking, judging in (halves, halves[::-1]):
            tau = 0.0 if method == _PLAIN else best_tau(picking[method])
            rows += [row for row in judging[ADJUSTMENT if method == _PLAIN else method] if row["tau"] == tau]
        figures[method] = {name: 100 * float(np.mean([row[name] or 0.0 for row in rows])) for name in _SHOWN}
    return figures


def judge_all(out: Path, names: Sequence[str], imbalance: int | None = None) -> pd.DataFrame:
    """Return a row for each method of training, seed and post-hoc method."""
    rows = []
    for name in names:
        if imbalance is None:
            runs, judge = (out / "heads").glob(f"{slug(name)}-[0-9]"), judge_head
        else:
            runs, judge = out.glob(f"{slug(name)}-{imbalance}-[0-9]"), judge_network
        for seed, run in enumerate(sorted(runs)):
            found = judge(run, out).items()
            rows += [{"loss": name, "post_hoc": method, "seed": seed, **figures} for method, figures in found]
    return pd.DataFrame(rows)


def table(rows: pd.DataFrame) -> str:
    """Return the means over the seeds as Markdown."""
    lines = [f"| loss | post-hoc | {' | '.join(_SHOWN)} |", f"|---|---|{'---:|' * len(_SHOWN)}"]
    for _, group in rows.groupby(["loss", "post_hoc"], sort=False):
        first, means = group.iloc[0], group[list(_SHOWN)].mean()
        figures = " | ".join(f"{value:.1f}" for value in means)
        lines.append(f"| {first['loss']} | {first['post_hoc']} | {figures} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="?", default=Path("runs") / "landmarks-lt")
    parser.add_argument("--methods", nargs="+", default=_LOSSES)
    parser.add_argument("--imbalance", type=int, help="judge the networks of this imbalance, of cifar10_lt")
    parser.add_argument("--csv", type=Path, help="write every seed's figures to this file too")
    given = parser.parse_args()

    def run() -> None:
        rows = judge_all(given.out, given.methods, given.imbalance)
        if given.csv is not None:
            rows.to_csv(given.csv, index=False, float_format="%.4f")
        print(table(rows))

    return run_command("post_hoc", run)


if __name__ == "__main__":
    raise SystemExit(main())
