"""Measure a build from a source with 30 ms of latency per read, relative to the local rate; one worker.

python -m pipelines.bench.latency PHOTOS [PHOTOS ...] [--images 640] [--out bench-latency]
"""

import argparse
import shutil
import time
from pathlib import Path

from lmk_data.build import BuildOptions, build
from lmk_data.options import PlanRule
from lmk_data.system.files import MAX_FILE_BYTES
from lmk_data.system.storage import LocalFolder
from pipelines.bench.build import copied, link_tree

_LATENCY_SECONDS = 0.03


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, nargs="+")
    parser.add_argument("--images", type=int, default=640)
    parser.add_argument("--out", type=Path, default=Path("bench-latency"))
    arguments = parser.parse_args()
    out = arguments.out.absolute()
    tree = out / f"tree-{arguments.images}"
    link_tree(copied(arguments.photos, out / "photos"), arguments.images, tree)
    read_here = LocalFolder.read

    def read_far(folder: LocalFolder, name: str, max_bytes: int = MAX_FILE_BYTES) -> bytes:
        time.sleep(_LATENCY_SECONDS)
        return read_here(folder, name, max_bytes)

    print("| samples per shard | local images/s | with latency | ratio |\n|---:|---:|---:|---:|")
    for size in (256, 1024):
        rates = []
        for read in (read_here, read_far):
            LocalFolder.read = read  # type: ignore[method-assign, assignment]
            shutil.rmtree(out / "shards", ignore_errors=True)
            rule = PlanRule(min_samples=1, samples_per_shard=size)
            table = str(tree / "train.csv")
            result = build(BuildOptions([str(tree / "train")], table, out / "shards", rule, workers=1, quiet=True))
            rates.append(result.built_images / result.seconds)
        print(f"| {size:,} | {rates[0]:.0f} | {rates[1]:.0f} | {rates[1] / rates[0]:.2f} |")


if __name__ == "__main__":
    main()
