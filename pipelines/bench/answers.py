"""What calibration, neighbours and a least confidence do to answers, where many pictures show no landmark.

    python -m pipelines.bench.answers RUN ... --test DATASET --strangers DATASET ... [--out bench-answers]

RUN are trained runs whose dataset has a training split. All splits of the --test dataset are pictures of the run's
landmarks that it was not trained on; all splits of the --strangers datasets show something else. The pictures of the
test are cut into two halves by class: temperature and blend are fitted on one half and judged on the other together
with all strangers, and the other way round; each figure is the mean of both. Features and logits are kept in --out.

Columns: accuracy and expected calibration error of the landmarks; GAP of the landmarks alone, and with the strangers,
as the challenge defines it; at a least confidence of 0.5, the share of landmarks that are answered rightly, the share
of answers that are right, and GAP. Prints Markdown and writes answers.csv to --out.
"""

import argparse
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from lmk_data.dataset import ShardedDataset
from lmk_data.system.terminal import run_command
from lmk_train.config.arguments import CacheOptions
from lmk_train.config.training import ResolvedConfig
from lmk_train.data.augment import Augmentation, Preprocess
from lmk_train.data.reader import SplitReader
from lmk_train.evaluation.calibration import fit_temperature, probabilities_of
from lmk_train.evaluation.inference import Evaluator
from lmk_train.evaluation.metrics import calibration_error, global_average_precision
from lmk_train.models.registry import ARCHITECTURES, build_model
from lmk_train.neighbours.blend import blended, pick_blends
from lmk_train.neighbours.search import nearest, unit_vectors
from lmk_train.runs.checkpoint import BEST, load_checkpoint, weights_to_evaluate
from lmk_train.runs.classes import Classes
from lmk_train.runs.folder import RunFolder
from lmk_train.runs.tensor_file import restore_weights
from lmk_train.runtime.precision import Precision, resolve_device

_NEIGHBOURS = (5, 20)
_MIN_CONFIDENCE = 0.5
_BATCH = 32


@dataclass(frozen=True)
class Seen:
    """What a run makes of N pictures: what its head takes, float32 [N, D], logits float32 [N, K], targets int64 [N]."""

    described: NDArray[np.float32]
    logits: NDArray[np.float32]
    targets: NDArray[np.int64]

    def select(self, chosen: NDArray[np.bool_]) -> "Seen":
        """Return the chosen pictures, a mask bool [N]."""
        return Seen(self.described[chosen], self.logits[chosen], self.targets[chosen])


class Run:
    """The best checkpoint of a run, and what it makes of the splits of datasets."""

    def __init__(self, run: Path, kept: Path) -> None:
        """Load the checkpoint; what it makes of pictures is kept in the folder `kept`."""
        state = load_checkpoint(run, BEST)
        self.config, self.classes = ResolvedConfig.from_json(state["config"]), Classes.of_checkpoint(state)
        device = resolve_device("auto")
        model = build_model(self.config, len(self.classes.ids), state["recipe"]["size"])
        restore_weights(model, weights_to_evaluate(state), RunFolder(run).checkpoint(BEST))
        preprocess = Preprocess(ARCHITECTURES[self.config.model].normalization, Augmentation(), device)
        model.to(device).to(memory_format=torch.channels_last)
        self._evaluator = Evaluator(model, preprocess, Precision.resolve("off", device), _BATCH)
        self._kept = kept

    def see(self, location: str, split: str | None = None) -> Seen:
        """Return what the run makes of one split of a dataset, or of all."""
        with ShardedDataset.open(location) as dataset:
            splits = [split] if split else [name for name in dataset.splits if dataset.num_samples(name)]
            return _joined([self._see_split(dataset, name) for name in splits])

    def _see_split(self, dataset: ShardedDataset, split: str) -> Seen:
        path = self._kept / f"{dataset.manifest['content_sha256'][:16]}-{split}.npz"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with closing(SplitReader(dataset, split, CacheOptions().resolved())) as reader:
                targets = self.classes.labels_of(dataset)[reader.labels]
                described, logits = self._evaluator.describe(reader, np.arange(len(reader), dtype=np.int64))
            np.savez(path, described=described, logits=logits, targets=targets)
        with np.load(path) as found:
            return Seen(found["described"], found["logits"], found["targets"])


def _joined(parts: list[Seen]) -> Seen:
    names = ("described", "logits", "targets")
    return Seen(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def halves(targets: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return a half of each class, bool [N], drawn with seed 0; the larger halves alternate."""
    random, first = np.random.default_rng(0), np.zeros(len(targets), dtype=bool)
    for number, label in enumerate(np.unique(targets).tolist()):
        own = random.permutation(np.flatnonzero(targets == label))
        first[own[: (len(own) + number % 2) // 2]] = True
    return first


def answers(training: Seen, fitted: Seen, asked: Seen) -> dict[str, NDArray[np.float32]]:
    """Return the probabilities of the pictures `asked`, float32 [N, K], for each way to make them.

    Args:
        training: the training pictures.
        fitted: validation pictures, on which temperature and blends are fitted.
        asked: the pictures to answer.
    """
    temperature = fit_temperature(fitted.logits, fitted.targets)
    logits = torch.from_numpy(asked.logits)
    calibrated = (logits / temperature).softmax(dim=1)
    found = {"classifier": logits.softmax(dim=1), "calibrated": calibrated}
    index = unit_vectors(torch.from_numpy(training.described)).half().numpy()
    cosines, rows = nearest(index, unit_vectors(torch.from_numpy(fitted.described)), max(_NEIGHBOURS))
    is_target = training.targets[rows.numpy()] == fitted.targets[:, None]
    of_target = probabilities_of(fitted.logits, fitted.targets, temperature)
    blends = pick_blends(of_target, cosines.numpy(), is_target)
    for number in _NEIGHBOURS:
        cosines, rows = nearest(index, unit_vectors(torch.from_numpy(asked.described)), number)
        labels = torch.from_numpy(training.targets[rows.numpy()])
        found[f"calibrated, {number} neighbours"] = blended(calibrated, cosines, labels, blends[number - 1])
    return {name: probabilities.numpy() for name, probabilities in found.items()}


def figures(probabilities: NDArray[np.float32], targets: NDArray[np.int64]) -> dict[str, float]:
    """Return the figures of probabilities float32 [N, K]; targets int64 [N] are -1 for strangers."""
    correct, confidence = probabilities.argmax(axis=1) == targets, probabilities.max(axis=1).astype(np.float64)
    shown, sure = targets >= 0, confidence >= _MIN_CONFIDENCE
    num_landmarks = int(shown.sum())

    def gap(chosen: NDArray[np.bool_]) -> float:
        keys = np.arange(int(chosen.sum())).astype(str).astype(object)
        return global_average_precision(correct[chosen], confidence[chosen], keys, num_landmarks) or 0.0

    return {
        "accuracy": float(correct[shown].mean()),
        "calibration_error": calibration_error(correct[shown], confidence[shown]) or 0.0,
        "gap": gap(shown),
        "gap_with_strangers": gap(np.ones(len(targets), dtype=bool)),
        "answered_right": float((correct & sure).sum() / num_landmarks),
        "right_of_answered": float(correct[sure].mean()) if sure.any() else 0.0,
        "gap_of_answered": gap(sure),
    }


def judge(run: Path, test: str, strangers: list[str], kept: Path) -> pd.DataFrame:
    """Return the figures of a run by way of answering: the mean of both halves."""
    loaded = Run(run, kept)
    training, known = loaded.see(loaded.config.shards, "train"), loaded.see(test)
    others = _joined([loaded.see(location) for location in strangers])
    others = Seen(others.described, others.logits, np.full(len(others.targets), -1))
    first, rows = halves(known.targets), []
    for half in (first, ~first):
        asked = _joined([known.select(~half), others])
        for way, probabilities in answers(training, known.select(half), asked).items():
            rows.append({"answers": way, **figures(probabilities, asked.targets)})
    return pd.DataFrame(rows).groupby("answers", sort=False).mean()


def as_markdown(table: pd.DataFrame) -> str:
    """Return a table of shares in percent; `run` and `answers` are its index."""
    lines = [
        "| run | answers | accuracy | calibration error | GAP | GAP with strangers "
        "| landmarks answered rightly | answers that are right | GAP of these |",
        f"|---|---|{'---:|' * len(table.columns)}",
    ]
    for (run, way), row in zip(table.index.tolist(), table.to_numpy(), strict=True):
        lines.append(f"| {run} | {way} | {' | '.join(f'{100 * value:.1f}' for value in row)} |")
    return "\n".join(lines)


def benchmark(runs: list[Path], test: str, strangers: list[str], out: Path) -> str:
    """Judge runs, write answers.csv, and return the table of all runs and of their mean as Markdown."""
    found = {run.name: judge(run, test, strangers, out / run.name) for run in runs}
    table = pd.concat(found, names=["run"])
    mean = pd.concat({"mean": table.groupby("answers", sort=False).mean()}, names=["run"])
    table = pd.concat([table, mean])
    table.to_csv(out / "answers.csv", float_format="%.6f")
    return as_markdown(table)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("--test", required=True, metavar="DATASET")
    parser.add_argument("--strangers", required=True, nargs="+", metavar="DATASET")
    parser.add_argument("--out", type=Path, default=Path("bench-answers"))
    given = parser.parse_args()
    return run_command("answers", lambda: print(benchmark(given.runs, given.test, given.strangers, given.out)))


if __name__ == "__main__":
    raise SystemExit(main())
