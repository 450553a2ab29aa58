"""Compare readers on the same JPEGs: raw, decoded and augmented rates, and the time to the first batch.

    python -m pipelines.bench.reader DATASET [--full-scale FULL] [--out bench-reader] [--seconds 4] [--rounds 3]

DATASET is made by `lmk-shard build` and has some 100,000 images. FULL has the size of GLR2020 and is made by
`pipelines.bench.full_scale --only-make`. MosaicML streaming and litData are installed into OUT/peers, and the training
split is copied into their formats. Every measurement is a process of its own, one round after the other, over shuffled
batches of 64, with the files in the page cache: on one core without workers, or with workers (threads for lmk,
DataLoader processes for the others). Prints tables of medians and writes OUT/reader.json.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

from pipelines.bench.readers import STAGES

_REQUIREMENTS = Path(__file__).with_name("readers-requirements.txt")
_NAMES = {
    "memory": "in memory, decoded only",
    "lmk": "lmk",
    "webdataset-pil": "webdataset + Pillow + torchvision v2",
    "webdataset-torchvision": "webdataset + torchvision",
    "mosaic": "MosaicML streaming + Pillow + torchvision v2",
    "litdata": "litData + torchvision",
}
_WORKERS = (0, 1, 2)
_READ_AT_ONCE = 64 << 20

Case = tuple[str, str, int]  # reader, stage, workers


class Bench:
    """A folder with all readers and datasets that are measured."""

    def __init__(self, dataset: Path, full: Path | None, out: Path) -> None:
        self._dataset, self._full, self._out = dataset, full, out
        folders = {
            "DATA_OPTIMIZER_CACHE_FOLDER": out / "litdata-cache",
            "DATA_OPTIMIZER_DATA_CACHE_FOLDER": out / "litdata-data",
        }
        self._environment = {**os.environ, "PYTHONPATH": str(out / "peers"), **{k: str(v) for k, v in folders.items()}}

    def prepare(self) -> None:
        """Install the other readers and write their copies of the dataset, if missing."""
        if not (self._out / "peers").exists():
            words = ["-m", "pip", "install", "--quiet", "--no-deps", "-r", str(_REQUIREMENTS), "--target"]
            subprocess.run([sys.executable, *words, str(self._out / "peers")], check=True)
        for reader in ("mosaic", "litdata"):
            if not self.data(reader).exists():
                self._run("prepare", reader, self._dataset, "--into", str(self.data(reader)))
        for reader in ("webdataset-pil", "mosaic", "litdata"):
            if not self.grown(reader).exists():
                self._run("grow", reader, self.data(reader), "--into", str(self.grown(reader)))

    def data(self, reader: str) -> Path:
        return self._out / reader if reader in ("mosaic", "litdata") else self._dataset

    def grown(self, reader: str) -> Path:
        return self._out / f"{reader}-grown"

    def rate(self, case: Case, seconds: float) -> dict[str, float]:
        reader, stage, workers = case
        _into_page_cache(self.data(reader))
        flags = ["--stage", stage, "--workers", str(workers), "--seconds", str(seconds)]
        found: dict[str, float] = json.loads(self._run("rate", reader, self.data(reader), *flags))
        return found

    def starts(self) -> dict[str, dict[str, float]]:
        """Return seconds and MB to the first decoded batch of a dataset of the size of GLR2020, on one core."""
        found = {}
        if self._full is not None:
            found["lmk"] = json.loads(self._run("start", "lmk", self._full))
            found["lmk, in the middle of an epoch"] = json.loads(self._run("start", "lmk", self._full, "--at", "0.5"))
        for reader in ("webdataset-pil", "mosaic", "litdata"):
            found[_NAMES[reader]] = json.loads(self._run("start", reader, self.grown(reader)))
        return found

    def _run(self, what: str, reader: str, data: Path, *flags: str) -> str:
        words = [sys.executable, "-m", "pipelines.bench.readers", what, reader, str(data), *flags]
        done = subprocess.run(words, env=self._environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(words)}: exit status {done.returncode}\n{done.stderr[-3000:]}")
        return done.stdout.strip().rsplit("\n", 1)[-1]


def _into_page_cache(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb", buffering=0) as file:
                while file.read(_READ_AT_ONCE):
                    pass


def cases() -> list[Case]:
    every = [(reader, stage, workers) for reader in _NAMES for stage in STAGES for workers in _WORKERS]
    return [case for case in every if case[0] != "memory" or case[1:] == ("decoded", 0)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--full-scale", type=Path)
    parser.add_argument("--out", type=Path, default=Path("bench-reader"))
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    out = arguments.out.absolute()
    bench = Bench(arguments.dataset.absolute(), arguments.full_scale, out)
    bench.prepare()
    measured: dict[Case, list[dict[str, float]]] = defaultdict(list)
    starts: list[dict[str, dict[str, float]]] = []
    for _ in range(arguments.rounds):
        for case in cases():
            measured[case].append(bench.rate(case, arguments.seconds))
        starts.append(bench.starts())

    def median(case: Case, figure: str = "samples_per_second") -> float:
        return statistics.median(found[figure] for found in measured[case])

    print(f"{os.cpu_count()} cores, {platform.processor() or platform.machine()}, Python {platform.python_version()}\n")
    print("| samples/s | stage | one core | 1 worker | 2 workers | MB, one core | MB of a worker |")
    print("|---|---|---:|---:|---:|---:|---:|")
    for reader, name in _NAMES.items():
        for stage in STAGES:
            if (reader, stage, 0) not in measured:
                continue
            rates = [f"{median((reader, stage, w)):,.0f}" if (reader, stage, w) in measured else "" for w in _WORKERS]
            own = f"{median((reader, stage, 0), 'beyond_imports_mb'):.0f}"
            worker = f"{median((reader, stage, 2), 'worker_mb'):.0f}" if (reader, stage, 2) in measured else ""
            print(f"| {name} | {stage} | {' | '.join(rates)} | {own} | {worker} |")
    print("\n| time to first batch, 1.49 M samples | seconds | MB |\n|---|---:|---:|")
    for name in starts[0]:
        seconds, mb = (
            statistics.median(found[name][key] for found in starts) for key in ("seconds", "beyond_imports_mb")
        )
        print(f"| {name} | {seconds:.2f} | {mb:.0f} |")
    ratios = {
        "decoded: lmk / in memory": median(("lmk", "decoded", 0)) / median(("memory", "decoded", 0)),
        "decoded: lmk / webdataset + Pillow": median(("lmk", "decoded", 0)) / median(("webdataset-pil", "decoded", 0)),
        "decoded: lmk / litData": median(("lmk", "decoded", 0)) / median(("litdata", "decoded", 0)),
        "augmented: lmk / webdataset + Pillow": median(("lmk", "augmented", 0))
        / median(("webdataset-pil", "augmented", 0)),
        "augmented, two workers each: lmk / webdataset + Pillow": median(("lmk", "augmented", 2))
        / median(("webdataset-pil", "augmented", 2)),
    }
    print("\n| ratio | |\n|---|---:|")
    for name, ratio in ratios.items():
        print(f"| {name} | {ratio:.2f} |")
    rows = [{"reader": r, "stage": s, "workers": w, "runs": runs} for (r, s, w), runs in measured.items()]
    (out / "reader.json").write_text(json.dumps({"rates": rows, "starts": starts, "ratios": ratios}, indent=2))


if __name__ == "__main__":
    main()
