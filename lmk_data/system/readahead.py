"""Read ahead of the consumer, with as many threads as the latency of the source requires."""

import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Read = TypeVar("Read")
_LEAST_AHEAD, _MOST_AHEAD = 4, 64
_FEW_AHEAD = 8  # if this window was enough, the source is fast after all
_MOST_BYTES = 256 << 20
_FAST_SECONDS = 100e-6  # a faster read costs less than passing it to a thread and back
_MOST_LOST_SECONDS = 20e-3  # more than one delay of a fast source, less than one read of a slow source
_NEW_WEIGHT = 1 / 16


class _Source:
    """What this process knows of the source: a slow source is recognised once, not again for each shard."""

    is_slow = False
    window = _LEAST_AHEAD
    largest = 1  # bytes of a read


def read_ahead(read: Callable[[Item, int], Read | None], items: Iterable[Item]) -> Iterator[Read]:
    """Yield what is read for each item, in order, called ahead of the consumer where the source is slow.

    `read(item, max_bytes)` returns None for an item of more than `max_bytes`, without reading all of it. Such an item
    is read alone, when it is its turn: however large the items are, those that wait take no more than a fixed memory.

    A source as fast as a warm disk is read without threads, one item at a time. Once reads take longer, threads read
    ahead, and their window grows whenever the consumer has to wait. The window is bounded in items, and in bytes that
    wait to be used. An exception of `read` is raised here.
    """
    remaining = iter(items)
    mean = lost = 0.0  # seconds per read, with more weight on recent ones; and seconds that fast reads would have saved
    while not _Source.is_slow:
        started = time.perf_counter()
        try:
            item = next(remaining)
        except StopIteration:
            return
        data = _read_alone(read, item)
        seconds = time.perf_counter() - started
        mean += (seconds - mean) * _NEW_WEIGHT
        lost += max(0.0, seconds - _FAST_SECONDS)
        _Source.is_slow = mean > _FAST_SECONDS and lost > _MOST_LOST_SECONDS
        yield data
    yield from _read_by_threads(read, remaining)


def _read_alone(read: Callable[[Item, int], Read | None], item: Item) -> Read:
    data = read(item, sys.maxsize)
    assert data is not None, "no item is larger"
    return data


def _read_by_threads(read: Callable[[Item, int], Read | None], remaining: Iterator[Item]) -> Iterator[Read]:
    with ThreadPoolExecutor(_MOST_AHEAD) as pool:
        pending: deque[tuple[Item, Future[Read | None]]] = deque()
        try:
            while True:
                window = min(_Source.window, max(1, _MOST_BYTES // _Source.largest))
                for item in islice(remaining, max(0, window - len(pending))):
                    pending.append((item, pool.submit(read, item, _MOST_BYTES // window)))
                if not pending:
                    break
                if not pending[0][1].done():
                    _Source.window = min(_Source.window + 1, _MOST_AHEAD)
                item, future = pending.popleft()
                data = future.result()
                if data is None:
                    data = _read_alone(read, item)
                if isinstance(data, bytes):
                    _Source.largest = max(_Source.largest, len(data))
                yield data
        finally:
            for _, future in pending:
                future.cancel()
    if _Source.window <= _FEW_AHEAD:
        _Source.is_slow, _Source.window = False, _LEAST_AHEAD
