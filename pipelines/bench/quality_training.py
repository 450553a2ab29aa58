"""What wrong labels cost a classifier, and how much of it cleaning regains.

    python -m pipelines.bench.quality_training DATASET [--rates 0.1 0.2 0.4] [--seeds 10] [--flips symmetric|similar]
        [--out bench-quality]

DATASET is as for `pipelines.bench.quality`. Of each seed, 30 % of the pictures of every class are held out for the
test, with their own labels; of the others so many labels are changed. Linear classifiers of EfficientNet-Lite0's
features are trained on the changed labels, without those that `judge_labels` flags, with these set to the class that
it proposes, and on the true labels; and without exactly the wrong ones, the most that leaving out can regain. Prints
the mean test accuracy, and the share of the loss that each regains.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split

from lmk_train.inspection.labels import judge_labels
from pipelines.bench.quality import features_of, flipped

_TEST_SHARE = 0.3
_INVERSE_REGULARIZATION = 10.0
_CLEANED = ("excluded", "relabelled", "all wrong excluded")


def accuracies(
    features: NDArray[np.float16], true: NDArray[np.int32], rate: float, seed: int, kind: str
) -> dict[str, float]:
    """Return the test accuracies of training on noisy, cleaned and true labels, by the names of `_CLEANED`."""
    train, test = train_test_split(np.arange(len(true)), test_size=_TEST_SHARE, random_state=seed, stratify=true)
    seen = features[train]
    given = flipped(seen, true[train], rate, seed, kind)
    judged = judge_labels(seen, given, int(true.max()) + 1)
    kept = ~judged.wrong_label
    relabelled = np.where(kept, given, judged.other_label)

    def accuracy(rows: NDArray[np.bool_], labels: NDArray[np.int32]) -> float:
        model = LogisticRegression(C=_INVERSE_REGULARIZATION, max_iter=300)
        model.fit(seen[rows].astype(np.float32), labels[rows])
        return float((model.predict(features[test].astype(np.float32)) == true[test]).mean())

    every = np.ones(len(train), dtype=np.bool_)
    return {
        "noisy": accuracy(every, given),
        "excluded": accuracy(kept, given),
        "relabelled": accuracy(every, relabelled),
        "all wrong excluded": accuracy(given == true[train], given),
        "clean": accuracy(every, true[train]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--rates", type=float, nargs="+", default=[0.1, 0.2, 0.4])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--flips", choices=["symmetric", "similar"], default="symmetric")
    parser.add_argument("--out", type=Path, default=Path("bench-quality"))
    arguments = parser.parse_args()
    features, labels = features_of(arguments.dataset, arguments.out)
    usable = np.bincount(labels)[labels] > 3  # the others cannot be split
    _, dense = np.unique(labels[usable], return_inverse=True)
    features, labels = features[usable], dense.astype(np.int32)
    print(f"{len(labels):,} pictures, {labels.max() + 1} classes, {arguments.flips} flips, {arguments.seeds} seeds")
    print(f"| wrong labels | noisy | {' | '.join(_CLEANED)} | clean | regained: {' | '.join(_CLEANED)} |")
    print(f"|{'---:|' * (2 * len(_CLEANED) + 3)}")
    results: dict[float, list[dict[str, float]]] = {}
    for rate in arguments.rates:
        for seed in range(arguments.seeds):
            results.setdefault(rate, []).append(accuracies(features, labels, rate, seed, arguments.flips))
        mean = {name: float(np.mean([row[name] for row in results[rate]])) for name in results[rate][0]}
        lost = mean["clean"] - mean["noisy"]
        regained = [(mean[name] - mean["noisy"]) / lost if lost > 0 else float("nan") for name in _CLEANED]
        cells = [f"{mean[name]:.3f}" for name in ("noisy", *_CLEANED, "clean")] + [f"{one:.0%}" for one in regained]
        print(f"| {rate:.0%} | {' | '.join(cells)} |", flush=True)
    path = arguments.out / f"{arguments.dataset.name}-{arguments.flips}-training.json"
    path.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
