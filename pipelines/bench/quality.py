"""Find labels that were changed on purpose, beside cleanlab on the same features; and pictures that belong to no class.

    lmk-shard build --images IMAGES --labels LABELS --out DATASET --min-samples 2 --split 1 0 0
    python -m pipelines.bench.quality DATASET [--rates 0 0.02 0.05 0.1 0.2] [--seeds 5] [--flips symmetric|similar]
        [--strangers DATASET ...] [--stranger-rates 0.02 0.05] [--out bench-quality]

The features are those of EfficientNet-Lite0 with its published weights, computed once. Of each rate and seed, so many
labels are changed: to any other class with equal probability, or (`similar`) to one of the three classes whose means
are closest. cleanlab is given the probabilities of a logistic regression of scikit-learn over five folds, of each
--inverse-regularization, by self-confidence and by normalised margin, of which the best in this very row is shown; and
the shares of labels among ten nearest neighbours. With --strangers, pictures of each of these datasets are added under
labels drawn from the others' (`pipelines.bench.strangers` draws pages, plans, maps and plots), and outliers are found,
beside cleanlab's by the distance to ten nearest neighbours. Needs cleanlab. Prints tables and writes JSON into OUT.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from cleanlab.filter import find_label_issues
from cleanlab.outlier import OutOfDistribution
from cleanlab.rank import get_label_quality_scores
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.model_selection import StratifiedKFold
from sklearn.neighbors import NearestNeighbors

from lmk_data.dataset import ShardedDataset
from lmk_train.config.training import TrainConfig
from lmk_train.data.features import CachedFeatures, compute_features
from lmk_train.inspection.labels import judge_labels
from lmk_train.inspection.outliers import judge_outliers

_FOLDS = 5
_NEIGHBOURS = 10
_SIMILAR = 3
_SCORES = ("self_confidence", "normalized_margin")


def features_of(dataset: Path, out: Path) -> tuple[NDArray[np.float16], NDArray[np.int32]]:
    """Return L2-normalised features [N, D] and labels [N] of a dataset's training split, computed once."""
    config = TrainConfig(str(dataset), model="efficientnet-lite0", quiet=True).resolved()
    folder = out / f"features-{dataset.name}"
    compute_features(config, folder, print)
    with ShardedDataset.open(str(dataset)) as opened:
        reader = CachedFeatures.open(folder, opened, config).reader("train")
        features = np.empty((len(reader), *reader.shape), np.float32)
        reader.decode(np.arange(len(reader)), features)
        labels = np.asarray(reader.labels, dtype=np.int32)
        reader.close()
    return (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float16), labels


def flipped(
    features: NDArray[np.float16], labels: NDArray[np.int32], rate: float, seed: int, kind: str = "symmetric"
) -> NDArray[np.int32]:
    """Return labels [N] of which a share `rate` is changed to another class."""
    generator = np.random.default_rng([seed, round(rate * 1000)])
    num_classes, changed = int(labels.max()) + 1, labels.copy()
    chosen = generator.choice(len(labels), round(rate * len(labels)), replace=False)
    if kind == "symmetric":
        changed[chosen] = (labels[chosen] + generator.integers(1, num_classes, len(chosen))) % num_classes
        return changed
    means = np.stack([features[labels == one].astype(np.float32).mean(0) for one in range(num_classes)])
    means -= means.mean(0)
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    similarity = means @ means.T
    np.fill_diagonal(similarity, -2)
    closest = np.argsort(-similarity, axis=1)[:, :_SIMILAR]
    changed[chosen] = closest[labels[chosen], generator.integers(0, closest.shape[1], len(chosen))]
    return changed


def held_out_probabilities(features: NDArray[Any], labels: NDArray[np.int32], inverse: float) -> NDArray[np.float64]:
    """Return probabilities [N, K] of a logistic regression that has not seen the sample."""
    probabilities = np.zeros((len(labels), int(labels.max()) + 1))
    for seen, rest in StratifiedKFold(_FOLDS, shuffle=True, random_state=0).split(features, labels):
        model = LogisticRegression(C=inverse, max_iter=200).fit(features[seen], labels[seen])
        probabilities[np.ix_(rest, model.classes_)] = model.predict_proba(features[rest])
    return probabilities


def neighbour_probabilities(features: NDArray[Any], labels: NDArray[np.int32]) -> NDArray[np.float64]:
    """Return the shares of labels [N, K] among the nearest neighbours by cosine, the sample itself left out."""
    found = NearestNeighbors(n_neighbors=_NEIGHBOURS + 1, metric="cosine").fit(features).kneighbors(features)[1]
    others = np.array([row[row != index][:_NEIGHBOURS] for index, row in enumerate(found)])
    probabilities = np.zeros((len(labels), int(labels.max()) + 1))
    for column in range(_NEIGHBOURS):
        probabilities[np.arange(len(labels)), labels[others[:, column]]] += 1 / _NEIGHBOURS
    return probabilities


def _compare(
    features: NDArray[np.float16], true: NDArray[np.int32], given: NDArray[np.int32], inverses: list[float]
) -> dict[str, float]:
    """Return the figures of one set of labels: ours, and cleanlab's where labels are wrong."""
    judged = judge_labels(features, given, int(true.max()) + 1)
    wrong = given != true
    figures = {"flagged": float(judged.wrong_label.mean())}
    if not wrong.any():
        return figures
    figures |= {"ap": float(average_precision_score(wrong, judged.wrong_label_score))} | _found(
        "", judged.wrong_label, wrong
    )
    figures["proposed"] = float((judged.other_label == true)[wrong].mean())
    values = features.astype(np.float32)
    for inverse in inverses:
        probabilities = held_out_probabilities(values, given, inverse)
        for score in _SCORES:
            quality = get_label_quality_scores(given, probabilities, method=score)
            figures[f"cleanlab_ap_{inverse:g}_{score}"] = float(average_precision_score(wrong, -quality))
        figures |= _found(f"cleanlab_{inverse:g}_", find_label_issues(given, probabilities), wrong)
    quality = get_label_quality_scores(given, neighbour_probabilities(values, given))
    figures["cleanlab_ap_neighbours"] = float(average_precision_score(wrong, -quality))
    return figures


def _found(prefix: str, flagged: NDArray[np.bool_], wrong: NDArray[np.bool_]) -> dict[str, float]:
    hits = float((flagged & wrong).sum())
    return {
        f"{prefix}precision": hits / max(1, int(flagged.sum())),
        f"{prefix}recall": hits / max(1, int(wrong.sum())),
    }


def mixed(
    features: NDArray[np.float16], labels: NDArray[np.int32], strangers: NDArray[np.float16], rate: float, seed: int
) -> tuple[NDArray[np.float16], NDArray[np.int32], NDArray[np.bool_]]:
    """Return features, labels and which are strangers, after so many were added with labels drawn from the others'.

    No stranger is taken twice; where there are too few, all are.
    """
    generator = np.random.default_rng([seed, round(rate * 1000)])
    number = min(round(rate * len(labels)), len(strangers))
    added = strangers[generator.choice(len(strangers), number, replace=False)]
    order = generator.permutation(len(labels) + number)
    all_labels = np.concatenate([labels, generator.choice(labels, number)])
    return np.concatenate([features, added])[order], all_labels[order], order >= len(labels)


def _outliers(features: NDArray[np.float16], labels: NDArray[np.int32], strange: NDArray[np.bool_]) -> dict[str, float]:
    """Return the figures of finding strangers: ours, and the average precision of cleanlab's neighbour distances."""
    judged = judge_outliers(features, labels, judge_labels(features, labels, int(labels.max()) + 1).other_label)
    figures = {"strangers": float(strange.sum()), "honest_flagged": float(judged.outlier[~strange].mean())}
    if not strange.any():
        return figures
    typical = OutOfDistribution().fit_score(features=features.astype(np.float32), verbose=False)
    return figures | {
        "ap": float(average_precision_score(strange, judged.outlier_score)),
        "cleanlab_ap": float(average_precision_score(strange, -typical)),
        **_found("", judged.outlier, strange),
    }


def _measure_outliers(
    features: NDArray[np.float16], labels: NDArray[np.int32], strangers: list[Path], arguments: argparse.Namespace
) -> dict[str, list[dict[str, float]]]:
    """Print a table of how well strangers are found, and return its figures by kind and rate."""
    honest = np.zeros(len(labels), dtype=np.bool_)
    results = {"none": [_outliers(features, labels, honest)]}
    print(f"no strangers: {results['none'][0]['honest_flagged']:.2%} flagged\n")
    print("| strangers | share | average precision | lowest seed | cleanlab | precision | recall | others flagged |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for dataset in strangers:
        strange, _ = features_of(dataset, arguments.out)
        for rate in arguments.stranger_rates:
            sets = [mixed(features, labels, strange, rate, seed) for seed in range(arguments.seeds)]
            rows = results[f"{dataset.name}-{rate:g}"] = [_outliers(*one) for one in sets]
            mean = _mean(rows)
            values = [
                mean["ap"],
                min(row["ap"] for row in rows),
                mean["cleanlab_ap"],
                mean["precision"],
                mean["recall"],
            ]
            shown = " | ".join(f"{value:.3f}" for value in values)
            share = mean["strangers"] / len(labels)
            print(f"| {dataset.name} | {share:.1%} | {shown} | {mean['honest_flagged']:.2%} |", flush=True)
    return results


def _mean(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def _print_labels(results: dict[float, list[dict[str, float]]], inverses: list[float]) -> None:
    print(
        "\n| wrong labels | average precision | lowest seed | cleanlab, probabilities | cleanlab, neighbours ", end=""
    )
    print("| precision | recall | cleanlab: precision | recall | right class proposed |")
    print("|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
    for rate, rows in results.items():
        mean = _mean(rows)
        if "ap" not in mean:
            print(f"| 0 % | {mean['flagged']:.2%} of all labels flagged |")
            continue
        best = max(mean[f"cleanlab_ap_{inverse:g}_{score}"] for inverse in inverses for score in _SCORES)
        issues = max((f"cleanlab_{inverse:g}_" for inverse in inverses), key=lambda one: mean[f"{one}recall"])
        values = [mean["ap"], min(row["ap"] for row in rows), best, mean["cleanlab_ap_neighbours"], mean["precision"]]
        values += [mean["recall"], mean[f"{issues}precision"], mean[f"{issues}recall"], mean["proposed"]]
        print(f"| {rate:.0%} | " + " | ".join(f"{value:.3f}" for value in values) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--rates", type=float, nargs="+", default=[0.0, 0.02, 0.05, 0.1, 0.2])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--flips", choices=["symmetric", "similar"], default="symmetric")
    parser.add_argument("--inverse-regularization", type=float, nargs="+", default=[10.0, 100.0])
    parser.add_argument("--strangers", type=Path, nargs="+")
    parser.add_argument("--stranger-rates", type=float, nargs="+", default=[0.02, 0.05])
    parser.add_argument("--out", type=Path, default=Path("bench-quality"))
    arguments = parser.parse_args()
    features, labels = features_of(arguments.dataset, arguments.out)
    print(f"{len(labels):,} pictures, {labels.max() + 1} classes, {arguments.flips} flips, {arguments.seeds} seeds")
    written: dict[str, Any] = {}
    if arguments.strangers is not None:
        written["outliers"] = _measure_outliers(features, labels, arguments.strangers, arguments)
    else:
        inverses = arguments.inverse_regularization
        results: dict[float, list[dict[str, float]]] = {}
        for rate in arguments.rates:
            for seed in range(arguments.seeds if rate else 1):
                given = flipped(features, labels, rate, seed, arguments.flips)
                results.setdefault(rate, []).append(_compare(features, labels, given, inverses))
                print(rate, seed, {name: round(value, 3) for name, value in results[rate][-1].items()}, flush=True)
        written["labels"] = results
        _print_labels(results, inverses)
    kind = "outliers" if arguments.strangers is not None else arguments.flips
    (arguments.out / f"{arguments.dataset.name}-{kind}.json").write_text(json.dumps(written, indent=2) + "\n")


if __name__ == "__main__":
    main()
