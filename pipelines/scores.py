"""What trainings with several seeds reach on the same test pictures, as a table with intervals."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

METRICS = {
    "prior_accuracy": "accuracy, training prior",
    "macro_recall": "balanced accuracy",
    "medium_accuracy": "medium",
    "few_accuracy": "few",
    "macro_f1": "macro F1",
    "gap": "GAP",
}
_RESAMPLES = 2000


@dataclass(frozen=True)
class Scores:
    """What the seeds of a method reach: metrics by name for each seed, and right or wrong, bool [seeds, N]."""

    metrics: pd.DataFrame
    correct: NDArray[np.bool_]
    targets: NDArray[np.int64]


def as_markdown(scores: dict[str, Scores], what: str, against: str) -> str:
    """Return the table of the scores by name, in %, with their differences to the first.

    A metric that is undefined for some training, or was not computed, is left out: no class may be of a band.

    Args:
        scores: by the names of the rows.
        what: the header of these names.
        against: what the first is called in the header of the differences.
    """
    first = next(iter(scores.values()))
    shown = [
        name
        for name in METRICS
        if all(name in own.metrics and own.metrics[name].notna().all() for own in scores.values())
    ]
    lines = [
        f"| {what} | {' | '.join(METRICS[name] for name in shown)} | spread | against {against} |",
        f"|---|{'---:|' * (len(shown) + 2)}",
    ]
    for name, own in scores.items():
        recalls = 100 * own.metrics["macro_recall"]
        cells = [f"{100 * own.metrics[metric].mean():.1f}" for metric in shown]
        middle, low, high = difference(first, own)
        gain = "" if own is first else f"{middle:+.1f} ({low:+.1f} to {high:+.1f})"
        lines.append(f"| {name} | {' | '.join(cells)} | {recalls.min():.1f} to {recalls.max():.1f} | {gain} |")
    return "\n".join(lines)


def difference(first: Scores, other: Scores) -> tuple[float, float, float]:
    """Return the difference of balanced accuracy (other - first) in points, and its 2.5 % and 97.5 % quantiles.

    Paired bootstrap over the test pictures; each picture counts by the share of the seeds that are right about it.
    """
    gained = other.correct.mean(axis=0) - first.correct.mean(axis=0)
    random = np.random.default_rng(0)

    def balanced(weights: NDArray[np.float64]) -> float:
        support, gains = np.bincount(first.targets, weights), np.bincount(first.targets, weights * gained)
        return float(100 * (gains[support > 0] / support[support > 0]).mean())

    number = len(gained)
    drawn = [
        balanced(np.bincount(random.integers(0, number, number), minlength=number).astype(np.float64))
        for _ in range(_RESAMPLES)
    ]
    low, high = np.quantile(drawn, (0.025, 0.975))
    return balanced(np.ones(number)), float(low), float(high)
