"""The report's first table: the 12 largest landmarks, ResNet-50 and EfficientNet-B0.

    python -m pipelines.table1_top12 KAGGLE            # the folder with train.csv and train/
    python -m pipelines.table1_top12 --smoke           # the same steps on drawn pictures, a minute or two, in CI

Builds the full set once (shared with the other tables), takes a view of the top 12 (19,999 images) and trains both
models for 8 epochs with the defaults of docs/training.md; interrupt it, and the same command goes on. The report does
not say how long, at which rates, or with which seed it trained, so its figures are a mark to reach, not to the digit.

Hardware: one GPU of 8 GB or more (the report had an RTX 2070 Super); nothing here was timed on one. An epoch is 14,399
training images, so at R images a second (`lmk-train --shards runs/report/table1/view --profile-input`) a run takes
8 * 14,399 / R seconds: 4 minutes at 500. The build takes half an hour on 2 cores where pictures are read as fast as
they are decoded (969 to 1,075 a second, docs/benchmarks.md).
Score to expect: the report's, 96.65 % (ResNet-50) and 98.05 % (EfficientNet-B0) testing accuracy.
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
