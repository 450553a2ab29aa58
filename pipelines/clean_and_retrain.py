"""The loop of curation without a person: inspect, mark, make a view, train again, and compare on the same test split.

    python -m pipelines.clean_and_retrain DATASET [--out runs/clean-and-retrain] [--flip-labels 0.2] [--heads]

1. A model is trained on DATASET as it is.
2. `lmk-inspect` judges the labels of the training split, and marks what it is sure of (--min-confidence).
3. `lmk-shard subset --marks` makes a view without the wrong labels, and a model is trained on it.
4. Both are evaluated on the test split of DATASET. No picture of it is inspected or marked, so both are judged by the
   same labels.

With --flip-labels SHARE, the loop begins with a view of DATASET in which this share of the training labels is wrong:
each is replaced by another class, drawn by --flip-seed. Labels of DATASET are taken for right. The table then has three
rows, noisy, cleaned and clean, and says which share of the loss the loop regains. Nothing after the first step sees
which labels were flipped, except the counts at the end.

Training: `lmk-train --model MODEL --epochs EPOCHS --seed SEED`. Words after `--` are further options of `lmk-train`,
such as `-- --loss ce --batch-size 128`. With --heads, only heads are trained, on features of the frozen backbone that
are computed once for each view.

The table has means over the seeds; the difference to the first row has a 95 % interval by a paired bootstrap over the
test pictures. It is also written to OUT/table.md.

Resume: finished steps are not repeated. After an interruption, run the same command again. Other settings in the same
--out are refused.

Hardware: a CPU suffices for some thousands of pictures and --heads: a minute for each view, then seconds for each seed.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lmk_data.dataset import ShardedDataset
from lmk_data.dataset.inspection import SAMPLES
from lmk_data.errors import UserError
from lmk_data.system.terminal import run_command
from lmk_data.views.marks import Mark, MarksFile
from lmk_train.config.option import require
from lmk_train.runs.folder import RunFolder
from pipelines.scores import Scores, as_markdown
from pipelines.steps import evaluate, inspect, train, train_head, view

_TRAIN, _TEST = "train", "test"
_FIRST = "as-they-are"


@dataclass(frozen=True)
class Loop:
    """The settings of the loop.

    Attributes:
        dataset: that is cleaned; it has a test split.
        out: folder of views, runs and the table.
        training: options of `lmk-train`, without the seed.
        heads: whether only heads are trained, on cached features.
        seeds: number of trainings on each view.
        min_confidence: what `lmk-inspect` needs to mark a picture.
        flipped: share of the training labels that are made wrong first; 0 for none.
        flip_seed: draws these labels.
    """

    dataset: Path
    out: Path
    training: tuple[object, ...] = ()
    heads: bool = False
    seeds: int = 1
    min_confidence: float = 0.9
    flipped: float = 0.0
    flip_seed: int = 0


def flip_labels(dataset: ShardedDataset, share: float, seed: int) -> dict[str, Mark]:
    """Return marks that give a share of the training pictures, drawn by a seed, another class of the training split."""
    index = dataset.index(_TRAIN, ["key", "landmark_id"]).sort_values("key")
    labels, classes = pd.factorize(index["landmark_id"], sort=True)
    require(len(classes) > 1, str(dataset.location), len(classes), "two or more classes in the training split")
    random = np.random.default_rng(seed)
    rows = np.sort(random.choice(len(index), round(share * len(index)), replace=False))
    others = (labels[rows] + random.integers(1, len(classes), len(rows))) % len(classes)
    keys = index["key"].to_numpy()[rows]
    return {str(key): Mark("relabel", str(classes[other])) for key, other in zip(keys, others, strict=True)}


def clean_and_retrain(loop: Loop) -> str:
    """Run the steps that are not finished and return the counts and the table as Markdown; OUT gets table.md too."""
    _check(loop)
    loop.out.mkdir(parents=True, exist_ok=True)
    with ShardedDataset.open(str(loop.dataset)) as dataset:
        truth = dataset.index(_TRAIN, ["key", "landmark_id"]).set_index("key")["landmark_id"].astype(str)
        targets = dataset.index(_TEST, ["key", "label"]).set_index("key")["label"].sort_index()
        flips = flip_labels(dataset, loop.flipped, loop.flip_seed)
    first = {_FIRST: loop.dataset}
    if flips:
        _write_flips(loop.out / "flips.csv", flips)
        first = {"noisy": view(loop.dataset, loop.out / "noisy", "--marks", loop.out / "flips.csv")}
    (inspected,) = first.values()
    confidence = ("--split", _TRAIN, "--min-confidence", loop.min_confidence)
    marked = inspect(inspected, loop.out / "inspection", loop.out / "marks.csv", *confidence)
    marks = MarksFile(marked).read()
    lines = counts(pd.read_parquet(loop.out / "inspection" / SAMPLES), marks, loop.min_confidence)
    lines += [recovered(truth, flips, marks)] if flips else []
    cleaned = {"cleaned": view(inspected, loop.out / "cleaned", "--marks", marked)} if marks else {}
    last = {"clean": loop.dataset} if flips else {}
    scores = {name: _scores(loop, name, path, targets) for name, path in (first | cleaned | last).items()}
    lines += ["", as_markdown(scores, "training labels", next(iter(first))), "", _footnote(loop)]
    if flips and marks:
        lines.append(regained(*scores.values()))
    text = "\n".join([*lines, ""])
    (loop.out / "table.md").write_text(text)
    return text


def counts(samples: pd.DataFrame, marks: dict[str, Mark], min_confidence: float) -> list[str]:
    """Return lines about what was inspected (rows of quality.parquet), flagged and marked."""
    flagged = f"{samples['wrong_label'].sum():,} flagged as wrong labels, {samples['outlier'].sum():,} as outliers"
    actions = [mark.action for mark in marks.values()]
    marked = f"{actions.count('exclude'):,} excluded, {actions.count('relabel'):,} relabelled"
    return [
        f"{len(samples):,} training pictures inspected: {flagged}.",
        f"Marked at a confidence of at least {min_confidence:g}: {marked}.",
    ]


def recovered(truth: pd.Series, flips: dict[str, Mark], marks: dict[str, Mark]) -> str:
    """Return a line about the flipped labels that the marks found; `truth` has the right class by key."""
    found = flips.keys() & marks.keys()
    right = sum(marks[key].landmark_id == truth[key] for key in found)
    return (
        f"Of {len(flips):,} flipped labels {len(found):,} are marked, {right:,} of these with the right class; "
        f"{len(marks) - len(found):,} marks are on other labels."
    )


def regained(noisy: Scores, cleaned: Scores, clean: Scores) -> str:
    """Return a line about the share of the loss, in balanced accuracy, that cleaning regained."""
    before, after, best = (100 * scores.metrics["macro_recall"].mean() for scores in (noisy, cleaned, clean))
    if best <= before:
        return "The flipped labels cost no balanced accuracy."
    share = (after - before) / (best - before)
    return f"Regained: {share:.0%} of the {best - before:.1f} points of balanced accuracy that the flipped labels cost."


def _footnote(loop: Loop) -> str:
    what = "Heads on cached features" if loop.heads else "Whole models"
    seeds = f"{loop.seeds} seed{'s' * (loop.seeds != 1)}"
    return f"{what}, {' '.join(map(str, loop.training))}, {seeds}; in %, on the test split of {loop.dataset}."


def _check(loop: Loop) -> None:
    """Raise UserError for mistakes that would only show after a training."""
    require(loop.seeds >= 1, "--seeds", loop.seeds, "at least 1")
    require(0 <= loop.flipped < 1, "--flip-labels", loop.flipped, "at least 0 and below 1")
    require(0 <= loop.min_confidence <= 1, "--min-confidence", loop.min_confidence, "between 0 and 1")
    with ShardedDataset.open(str(loop.dataset)) as dataset:
        if _TEST not in dataset.splits:
            raise UserError(f"{loop.dataset}: has no test split to compare on; build it with --split 0.72 0.18 0.1")


def _write_flips(path: Path, flips: dict[str, Mark]) -> None:
    """Write the marks that flip labels; raise UserError if the file has others."""
    file = MarksFile(path)
    if file.read() not in ({}, flips):
        raise UserError(f"{path}: flips other labels; name another --out, or delete this folder")
    file.apply(flips)


def _scores(loop: Loop, name: str, dataset: Path, targets: pd.Series) -> Scores:
    """Train with every seed and return what is right on the test split of the loop's dataset; `targets` by key."""
    step, metrics, correct = train_head if loop.heads else train, [], []
    for seed in range(loop.seeds):
        run = step(dataset, loop.out / "runs" / f"{name}-{seed}", *loop.training, "--seed", seed)
        metrics.append(evaluate(run, _TEST, loop.dataset))
        found = pd.read_parquet(RunFolder(run).predictions(_TEST)).set_index("key").loc[targets.index]
        correct.append((found["target"] == found["label_1"]).to_numpy(bool))
    return Scores(pd.DataFrame(metrics), np.stack(correct), targets.to_numpy(np.int64))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path, metavar="DATASET")
    parser.add_argument("--out", type=Path, default=Path("runs") / "clean-and-retrain")
    parser.add_argument("--model", default="efficientnet-lite0", help="the model that is trained")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=1, help="trainings on each view")
    parser.add_argument("--heads", action="store_true", help="train only heads, on cached features")
    parser.add_argument("--min-confidence", type=float, default=0.9, help="what lmk-inspect needs to mark a picture")
    parser.add_argument("--flip-labels", type=float, default=0.0, metavar="SHARE", help="make labels wrong first")
    parser.add_argument("--flip-seed", type=int, default=0)
    words = sys.argv[1:]
    end = words.index("--") if "--" in words else len(words)
    given: Any = parser.parse_args(words[:end])
    training = ("--model", given.model, "--epochs", given.epochs, *words[end + 1 :])
    loop = Loop(
        dataset=given.dataset,
        out=given.out,
        training=training,
        heads=given.heads,
        seeds=given.seeds,
        min_confidence=given.min_confidence,
        flipped=given.flip_labels,
        flip_seed=given.flip_seed,
    )
    return run_command("clean_and_retrain", lambda: print(clean_and_retrain(loop)))


if __name__ == "__main__":
    raise SystemExit(main())
