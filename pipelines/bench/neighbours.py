"""Measure the search for the nearest of many training pictures: milliseconds per picture by size of the batch.

python -m pipelines.bench.neighbours [--pictures 1000000] [--features 512] [--neighbours 5] [--out bench-neighbours]

The index is a memory-mapped file of random unit vectors in float16, as `lmk-predict --neighbours` writes it; the first
search, which also reads the file, is not counted. The threads are those of torch (OMP_NUM_THREADS). The time of the
CPU is what the search takes on a machine that does nothing else.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from lmk_train.neighbours.search import nearest, unit_vectors

_BATCHES = (1, 16, 64, 256)
_SECONDS = 5.0
_ROWS = 50_000


def make_index(path: Path, pictures: int, features: int) -> NDArray[np.float16]:
    """Return random unit vectors, float16 [pictures, features], from the file `path`, which is written first."""
    index = np.lib.format.open_memmap(path, "w+", np.float16, (pictures, features))
    generator = torch.Generator().manual_seed(0)
    for start in range(0, pictures, _ROWS):
        part = index[start : start + _ROWS]
        part[:] = unit_vectors(torch.randn(part.shape, generator=generator)).half().numpy()
    index.flush()
    found: NDArray[np.float16] = np.lib.format.open_memmap(path, "r")
    return found


def milliseconds(index: NDArray[np.float16], batch: int, neighbours: int) -> tuple[float, float]:
    """Return the time of a search per picture of a batch, by the clock and of the CPU."""
    queries = unit_vectors(torch.randn(batch, index.shape[1], generator=torch.Generator().manual_seed(1)))
    nearest(index, queries, neighbours)
    started, cpu_started, searches = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - started < _SECONDS or not searches:
        nearest(index, queries, neighbours)
        searches += 1
    scale = 1000 / (searches * batch)
    return scale * (time.perf_counter() - started), scale * (time.process_time() - cpu_started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=1_000_000)
    parser.add_argument("--features", type=int, default=512)
    parser.add_argument("--neighbours", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("bench-neighbours"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    index = make_index(arguments.out / "train.npy", arguments.pictures, arguments.features)
    print(f"{arguments.pictures:,} x {arguments.features}, {torch.get_num_threads()} threads")
    print("| batch | ms per picture | of the CPU |\n|---:|---:|---:|")
    for batch in _BATCHES:
        clock, cpu = milliseconds(index, batch, arguments.neighbours)
        print(f"| {batch} | {clock:.1f} | {cpu:.1f} |", flush=True)


if __name__ == "__main__":
    main()
