"""Measure what an inspection takes after the features: seconds and megabytes of each judgement.

    python -m pipelines.bench.inspection [--samples 1490153] [--classes 57042] [--dim 1280] [--only parts twins ...]

Features are made up: a mean for each class, a view of it for each sample and noise, drawn in blocks to a file (3.8 GB
at full size) that is deleted at the end. Class sizes are long-tailed, at least 6; rows are in random order, as in
shards. Megabytes are the process's own memory, without the pages of the file that it maps.
"""

import argparse
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lmk_train.inspection.labels import judge_labels
from lmk_train.inspection.outliers import judge_outliers
from lmk_train.inspection.parts import judge_parts
from lmk_train.inspection.rows import Samples, SplitFeatures
from lmk_train.inspection.spread import ClassSpread, class_spread
from lmk_train.inspection.twins import judge_twins, shared_duplicates

_ROWS = 8192
_MEASURED = ("labels", "outliers", "parts", "twins")


def class_sizes(num_samples: int, num_classes: int) -> NDArray[np.int64]:
    """Return sizes of classes, the largest first, that add up to `num_samples`; at least 6 each."""
    weights = 1 / (np.arange(num_classes) + 20.0)
    sizes: NDArray[np.int64] = 6 + np.floor((num_samples - 6 * num_classes) * weights / weights.sum()).astype(np.int64)
    sizes[: num_samples - int(sizes.sum())] += 1
    return sizes


def draw_features(path: Path, labels: NDArray[np.int32], num_classes: int, dim: int) -> None:
    """Write features float16 [N, D], L2-normalised, of samples with these labels."""
    generator = np.random.default_rng(0)
    means = generator.standard_normal((num_classes, dim), np.float32)
    views = generator.standard_normal((256, dim), np.float32)
    out = np.lib.format.open_memmap(path, "w+", np.float16, (len(labels), dim))
    for start in range(0, len(labels), _ROWS):
        own = labels[start : start + _ROWS]
        block = means[own] + 0.5 * views[generator.integers(0, 256, len(own))]
        block += 0.8 * generator.standard_normal(block.shape, np.float32)
        block /= np.linalg.norm(block, axis=1, keepdims=True)
        out[start : start + _ROWS] = block
    out.flush()


def measure(name: str, work: Callable[[], Any]) -> Any:
    """Run one step and print its seconds and the largest memory of its own that the process had meanwhile."""
    peak, ended = [0], threading.Event()

    def watch() -> None:
        while not ended.wait(0.1):
            fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
            peak[0] = max(peak[0], int(fields["RssAnon"].split()[0]))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    started = time.monotonic()
    result = work()
    seconds = time.monotonic() - started
    ended.set()
    watcher.join()
    print(f"{name:20} {seconds:9,.1f} s  {peak[0] / 1024:9,.0f} MB", flush=True)
    return result


def main() -> None:
    """Draw features, measure, delete them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--samples", type=int, default=1_490_153)
    parser.add_argument("--classes", type=int, default=57_042)
    parser.add_argument("--dim", type=int, default=1280)
    parser.add_argument("--out", type=Path, help="folder for the features; by default a temporary one")
    parser.add_argument("--only", nargs="+", choices=_MEASURED, default=list(_MEASURED))
    options = parser.parse_args()
    labels = np.repeat(np.arange(options.classes, dtype=np.int32), class_sizes(options.samples, options.classes))
    np.random.default_rng(1).shuffle(labels)
    with tempfile.TemporaryDirectory(dir=options.out) as folder:
        path = Path(folder) / "train.npy"
        measure("drawing features", lambda: draw_features(path, labels, options.classes, options.dim))
        _measure_all(np.lib.format.open_memmap(path, mode="r"), labels, options.classes, options.only)


def _measure_all(features: NDArray[np.float16], labels: NDArray[np.int32], num_classes: int, chosen: list[str]) -> None:
    other = np.roll(labels, 1)
    if "labels" in chosen:
        other = measure("wrong labels", lambda: judge_labels(features, labels, num_classes)).other_label
    if "outliers" in chosen:
        measure("outliers", lambda: judge_outliers(features, labels, other))
    samples = Samples(SplitFeatures([features]), labels, num_classes)
    if {"parts", "twins"} & set(chosen):
        spread: ClassSpread = measure("means and spreads", lambda: class_spread(samples))
    if "parts" in chosen:
        similarity = np.full(len(labels), 0.2, np.float32)
        parts = measure("parts of classes", lambda: judge_parts(samples, spread, similarity, quiet=False))
        print(f"  {int(parts.several.sum()):,} classes are several things")
    if "twins" in chosen:
        nothing = shared_duplicates(pd.DataFrame({"group": [], "label": []}).astype(np.int64))
        twins = measure("twins", lambda: judge_twins(spread, nothing, quiet=False))
        print(f"  {int(twins.twin.sum()):,} classes may be the same thing as another")


if __name__ == "__main__":
    main()
