"""Reading ahead of whoever uses what is read, by as many threads as the latency of the source asks for."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Read = TypeVar("Read")

_LEAST_AHEAD, _MOST_AHEAD = 4, 64
_MOST_BYTES = 256 << 20


class _Window:
    """How many items to read ahead: kept for the process, so that a slow source is known after its first shard."""

    size = _LEAST_AHEAD


def read_ahead(read: Callable[[Item], Read], items: Iterable[Item]) -> Iterator[Read]:
    """`read` of each item, in order, called by threads ahead of the consumer.

    The window grows whenever the consumer has to wait, so that a source with latency is read by many threads and a
    fast one by few; it is bounded in items, and in bytes that wait to be used. What `read` raises is raised here.
    """
    with ThreadPoolExecutor(_MOST_AHEAD) as pool:
        remaining = iter(items)
        pending: deque[Future[Read]] = deque()
        try:
            while True:
                while len(pending) < _Window.size and _waiting_bytes(pending) < _MOST_BYTES:
                    try:
                        pending.append(pool.submit(read, next(remaining)))
                    except StopIteration:
                        break
                if not pending:
                    return
                if not pending[0].done():
                    _Window.size = min(_Window.size + 1, _MOST_AHEAD)
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def _waiting_bytes(pending: "deque[Future[Read]]") -> int:
    """The bytes that were read and not yet used."""
    done = [future.result() for future in pending if future.done() and future.exception() is None]
    return sum(len(data) for data in done if isinstance(data, bytes))
