"""What decoding beside a training costs a step that mostly launches work: threads compared with processes.

    python -m pipelines.bench.contention DATASET [--batch 128] [--workers 1 2] [--milliseconds 10] [--rounds 5]

The step is a stand-in for one that launches the kernels of a network on a GPU: short operations of PyTorch on one core,
as many as take the given time. It is timed alone, and with a batch of DATASET decoded for each step. Prints, as medians
of the rounds: the share of its own speed that the step keeps, the microseconds it loses for each picture, and the
pictures a second that are decoded without a step. On a machine with few cores decoding takes time from the step as
well; with small pictures that counts for little.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from lmk_data.dataset import ShardedDataset
from lmk_train.config.arguments import Cache
from lmk_train.data.reader import SplitReader
from lmk_train.data.stream import Batch, BatchStream

_STEPS = 60
_WARM_UP = 5  # batches: the first ones wait for what decodes to start
_ELEMENTS = 20_000  # of the tensor: a few microseconds of work for each operation


def launching(seconds: float) -> Callable[[], None]:
    """Return a step of short operations that takes about so long."""
    tensor = torch.randn(_ELEMENTS)

    def operations(count: int) -> None:
        for _ in range(count):
            torch.add(tensor, 1.0)

    operations(1000)
    started = time.perf_counter()
    operations(10_000)
    count = round(10_000 * seconds / (time.perf_counter() - started))
    return lambda: operations(count)


def seconds_a_step(step: Callable[[], object]) -> float:
    """Return the mean time of a step."""
    started = time.perf_counter()
    for _ in range(_STEPS):
        step()
    return (time.perf_counter() - started) / _STEPS


def picks(num_samples: int, batch_size: int) -> Iterator[NDArray[np.int64]]:
    """Yield batches of samples drawn at random, for ever."""
    random = np.random.default_rng(0)
    while True:
        yield random.integers(0, num_samples, batch_size)


def seconds_with(
    reader: SplitReader, batch_size: int, workers: int, processes: bool, step: Callable[[], object]
) -> float:
    """Return the time of taking a batch and making a step."""
    stream = BatchStream(reader, torch.device("cpu"), batch_size, workers, processes=processes)
    chosen = islice(picks(len(reader), batch_size), _WARM_UP + _STEPS)
    with closing(stream(chosen)) as batches:

        def both() -> Batch:
            batch = next(batches)
            step()
            return batch

        for _ in range(_WARM_UP):
            next(batches)
        return seconds_a_step(both)


def main() -> None:
    """Print a row for each kind and number of decoders."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path, metavar="DATASET")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--milliseconds", type=float, default=10, help="of a step alone")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    step = launching(given.milliseconds / 1000)
    print("| decoded by | step's share of its speed | lost, us a picture | decoded alone, pictures/s |")
    print("|---|---:|---:|---:|")
    with (
        ShardedDataset.open(given.dataset) as dataset,
        closing(SplitReader(dataset, "train", Cache(None, 0))) as reader,
    ):
        for workers in given.workers:
            for processes in (False, True):
                alone, beside, decoding = [], [], []
                for _ in range(given.rounds):
                    alone.append(seconds_a_step(step))
                    beside.append(seconds_with(reader, given.batch, workers, processes, step))
                    decoding.append(seconds_with(reader, given.batch, workers, processes, lambda: None))
                plain, fed = statistics.median(alone), statistics.median(beside)
                rate = given.batch / statistics.median(decoding)
                kind = "process" if processes else "thread"
                name = f"{workers} {kind}" if workers == 1 else f"{workers} {kind}{'es' if processes else 's'}"
                print(
                    f"| {name} | {plain / fed:.2f} | {1e6 * (fed - plain) / given.batch:.0f} | {rate:,.0f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
