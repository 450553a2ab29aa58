"""Run the whole job on synthetic images, offline: sample -> build -> report -> train -> evaluate.

    make demo

Draws 24 synthetic landmarks, builds shards, and trains EfficientNet-Lite0 from its ImageNet weights (they
come with a Python package; nothing is downloaded). Prints where to find the results. Takes about 3 minutes on 2 cores;
the expected test accuracy is above 0.9. Everything is written to demo/. A second run resumes where the first stopped.
"""

import json
from pathlib import Path

from lmk_data.system.terminal import run_command
from lmk_train.runs.folder import RunFolder
from pipelines.steps import run, train

FOLDER = Path("demo")
IMAGES, SHARDS, RUN = FOLDER / "images", FOLDER / "shards", FOLDER / "run"
NUM_CLASSES, NUM_IMAGES, EPOCHS = 24, 900, 5


def demonstrate() -> None:
    """Run every step by its command, as a user would."""
    run("lmk-shard", "sample", IMAGES, "--classes", NUM_CLASSES, "--images", NUM_IMAGES)
    run(
        "lmk-shard",
        "build",
        *("--images", IMAGES / "train"),
        *("--labels", IMAGES / "train.csv"),
        *("--categories", IMAGES / "train_label_to_category.csv"),
        *("--out", SHARDS),
        *("--title", "Synthetic landmarks"),
        *("--license", "CC0-1.0"),
    )
    model = ("--model", "efficientnet-lite0", "--epochs", EPOCHS)
    train(SHARDS, RUN, *model)
    run("lmk-eval", RUN, "--split", "val")
    folder = RunFolder(RUN)
    metrics = json.loads(folder.evaluation("test").read_text())
    print(f"\ndataset report   {SHARDS / 'report' / 'index.html'}")
    print(f"model report     {folder.report()}")
    print(f"training curves  tensorboard --logdir {RUN}")
    print(f"figures          {folder.evaluation('test')}")
    print(f"                 {folder.per_class('test')}")
    print(f"                 {folder.predictions('test')}")
    print(f"result           test accuracy {metrics['accuracy']:.4f}, macro F1 {metrics['macro_f1']:.4f}")


if __name__ == "__main__":
    raise SystemExit(run_command("demo", demonstrate))
