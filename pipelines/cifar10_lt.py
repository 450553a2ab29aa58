"""CIFAR-10-LT, the long-tail benchmark of the LDAM paper: four losses, two imbalances, several seeds.

    python -m pipelines.cifar10_lt TRAIN TEST [--out runs/cifar10-lt] [--imbalance 10 100] [--epochs 200] [--seeds 3]

TRAIN and TEST are folders or zips of class folders of PNG or JPEG, as CIFAR-10 is often unpacked. The build re-encodes
the images as JPEG of quality 95 without chroma subsampling (4:4:4).

Training set: with n images in the largest class, class i of K keeps n * imbalance^(-i / (K - 1)) images. Classes are in
order of their names; images are drawn once (seed 0). TEST is a dataset of its own and is used whole.

Training: ResNet-32, random weights, batch 128, SGD 0.1, weight decay 2e-4, padded crop and flip, no colour jitter.
Warm-up lasts 2.5 % of training; the learning rate drops to a hundredth at 80 % and again at 90 %. These are the paper's
epochs 5, 160 and 180 of 200, scaled to --epochs. Deferred re-weighting starts at 80 %. The last epoch is evaluated;
nothing is chosen on the test set.

Resume: finished steps are not repeated. After an interruption, run the same command again. Other settings in the same
--out are refused.

Hardware: a CPU suffices. An epoch takes about 18 s at imbalance 100 (12,406 images) on 2 cores, and 30 s at 10
(20,431). A run of 200 epochs takes an hour or 1.6 hours, all 24 runs take 32 hours. On a GPU a run takes minutes.

Expected score: the published column, from Cao et al. 2019 (table 2). Their code keeps the best epoch on the test set,
which is slightly optimistic compared with the last epoch. Balanced softmax was published with a different training.
"""

import argparse
import statistics
import zipfile
from pathlib import Path, PurePath

import numpy as np
import pandas as pd

from lmk_data.errors import UserError
from lmk_data.system.terminal import run_command
from lmk_train.config.option import require
from pipelines.steps import evaluate, run, train

LOSSES: dict[str, tuple[object, ...]] = {
    "CE": ("--loss", "ce"),
    "LDAM": ("--loss", "ldam"),
    "LDAM-DRW": ("--loss", "ldam", "--drw-start", 0.8),
    "balanced softmax": ("--loss", "balanced-softmax"),
}
PUBLISHED = {  # top-1 accuracy, %
    (10, "CE"): 86.39,
    (10, "LDAM"): 86.96,
    (10, "LDAM-DRW"): 88.16,
    (100, "CE"): 70.36,
    (100, "LDAM"): 73.35,
    (100, "LDAM-DRW"): 77.03,
}
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


def check(folder: Path, test: Path, imbalances: list[int], epochs: int, seeds: int) -> None:
    """Raise UserError for mistakes that would only show hours later, or would spoil the table unnoticed."""
    require(min(imbalances) >= 1, "--imbalance", min(imbalances), "at least 1")
    require(epochs >= 1, "--epochs", epochs, "at least 1")
    require(seeds >= 1, "--seeds", seeds, "at least 1")
    known, asked = class_folders(folder), class_folders(test)
    if unknown := sorted(asked.keys() - known.keys()):
        raise UserError(f"{test}: {len(unknown)} of its class folders are not in {folder}, such as {unknown[0]}")


def benchmark(folder: Path, test: Path, out: Path, imbalances: list[int], epochs: int, seeds: int) -> str:
    """Run the steps that are not finished and return the table as Markdown; it is also written to OUT/table.md."""
    check(folder, test, imbalances, epochs, seeds)
    out.mkdir(parents=True, exist_ok=True)
    judged = out / "test"
    run("lmk-shard", "build", "--images", test, "--labels", "classes", "--out", judged, "--split", 0, 0, 1, *_BUILD)
    recipe = ("--model", "resnet32", "--epochs", epochs, "--warmup-epochs", 0.025 * epochs)
    augmentation = ("--crop-padding", 4, "--color-jitter", 0)
    lines = ["| imbalance | loss | top-1 accuracy | spread | published |", "|---:|---|---:|---:|---:|"]
    for imbalance in imbalances:
        labels, dataset = out / f"train-{imbalance}.csv", out / f"train-{imbalance}"
        draw_tail(folder, imbalance).to_csv(labels, index=False)
        source = ("--images", folder, "--labels", labels, "--id-column", "path", "--label-column", "class")
        run("lmk-shard", "build", *source, "--out", dataset, "--split", 1, 0, 0, *_BUILD)
        for loss, chosen in LOSSES.items():
            found = []
            for seed in range(seeds):
                name = f"{loss.lower().replace(' ', '-')}-{imbalance}-{seed}"
                done = train(dataset, out / name, *recipe, *augmentation, *chosen, "--seed", seed)
                found.append(100 * evaluate(done, "test", judged)["accuracy"])
            published = PUBLISHED.get((imbalance, loss))
            spread = f"{min(found):.2f} to {max(found):.2f}"
            lines.append(
                f"| {imbalance} | {loss} | {statistics.mean(found):.2f} | {spread} | {published if published else ''} |"
            )
    text = "\n".join([*lines, "", f"ResNet-32, {epochs} epochs, {seeds} seeds: mean, lowest to highest, in %.", ""])
    (out / "table.md").write_text(text)
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=Path, metavar="TRAIN")
    parser.add_argument("test", type=Path, metavar="TEST")
    parser.add_argument("--out", type=Path, default=Path("runs") / "cifar10-lt")
    parser.add_argument("--imbalance", type=int, nargs="+", default=[10, 100])
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    chosen = (given.train, given.test, given.out, given.imbalance, given.epochs, given.seeds)
    return run_command("cifar10_lt", lambda: print(benchmark(*chosen)))


if __name__ == "__main__":
    raise SystemExit(main())
