"""Time `lmk-shard build` from the start of its process to the first picture that a worker decodes.

    python -m pipelines.bench.startup PHOTOS [--images 12000] [--runs 7] [--out bench-build]

PHOTOS is a folder of JPEGs, linked to the requested number of images in the layout of GLR2020. A worker notes the
picture that it is at in the folder of the dataset; the first such note ends a run, which is then interrupted. Prints
the seconds of every run and their median.
"""

import argparse
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

from lmk_data.system.storage import NOTES_FOLDER
from pipelines.bench.build import copied, link_tree

_POLL_SECONDS = 0.002


def seconds_to_first_picture(tree: Path, out: Path) -> float:
    """Build a tree into a new folder, and interrupt it once a worker is at its first picture."""
    shutil.rmtree(out, ignore_errors=True)
    words = ["lmk-shard", "build", "--images", f"{tree}/train", "--labels", f"{tree}/train.csv", "--out", str(out)]
    command = [str(Path(sys.executable).with_name(words[0])), *words[1:], "--quiet"]
    started = time.monotonic()
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    notes = out / NOTES_FOLDER
    while process.poll() is None and not _names(notes):
        time.sleep(_POLL_SECONDS)
    seconds = time.monotonic() - started
    process.send_signal(signal.SIGINT)
    said = process.communicate()[1].decode()
    if process.returncode != 130:
        raise SystemExit(f"the build ended with {process.returncode} before it was interrupted\n{said[-2000:]}")
    return seconds


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, nargs="+")
    parser.add_argument("--images", type=int, default=12_000)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path("bench-build"))
    arguments = parser.parse_args()
    out = arguments.out.absolute()
    tree = out / f"tree-{arguments.images}"
    link_tree(copied(arguments.photos, out / "photos"), arguments.images, tree)
    seconds = [seconds_to_first_picture(tree, out / "startup") for _ in range(arguments.runs)]
    print(f"{arguments.images:,} images: {statistics.median(seconds):.2f} s to the first picture (median)")
    print("runs: " + ", ".join(f"{value:.2f}" for value in seconds))


if __name__ == "__main__":
    main()
