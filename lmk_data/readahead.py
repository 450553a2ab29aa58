"""Reading ahead of whoever uses what is read, by as many threads as the latency of the source asks for."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Read = TypeVar("Read")

_LEAST_AHEAD, _MOST_AHEAD = 4, 64
_MOST_BYTES = 256 << 20
_FAST_SECONDS = 100e-6  # a read that takes less costs less than handing it to a thread and back
_NEW_WEIGHT = 1 / 16


class _Source:
    """What is known of the source, kept for the process, so that a slow one is known after its first shard."""

    window = _LEAST_AHEAD
    mean_seconds = 0.0  # of a read, while the reading is done here; recent reads weigh more


def read_ahead(read: Callable[[Item], Read], items: Iterable[Item]) -> Iterator[Read]:
    """`read` of each item, in order, called ahead of the consumer by as many threads as the source's latency asks for.

    A source as fast as a warm disk is read as its items are asked for. Once reads take longer, threads read ahead,
    and their window grows whenever the consumer has to wait; it is bounded in items, and in bytes that wait to be
    used. What `read` raises is raised here.
    """
    remaining = iter(items)
    while _Source.mean_seconds < _FAST_SECONDS:
        started = time.perf_counter()
        try:
            item = next(remaining)
        except StopIteration:
            return
        data = read(item)
        _Source.mean_seconds += (time.perf_counter() - started - _Source.mean_seconds) * _NEW_WEIGHT
        yield data
    yield from _read_by_threads(read, remaining)


def _read_by_threads(read: Callable[[Item], Read], remaining: Iterator[Item]) -> Iterator[Read]:
    with ThreadPoolExecutor(_MOST_AHEAD) as pool:
        pending: deque[Future[Read]] = deque()
        try:
            while True:
                while len(pending) < _Source.window and _waiting_bytes(pending) < _MOST_BYTES:
                    try:
                        pending.append(pool.submit(read, next(remaining)))
                    except StopIteration:
                        break
                if not pending:
                    return
                if not pending[0].done():
                    _Source.window = min(_Source.window + 1, _MOST_AHEAD)
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def _waiting_bytes(pending: "deque[Future[Read]]") -> int:
    """The bytes that were read and not yet used."""
    done = [future.result() for future in pending if future.done() and future.exception() is None]
    return sum(len(data) for data in done if isinstance(data, bytes))
