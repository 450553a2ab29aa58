"""A long-tailed benchmark on real landmarks: which loss and head help the rare classes, over ten seeds.

    python -m pipelines.landmarks_lt IMAGES [--out runs/landmarks-lt] [--seeds 10] [--fine-tune]

IMAGES is a folder or an archive of class folders, one landmark each, such as 40 landmarks with 25 to 400 photos.

Pictures: near duplicates are dropped. A fifth of each class is the test split, always the same. Of the rest, the class
ranked r of K by size keeps int(100 * 50^(-r / (K - 1))) training pictures, at least 2, drawn once (seed 0).

Training: heads on the features of a frozen EfficientNet-Lite0 with its bundled weights, computed once, without
augmentation: AdamW for 30 epochs, batch 32. With --fine-tune, whole networks are trained too, with the defaults of
`lmk-train`, three seeds each; "retrained head" keeps the first one's backbone and trains a new head on its features
(cRT). The last epoch is evaluated; nothing is chosen on the test split.

The table: accuracy if every class were as frequent in the test as in training (its recall, weighted by its training
pictures); mean recall of all classes (balanced accuracy), of those with 20 to 100 and with fewer than 20 training
pictures; macro F1 and GAP, each a mean over the seeds. The difference to cross entropy has a 95 % interval by
a paired bootstrap over the test pictures. `table.md` and `table.csv` are written to --out.

Resume: finished trainings are not repeated. After an interruption, run the same command again.

Hardware: a CPU suffices. Heads take a few seconds each; a fine-tuning takes minutes on 2 cores.
"""

import argparse
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lmk_data.dataset import ShardedDataset
from lmk_data.system.terminal import run_command
from lmk_train.config.option import require
from lmk_train.config.training import ResolvedConfig, TrainConfig
from lmk_train.data.features import CachedFeatures, compute_features, no_preprocessing
from lmk_train.evaluation.inference import Evaluator
from lmk_train.evaluation.metrics import summarize
from lmk_train.models.registry import build_model
from lmk_train.runs.checkpoint import BEST, load_checkpoint, weights_to_evaluate
from lmk_train.runs.classes import Classes
from lmk_train.runs.folder import RunFolder
from lmk_train.runtime.precision import Precision, resolve_device
from lmk_train.training.loop import train as train_on_features
from pipelines.methods import Method, slug
from pipelines.scores import METRICS, Scores, as_markdown
from pipelines.steps import evaluate, run, train, train_head, view

_LARGEST, _IMBALANCE, _SMALLEST = 100, 50, 2
_HEAD: dict[str, Any] = {
    "model": "efficientnet-lite0",
    "epochs": 30,
    "freeze_backbone_epochs": 30,
    "batch_size": 32,
    "hflip": 0.0,
    "color_jitter": 0.0,
}
METHODS = {
    "cross entropy": Method({"loss": "ce"}),
    "cross entropy, class-balanced sampling": Method({"loss": "ce", "sampling": "class-balanced"}),
    "cross entropy, deferred re-weighting": Method({"loss": "ce", "drw_start": 0.8}),
    "LDAM": Method({"loss": "ldam"}),
    "LDAM-DRW": Method({"loss": "ldam", "drw_start": 0.8}),
    "LDAM-DRW from half": Method({"loss": "ldam", "drw_start": 0.5}),
    "balanced softmax": Method({"loss": "balanced-softmax"}),
    "balanced softmax, cosine head": Method({"loss": "balanced-softmax", "head": "cosine"}),
    "ArcFace, 1 centre": Method({"loss": "arcface", "subcenters": 1}),
    "ArcFace, 3 centres": Method({"loss": "arcface"}),
}
_ALSO_WHOLE = (
    "cross entropy",
    "LDAM",
    "LDAM-DRW",
    "LDAM-DRW from half",
    "balanced softmax",
    "balanced softmax, cosine head",
)
FINE_TUNED = {name: METHODS[name] for name in _ALSO_WHOLE} | {
    "balanced softmax, mixup": Method({"loss": "balanced-softmax", "mixup": 0.2}),
    "balanced softmax, cutmix": Method({"loss": "balanced-softmax", "cutmix": 1}),
    "balanced softmax, GeM, neck": Method({"loss": "balanced-softmax", "pool": "gem", "neck": 512}),
    "ArcFace, GeM, neck": Method({"loss": "arcface", "pool": "gem", "neck": 512}),
    "cross entropy, retrained head": Method({"loss": "ce", "sampling": "class-balanced"}, backbone="cross entropy"),
}
_FINE_TUNING: tuple[object, ...] = ("--model", "efficientnet-lite0")
_FINE_TUNING_SEEDS = 3
_BUILD: tuple[object, ...] = ("--no-report",)


@dataclass(frozen=True)
class Judged:
    """One training's metrics, and the targets and best labels of the test pictures by key, int64 [N]."""

    metrics: dict[str, Any]
    targets: NDArray[np.int64]
    labels: NDArray[np.int64]


def draw_tail(sizes: pd.Series) -> dict[str, int]:
    """Return how many training pictures each class keeps, by name; `sizes` are what it has without the test split."""
    ranked = sizes.sort_index().sort_values(ascending=False, kind="stable")
    wanted = [int(_LARGEST * _IMBALANCE ** (-rank / max(1, len(ranked) - 1))) for rank in range(len(ranked))]
    return {
        str(name): min(int(size), max(_SMALLEST, number))
        for (name, size), number in zip(ranked.items(), wanted, strict=True)
    }


def make_datasets(images: Path, out: Path) -> tuple[Path, Path]:
    """Build the long-tailed training set and the test set; return both. Raises UserError without enough classes."""
    everything = out / "everything"
    source = ("--images", images, "--labels", "classes", "--min-samples", 10, *_BUILD)
    run("lmk-shard", "build", *source, "--out", everything, "--split", 0.8, 0, 0.2)
    clean = view(everything, out / "clean", "--drop-duplicates", "near")
    with ShardedDataset.open(clean) as dataset:
        rest, test = (_label_table(dataset, split) for split in ("train", "test"))
    require(rest["class"].nunique() > 1, str(images), rest["class"].nunique(), "two or more classes of 10 pictures")
    kept, random = draw_tail(rest["class"].value_counts()), np.random.default_rng(0)
    rest = rest.iloc[random.permutation(len(rest))]
    tail = pd.concat([rest[rest["class"] == name].head(number) for name, number in sorted(kept.items())])
    made = []
    for name, table, split in (("train", tail, (1, 0, 0)), ("test", test, (0, 1, 0))):
        table.sort_values("path").to_csv(out / f"{name}.csv", index=False)
        labels = ("--labels", out / f"{name}.csv", "--id-column", "path", "--label-column", "class")
        made.append(out / name)
        chosen = ("--min-samples", 1, "--split", *split, *_BUILD)
        run("lmk-shard", "build", "--images", images, *labels, "--out", made[-1], *chosen)
    return made[0], made[1]


def _label_table(dataset: ShardedDataset, split: str) -> pd.DataFrame:
    """Return the columns `path` and `class` of a split."""
    index = dataset.index(split, ["source", "landmark_id"])
    return pd.DataFrame({"path": index["source"], "class": index["landmark_id"].astype(str)})


def train_heads(training: Path, test: Path, out: Path, seeds: int, counts: NDArray[np.int64]) -> dict[str, Scores]:
    """Train every method's head with every seed on cached features, unless it is done, and return the scores."""
    features = {}
    for dataset in (training, test):
        features[dataset] = out / f"features-{dataset.name}"
        compute_features(_head_config(dataset, out, {}, 0).resolved(), features[dataset], print)
    scores = {}
    with ShardedDataset.open(test) as judged:
        for name, method in METHODS.items():
            found = []
            for seed in range(seeds):
                config = _head_config(training, out / "heads" / f"{slug(name)}-{seed}", method.options, seed)
                folder = RunFolder(config.resolved().out)
                if not (folder.path / "trained").exists():
                    begun = replace(config, resume=folder.checkpoint("last").exists())
                    train_on_features(begun, features=features[training], evaluate_test=False)
                    (folder.path / "trained").touch()
                found.append(_judge(config.resolved(), judged, features[test]))
            scores[name] = _scores(found, counts)
            print(f"{name}: balanced accuracy {100 * scores[name].metrics['macro_recall'].mean():.1f} %", flush=True)
    return scores


def fine_tune(training: Path, test: Path, out: Path, counts: NDArray[np.int64]) -> dict[str, Scores]:
    """Train whole networks with the defaults, unless it is done, and return the scores."""
    scores, folders = {}, out / "fine-tuned"
    for name, method in FINE_TUNED.items():
        found = []
        for seed in range(_FINE_TUNING_SEEDS):
            folder, asked = folders / f"{slug(name)}-{seed}", (*_FINE_TUNING, *method.arguments(), "--seed", seed)
            if method.backbone is None:
                done = train(training, folder, *asked)
            else:
                kept = RunFolder(folders / f"{slug(method.backbone)}-{seed}").checkpoint(BEST)
                done = train_head(training, folder / "head", *asked, "--weights", kept)
            metrics = evaluate(done, "val", test)
            table = pd.read_parquet(RunFolder(done).predictions("val")).sort_values("key")
            columns = (table[column].to_numpy(np.int64) for column in ("target", "label_1"))
            found.append(Judged(metrics, *columns))
        scores[name] = _scores(found, counts)
    return scores


def _head_config(dataset: Path, folder: Path, method: Mapping[str, Any], seed: int) -> TrainConfig:
    return TrainConfig(str(dataset), folder, **{**_HEAD, **method}, seed=seed, workers=1, amp="off", quiet=True)


def _judge(config: ResolvedConfig, judged: ShardedDataset, features: Path) -> Judged:
    """Evaluate a head on the features of the test set."""
    state = load_checkpoint(config.out, BEST)
    classes = Classes.of_checkpoint(state)
    device = resolve_device(config.device)
    model = build_model(config, len(classes.ids), judged.recipe.size)
    model.load_state_dict(weights_to_evaluate(state))
    evaluator = Evaluator(
        model.to(device), no_preprocessing, Precision.resolve(config.amp, device), _HEAD["batch_size"]
    )
    with closing(CachedFeatures.open(features, judged, config).reader("val")) as reader:
        found = evaluator.predict(reader, label_map=classes.labels_of(judged))
    return Judged(summarize(found, classes.train_counts), found.targets, found.labels[:, 0])


def _scores(found: list[Judged], train_counts: NDArray[np.int64]) -> Scores:
    """Return the scores of a method's seeds; `train_counts` are the training pictures of each class, [K]."""
    assert all(np.array_equal(one.targets, found[0].targets) for one in found), "all seeds see the same pictures"
    correct = np.stack([one.labels == one.targets for one in found])
    targets, metrics = found[0].targets, pd.DataFrame([one.metrics for one in found])
    weights = train_counts[targets] / np.bincount(targets)[targets]
    return Scores(metrics.assign(prior_accuracy=np.average(correct, axis=1, weights=weights)), correct, targets)


def benchmark(images: Path, out: Path, seeds: int, also_fine_tune: bool) -> str:
    """Run the steps that are not finished and return the tables as Markdown; OUT gets table.md and table.csv too."""
    require(seeds >= 1, "--seeds", seeds, "at least 1")
    out.mkdir(parents=True, exist_ok=True)
    training, test = make_datasets(images, out)
    with ShardedDataset.open(training) as dataset:
        counts = dataset.classes["train"].to_numpy(np.int64)
    found = {f"heads, {seeds} seeds": train_heads(training, test, out, seeds, counts)}
    if also_fine_tune:
        found[f"fine-tuned, {_FINE_TUNING_SEEDS} seeds"] = fine_tune(training, test, out, counts)
    lines = [f"{len(counts)} classes of {counts.max()} to {counts.min()} training pictures, {counts.sum()} in all."]
    tables = []
    for title, scores in found.items():
        lines += ["", f"{title}, in %:", "", as_markdown(scores, "method", "cross entropy")]
        for name, own in scores.items():
            named = own.metrics[list(METRICS)].rename_axis("seed").reset_index()
            tables.append(named.assign(training=title, method=name))
    text = "\n".join([*lines, ""])
    (out / "table.md").write_text(text)
    pd.concat(tables).to_csv(out / "table.csv", index=False, float_format="%.6f")
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path, metavar="IMAGES")
    parser.add_argument("--out", type=Path, default=Path("runs") / "landmarks-lt")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--fine-tune", action="store_true", help="train whole networks too, three seeds each")
    given = parser.parse_args()
    return run_command("landmarks_lt", lambda: print(benchmark(given.images, given.out, given.seeds, given.fine_tune)))


if __name__ == "__main__":
    raise SystemExit(main())
