"""Measure the plan of a label table of any size: seconds, processor seconds and peak memory of `build --dry-run`.

    python -m pipelines.bench.plan [--rows 4132914] [--classes 203094] [--layout gldv2] [--out bench-plan]

Draws the table once: random ids, a long tail of classes, and for the layout gldv2 a URL for each row. The defaults are
the size of GLDv2; `--rows 40000000 --classes 1000000 --layout glr2020` is ten times that.
"""

import argparse
import subprocess
import sys
from pathlib import Path
from typing import TextIO

import numpy as np

from lmk_data.system.terminal import run_command
from pipelines.bench.full_scale import measure

_ROWS_AT_ONCE = 1 << 18
_EXPONENT = 0.8  # the class of rank r has a share in proportion to r^-0.8
_URL = "https://upload.wikimedia.org/wikipedia/commons/{0}/{1}/Picture_of_{2}.jpg"


def write_table(file: TextIO, num_rows: int, num_classes: int, layout: str) -> None:
    """Write a label table; every class has a row, and the rows are shuffled by a seed."""
    random = np.random.default_rng(0)
    shares = np.arange(1, num_classes + 1) ** -_EXPONENT
    drawn = random.choice(num_classes, num_rows - num_classes, p=shares / shares.sum())
    labels = np.concatenate([np.arange(num_classes), drawn])
    random.shuffle(labels)
    file.write("id,url,landmark_id\n" if layout == "gldv2" else "id,landmark_id\n")
    for start in range(0, num_rows, _ROWS_AT_ONCE):
        part = labels[start : start + _ROWS_AT_ONCE].tolist()
        digits = random.bytes(8 * len(part)).hex()
        for number, label in enumerate(part):
            key = digits[16 * number : 16 * number + 16]
            url = f"{_URL.format(key[0], key[:2], key[:8])}," if layout == "gldv2" else ""
            file.write(f"{key},{url}{label}\n")


def bench(num_rows: int, num_classes: int, layout: str, out: Path) -> None:
    """Draw the table unless it is there, plan it, and print a row of figures."""
    table = out / f"{layout}-{num_rows}-{num_classes}.csv"
    if not table.exists():  # in a process of its own: the peak of a child starts at that of its parent
        subprocess.run([*sys.orig_argv, "--only-draw"], check=True)
    words = ["build", "--labels", str(table), "--min-samples", "1", "--dry-run"]
    found = measure("plan", [sys.executable, "-m", "lmk_data.cli", *words])
    print("| rows | classes | MB of CSV | seconds | CPU seconds | peak MB |\n|---:|---:|---:|---:|---:|---:|")
    figures = " | ".join(str(found[name]) for name in ("seconds", "cpu_seconds", "peak_mb"))
    print(f"| {num_rows:,} | {num_classes:,} | {table.stat().st_size / 1e6:,.0f} | {figures} |")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4_132_914)
    parser.add_argument("--classes", type=int, default=203_094)
    parser.add_argument("--layout", choices=("glr2020", "gldv2"), default="gldv2")
    parser.add_argument("--out", type=Path, default=Path("bench-plan"))
    parser.add_argument("--only-draw", action="store_true", help="draw the table, without planning it")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    out = given.out.resolve()
    if given.only_draw:
        table = out / f"{given.layout}-{given.rows}-{given.classes}.csv"
        with open(table.with_suffix(".tmp"), "w") as file:
            write_table(file, given.rows, given.classes, given.layout)
        table.with_suffix(".tmp").rename(table)
        return 0
    return run_command("plan", lambda: bench(given.rows, given.classes, given.layout, out))


if __name__ == "__main__":
    raise SystemExit(main())
