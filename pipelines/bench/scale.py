"""Measure how a build scales: the same photos hard-linked to more and more images; cost per image, and memory.

    python -m pipelines.bench.scale PHOTOS [PHOTOS ...] [--images 10000 30000 100000 300000 1000000] [--out bench-scale]

Use small photos, so that all costs other than the pixels show. Prints a table, writes OUT/scale.json and OUT/scale.svg.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import matplotlib as mpl

from pipelines.bench.build import copied, link_tree

mpl.use("svg")

_BUILD = (
    "import json, os, sys; from lmk_data.build import BuildOptions, build\n"
    "result = build(BuildOptions([sys.argv[1] + '/train'], sys.argv[1] + '/train.csv', sys.argv[2], quiet=True))\n"
    "peak = [line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')]\n"
    "print(json.dumps([result.seconds, int(peak[0]) // 1024]))"
)


@dataclass(frozen=True)
class Row:
    """One size; `main_mb` is the peak of the process that plans and publishes."""

    images: int
    seconds: float
    ms_an_image: float
    cpu_ms_an_image: float
    main_mb: int


def measure(tree: Path, out: Path, num_images: int) -> Row:
    shutil.rmtree(out, ignore_errors=True)
    started = time.monotonic()
    process = subprocess.Popen([sys.executable, "-c", _BUILD, str(tree), str(out)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    said = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{num_images:,} images: exit status {status}")
    seconds = time.monotonic() - started
    cpu = usage.ru_utime + usage.ru_stime
    return Row(num_images, seconds, 1000 * seconds / num_images, 1000 * cpu / num_images, json.loads(said)[1])


def plot(rows: list[Row], path: Path) -> None:
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
    axes.plot([row.images for row in rows], [row.ms_an_image for row in rows], "o-", label="wall, ms per image")
    axes.plot([row.images for row in rows], [row.cpu_ms_an_image for row in rows], "s--", label="CPU, ms per image")
    axes.set(xscale="log", ylim=(0, None), xlabel="images", ylabel="ms per image")
    axes.legend()
    figure.savefig(path)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, nargs="+")
    parser.add_argument("--images", type=int, nargs="+", default=[10_000, 30_000, 100_000, 300_000, 1_000_000])
    parser.add_argument("--out", type=Path, default=Path("bench-scale"))
    arguments = parser.parse_args()
    out = arguments.out.absolute()
    photos = copied(arguments.photos, out / "photos")
    rows = []
    print("| images | seconds | wall ms per image | CPU ms per image | peak MB of the main process |")
    print("|---:|---:|---:|---:|---:|")
    for num_images in arguments.images:
        tree = out / f"tree-{num_images}"
        link_tree(photos, num_images, tree)
        row = measure(tree, out / "shards", num_images)
        rows.append(row)
        costs = f"{row.ms_an_image:.3f} | {row.cpu_ms_an_image:.3f}"
        print(f"| {row.images:,} | {row.seconds:,.1f} | {costs} | {row.main_mb} |", flush=True)
        shutil.rmtree(tree)
    (out / "scale.json").write_text(json.dumps([asdict(row) for row in rows], indent=2))
    plot(rows, out / "scale.svg")


if __name__ == "__main__":
    main()
