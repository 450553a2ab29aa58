"""Time `verify` of a dataset against the least that it has to do: read, hash and checksum every byte.

    python -m pipelines.bench.verify DATASET [--rounds 3]

Runs in turns: the least work (each tar is read once, by as many processes as `verify` has; SHA-256 of all of it, CRC-32
of its pictures' share), `verify`, and `verify --thorough`. Prints the median of each, and its share of the first.
"""

import argparse
import hashlib
import statistics
import time
import zlib
from functools import partial
from pathlib import Path

from lmk_data.dataset.reader import ShardedDataset
from lmk_data.system.engine import local_engine
from lmk_data.system.terminal import run_command
from lmk_data.verify.dataset import verify

_READ_AT_ONCE = 4 << 20


def read_and_hash(path: Path) -> str:
    """Read a file once, in order; return its SHA-256."""
    digest, checksum = hashlib.sha256(), 0
    with open(path, "rb") as file:
        while data := file.read(_READ_AT_ONCE):
            digest.update(data)
            checksum = zlib.crc32(data, checksum)
    return digest.hexdigest()


def _least(shards: list[Path]) -> None:
    for _ in local_engine(None).run(read_and_hash, shards):
        pass


def _verify(dataset: Path, thorough: bool) -> None:
    found = verify(str(dataset), thorough=thorough, quiet=True)
    assert not found.problems, found.problems[0]


def bench(dataset: Path, rounds: int) -> None:
    """Print a line for each of the three."""
    with ShardedDataset.open(dataset) as opened:
        number = len(opened)
        shards = [dataset / shard["name"] for split in opened.splits for shard in opened.shards(split)]
    num_bytes = sum(path.stat().st_size for path in shards)
    what = {
        "read and hash": partial(_least, shards),
        "verify": partial(_verify, dataset, False),
        "verify --thorough": partial(_verify, dataset, True),
    }
    seconds: dict[str, list[float]] = {name: [] for name in what}
    for _ in range(rounds + 1):  # the first fills the page cache and starts the processes
        for name, work in what.items():
            started = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - started)
    print(f"{number:,} pictures, {num_bytes / 1e9:.2f} GB, {local_engine(None).workers} workers")
    least = statistics.median(seconds["read and hash"][1:])
    for name, all_of_it in seconds.items():
        median = statistics.median(all_of_it[1:])
        micros = 1e6 * median / number
        print(f"{name:18} {median:8.2f} s  {micros:6.1f} us a picture  {median / least:5.2f} x the first")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path, metavar="DATASET")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    return run_command("verify", lambda: bench(given.dataset, given.rounds))


if __name__ == "__main__":
    raise SystemExit(main())
