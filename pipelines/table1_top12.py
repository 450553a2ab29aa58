"""The first table of the report: the 12 largest landmarks, ResNet-50 and EfficientNet-B0.

    python -m pipelines.table1_top12 KAGGLE            # the folder with train.csv and train/
    python -m pipelines.table1_top12 --smoke           # the same steps on synthetic images, a minute or two, in CI

Builds the full set once (shared with the other tables), makes a view of the top 12 (19,999 images) and trains both
models for 8 epochs with the defaults of docs/training.md. After an interruption, the same command resumes. The report
does not state epochs, learning rates or seed, so its figures are a target, not values to reproduce digit by digit.

Hardware: one GPU with 8 GB or more (the report used an RTX 2070 Super); nothing here was timed on one. An epoch has
14,399 training images. At R images/s (`lmk-train --shards runs/report/table1/view --profile-input`) a run takes
8 * 14,399 / R seconds: 4 minutes at 500. The build takes half an hour on 2 cores if images are read as fast as they are
decoded (969 to 1,075 images/s, docs/benchmarks.md).
Expected score: the report's testing accuracy, 96.65 % (ResNet-50) and 98.05 % (EfficientNet-B0).
"""

from pipelines.tables import Row, Table, main

TABLE = Table(
    name="table1",
    subset=("--top", 12),
    rows=(
        Row("ResNet-50", ("--model", "resnet50", "--loss", "ce"), (0.9802, 0.9665, None)),
        Row("EfficientNet-B0", ("--model", "efficientnet-b0", "--loss", "ce"), (0.9769, 0.9805, None)),
    ),
)

if __name__ == "__main__":
    raise SystemExit(main(TABLE, __doc__))
