"""CIFAR-10-LT, the long-tail benchmark of the LDAM paper: losses and methods since, two imbalances, several seeds.

    python -m pipelines.cifar10_lt TRAIN TEST [--out runs/cifar10-lt] [--imbalance 10 100] [--epochs 200] [--seeds 3]
        [--methods CE LDAM-DRW ...] [--jobs 1]

TRAIN and TEST are folders or zips of class folders of PNG or JPEG, as CIFAR-10 is often unpacked. The build re-encodes
the images as JPEG of quality 95 without chroma subsampling (4:4:4).

Training set: with n images in the largest class, class i of K keeps n * imbalance^(-i / (K - 1)) images. Classes are in
order of their names; images are drawn once (seed 0). TEST is a dataset of its own and is used whole.

Training: ResNet-32, random weights, batch 128, SGD 0.1, weight decay 2e-4, padded crop and flip, no colour jitter.
Warm-up lasts 2.5 % of training; the learning rate drops to a hundredth at 80 % and again at 90 %. These are the paper's
epochs 5, 160 and 180 of 200, scaled to --epochs. Deferred re-weighting starts at 80 %. "Retrained head" is cRT: the
backbone of the first method, with a new head that is trained for a twentieth of the epochs on class-balanced batches.
The last epoch is evaluated; nothing is chosen on the test set.

Table: every finished run in --out of these --epochs, whichever command trained it. One part after the other is
therefore possible: `--imbalance 100`, then `--imbalance 10 --methods CE LDAM-DRW --seeds 1`. table.csv has a row for
each run.

Resume: finished steps are not repeated. After an interruption, run the same command again. Other settings in the same
--out are refused. `--jobs N` trains N runs side by side, each with one thread and a log beside its folder.

Hardware: a CPU suffices. An epoch takes about 18 s at imbalance 100 (12,406 images) on 2 cores, and 30 s at 10
(20,431). A run of 200 epochs takes an hour or 1.6 hours, the 6 runs of a method about 8 hours. On an H200 with 16
cores, 31 steps a second were seen at imbalance 100: 10 minutes for a run, or for eight of them with --jobs 8.

Expected score: the published column, from Cao et al. 2019 (table 2). Their code keeps the best epoch on the test set,
which is slightly optimistic compared with the last epoch. The other methods were published with different trainings.
"""

import argparse
import re
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path, PurePath

import numpy as np
import pandas as pd

from lmk_data.errors import UserError
from lmk_data.system.terminal import run_command
from lmk_train.config.option import require
from pipelines.methods import Method, slug
from pipelines.steps import evaluate, is_trained, run, side_by_side, train

_NEW_HEAD = {"loss": "ce", "sampling": "class-balanced"}
_REFERENCE = ", reference SGD"
_REFERENCE_SGD = (sys.executable, "-m", "pipelines.bench.reference_sgd")
METHODS = {
    "CE": Method({"loss": "ce"}),
    "LDAM": Method({"loss": "ldam"}),
    "LDAM-DRW": Method({"loss": "ldam", "drw_start": 0.8}),
    "balanced softmax": Method({"loss": "balanced-softmax"}),
    "balanced softmax, cosine head": Method({"loss": "balanced-softmax", "head": "cosine"}),
    "balanced softmax, mixup": Method({"loss": "balanced-softmax", "mixup": 1}),
    "ArcFace": Method({"loss": "arcface"}),
    "CE, mixup": Method({"loss": "ce", "mixup": 1}),
    "CE, class-balanced sampling": Method({"loss": "ce", "sampling": "class-balanced"}),
    f"CE{_REFERENCE}": Method({"loss": "ce"}, program=_REFERENCE_SGD),
    f"LDAM-DRW{_REFERENCE}": Method({"loss": "ldam", "drw_start": 0.8}, program=_REFERENCE_SGD),
    "CE, retrained head": Method(_NEW_HEAD, backbone="CE"),
    "CE, mixup, retrained head": Method(_NEW_HEAD, backbone="CE, mixup"),
    "LDAM, retrained head": Method(_NEW_HEAD, backbone="LDAM"),
}
PUBLISHED = {  # top-1 accuracy, %
    (10, "CE"): 86.39,
    (10, "LDAM"): 86.96,
    (10, "LDAM-DRW"): 88.16,
    (100, "CE"): 70.36,
    (100, "LDAM"): 73.35,
    (100, "LDAM-DRW"): 77.03,
}
_TRAINING_SET = re.compile(r"train-([1-9][0-9]*)")
_PICTURES = {".png", ".jpg", ".jpeg"}
_BUILD = ("--size", 32, "--subsampling", "4:4:4", "--quality", 95, "--min-samples", 1)


def class_folders(folder: Path) -> dict[str, list[str]]:
    """Return the image names of each class folder of a folder or a zip; folders and images are sorted by name.

    Raises UserError if there are fewer than two classes or a class is empty.
    """
    root = zipfile.Path(folder) if zipfile.is_zipfile(folder) else folder
    classes = [path for path in root.iterdir() if path.is_dir()] if root.is_dir() else []
    found = {
        path.name: sorted(one.name for one in path.iterdir() if PurePath(one.name).suffix.lower() in _PICTURES)
        for path in sorted(classes, key=lambda path: path.name)
    }
    if len(found) < 2 or not all(found.values()):
        raise UserError(f"{folder}: needs two or more folders, one a class, with PNG or JPEG pictures in each")
    return found


def draw_tail(folder: Path, imbalance: float) -> pd.DataFrame:
    """Return a label table (columns `path` and `class`) of an exponentially imbalanced part of the class folders."""
    found = class_folders(folder)
    largest, random, rows = max(map(len, found.values())), np.random.default_rng(0), []
    for i, (name, files) in enumerate(found.items()):
        kept = min(len(files), max(1, int(largest * imbalance ** (-i / (len(found) - 1)))))
        rows += [(f"{name}/{files[j]}", name) for j in sorted(random.permutation(len(files))[:kept])]
    return pd.DataFrame(rows, columns=["path", "class"])


@dataclass(frozen=True)
class Benchmark:
    """What is trained and compared: the parts of a command line."""

    train: Path
    test: Path
    out: Path
    imbalances: Sequence[int]
    epochs: int
    seeds: int
    methods: Sequence[str] = tuple(METHODS)
    jobs: int = 1

    def __post_init__(self) -> None:
        """Raise UserError for mistakes that would only show hours later, or would spoil the table unnoticed."""
        require(min(self.imbalances) >= 1, "--imbalance", min(self.imbalances), "at least 1")
        for name in ("epochs", "seeds", "jobs"):
            require(vars(self)[name] >= 1, f"--{name}", vars(self)[name], "at least 1")
        known, asked = class_folders(self.train), class_folders(self.test)
        if unknown := sorted(asked.keys() - known.keys()):
            raise UserError(
                f"{self.test}: {len(unknown)} of its class folders are not in {self.train}, such as {unknown[0]}"
            )

    def dataset(self, imbalance: int) -> Path:
        """Return the folder of the training set of an imbalance."""
        return self.out / f"train-{imbalance}"

    def run(self, method: str, imbalance: int, seed: int) -> Path:
        """Return the folder of a run."""
        return self.out / f"{slug(method)}-{imbalance}-{seed}"

    def arguments(self, method: str, imbalance: int, seed: int) -> tuple[object, ...]:
        """Return the arguments of a run's training."""
        chosen = METHODS[method]
        epochs: int = self.epochs if chosen.backbone is None else max(1, self.epochs // 20)
        kept: tuple[object, ...] = ()
        if chosen.backbone is not None:
            weights = self.run(chosen.backbone, imbalance, seed) / "checkpoints" / "best.pt"
            kept = ("--weights", weights, "--freeze-backbone-epochs", epochs)
        recipe = ("--model", "resnet32", "--epochs", epochs, "--warmup-epochs", 0.025 * epochs)
        return (*recipe, "--crop-padding", 4, "--color-jitter", 0, *chosen.arguments(), *kept, "--seed", seed)


def benchmark(asked: Benchmark) -> str:
    """Run the steps that are not finished and return the table as Markdown; it is also written to OUT/table.md."""
    asked.out.mkdir(parents=True, exist_ok=True)
    judged = asked.out / "test"
    whole = ("--labels", "classes", "--out", judged, "--split", 0, 0, 1)
    run("lmk-shard", "build", "--images", asked.test, *whole, *_BUILD)
    for imbalance in asked.imbalances:
        labels = asked.out / f"train-{imbalance}.csv"
        draw_tail(asked.train, imbalance).to_csv(labels, index=False)
        source = ("--images", asked.train, "--labels", labels, "--id-column", "path", "--label-column", "class")
        run("lmk-shard", "build", *source, "--out", asked.dataset(imbalance), "--split", 1, 0, 0, *_BUILD)
    backbones = {METHODS[name].backbone for name in asked.methods}
    first = [name for name in METHODS if METHODS[name].backbone is None and name in {*asked.methods, *backbones}]
    second = [name for name in METHODS if METHODS[name].backbone is not None and name in asked.methods]
    for methods in (first, second):  # the second keep backbones of the first
        chosen = product(asked.imbalances, range(asked.seeds), methods)
        side_by_side([partial(_train_and_evaluate, asked, method, *one) for *one, method in chosen], asked.jobs)
    runs = finished(asked)
    runs.to_csv(asked.out / "table.csv", index=False, float_format="%.6f")
    text = table(runs, asked.epochs)
    (asked.out / "table.md").write_text(text)
    return text


def _train_and_evaluate(asked: Benchmark, method: str, imbalance: int, seed: int) -> None:
    out = asked.run(method, imbalance, seed)
    log = out.with_name(f"{out.name}.log") if asked.jobs > 1 else None
    arguments = asked.arguments(method, imbalance, seed)
    train(asked.dataset(imbalance), out, *arguments, program=METHODS[method].program, log=log)
    evaluate(out, "test", asked.out / "test", log=log)


def finished(asked: Benchmark) -> pd.DataFrame:
    """Return a row for each finished run in --out that was trained as `asked` would train it, whatever it names."""
    rows = []
    imbalances = sorted(int(found[1]) for path in asked.out.iterdir() if (found := _TRAINING_SET.fullmatch(path.name)))
    for imbalance, method in product(imbalances, METHODS):
        name = asked.run(method, imbalance, 0).name.removesuffix("0")
        numbers = (path.name.removeprefix(name) for path in asked.out.glob(f"{name}*"))
        for seed in sorted(int(number) for number in numbers if number.isdecimal()):
            out = asked.run(method, imbalance, seed)
            arguments, program = asked.arguments(method, imbalance, seed), METHODS[method].program
            if is_trained(asked.dataset(imbalance), out, *arguments, program=program):
                metrics = evaluate(out, "test", asked.out / "test")
                figures = {name: metrics[name] for name in ("accuracy", "macro_f1")}
                rows.append({"imbalance": imbalance, "method": method, "seed": seed, "epochs": asked.epochs, **figures})
    return pd.DataFrame(rows)


def table(runs: pd.DataFrame, epochs: int) -> str:
    """Return the runs as a Markdown table: the mean accuracy of each imbalance and method, in %."""
    lines = [
        "| imbalance | method | top-1 accuracy | spread | seeds | published |",
        "|---:|---|---:|---:|---:|---:|",
    ]
    for _, group in runs.groupby(["imbalance", "method"], sort=False):
        imbalance, method = group.iloc[0][["imbalance", "method"]]
        found = 100 * group["accuracy"]
        published = PUBLISHED.get((imbalance, method.removesuffix(_REFERENCE)), "")
        spread = f"{found.min():.2f} to {found.max():.2f}" if len(found) > 1 else ""
        lines.append(f"| {imbalance} | {method} | {found.mean():.2f} | {spread} | {len(found)} | {published} |")
    return "\n".join([*lines, "", f"ResNet-32, {epochs} epochs: mean over the seeds, lowest to highest, in %.", ""])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=Path, metavar="TRAIN")
    parser.add_argument("test", type=Path, metavar="TEST")
    parser.add_argument("--out", type=Path, default=Path("runs") / "cifar10-lt")
    parser.add_argument("--imbalance", type=int, nargs="+", default=[10, 100], dest="imbalances")
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", nargs="+", default=tuple(METHODS), choices=METHODS, metavar="METHOD")
    parser.add_argument("--jobs", type=int, default=1)
    given = parser.parse_args()
    return run_command("cifar10_lt", lambda: print(benchmark(Benchmark(**vars(given)))))


if __name__ == "__main__":
    raise SystemExit(main())
