"""What judging labels and outliers takes at scale: drawn features on disk, time and memory.

    python -m pipelines.bench.quality_scale [--samples 75000] [--classes 57042] [--dim 1280] [--out bench-quality]

Classes have sizes that fall as 1 / rank, at least 2. Run it with two numbers of samples: time grows linearly with them.
"""

import argparse
import resource
import time
from pathlib import Path

import numpy as np

from lmk_train.inspection.labels import judge_labels
from lmk_train.inspection.outliers import judge_outliers

_ROWS = 8192
_SPREAD = 1.5  # of samples around the mean of their class, which has length 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=75_000)
    parser.add_argument("--classes", type=int, default=57_042)
    parser.add_argument("--dim", type=int, default=1280)
    parser.add_argument("--out", type=Path, default=Path("bench-quality"))
    arguments = parser.parse_args()
    generator = np.random.default_rng(0)
    num, num_classes, dim = arguments.samples, arguments.classes, arguments.dim
    shares = 1 / np.arange(1, num_classes + 1)
    labels = np.arange(num, dtype=np.int32) % num_classes  # every class has samples
    drawn = max(0, num - 2 * num_classes)
    labels[num - drawn :] = generator.choice(num_classes, drawn, p=shares / shares.sum())
    generator.shuffle(labels)
    centres = generator.standard_normal((num_classes, dim), dtype=np.float32) / np.float32(np.sqrt(dim))
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "drawn-features.npy"
    features = np.lib.format.open_memmap(path, "w+", np.float16, (num, dim))
    for start in range(0, num, _ROWS):
        rows = slice(start, min(start + _ROWS, num))
        noise = generator.standard_normal((rows.stop - start, dim), dtype=np.float32) * np.float32(_SPREAD / dim**0.5)
        block = centres[labels[rows]] + noise
        features[rows] = block / np.linalg.norm(block, axis=1, keepdims=True)
    features.flush()
    del features, centres
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    started, cpu = time.monotonic(), time.process_time()
    mapped = np.lib.format.open_memmap(path, "r")
    judged = judge_labels(mapped, labels, num_classes)
    between = time.process_time()
    outliers = judge_outliers(mapped, labels, judged.other_label)
    print(
        f"{num:,} samples x {dim}, {num_classes:,} classes: {time.monotonic() - started:.0f} s, "
        f"CPU s of labels {between - cpu:.0f} and of outliers {time.process_time() - between:.0f}; peak "
        f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3:.0f} MB with the pages of the features "
        f"({before:.0f} MB before); flagged {int(judged.wrong_label.sum())} and {int(outliers.outlier.sum())}"
    )
    path.unlink()


if __name__ == "__main__":
    main()
