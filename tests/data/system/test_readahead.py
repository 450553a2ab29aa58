"""Reading ahead: in order, as wide as the source is slow, bounded, and errors come out where they happened."""

import threading
import time
from types import SimpleNamespace

import pytest

from lmk_data.system import readahead
from lmk_data.system.readahead import read_ahead

_MANY = 4 * readahead._LEAST_AHEAD  # reads at once that even a busy machine gets to, where each takes 30 ms


class _SlowSource:
    """Counts how many reads are under way at once."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.at_once = self.most = self.done = 0
        self._lock = threading.Lock()

    def read(self, item: int, _: int) -> bytes:
        with self._lock:
            self.at_once += 1
            self.most = max(self.most, self.at_once)
        if self.seconds:
            time.sleep(self.seconds)
        with self._lock:
            self.at_once -= 1
            self.done += 1
        return str(item).encode()


@pytest.fixture(autouse=True)
def fresh_window(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("is_slow", False), ("window", readahead._LEAST_AHEAD), ("largest", 1)):
        monkeypatch.setattr(readahead._Source, name, value)


def test_a_slow_source_is_read_by_many_threads_in_order() -> None:
    source = _SlowSource(seconds=0.03)
    assert list(read_ahead(source.read, range(400))) == [str(i).encode() for i in range(400)]
    assert _MANY <= source.most <= readahead._MOST_AHEAD


class _Clock:
    """The time that read_ahead sees: it passes only where a test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(readahead, "time", SimpleNamespace(perf_counter=lambda: self.now))


@pytest.mark.parametrize("hiccup", [0.0, 0.003])
def test_a_fast_source_is_read_as_it_is_used_whatever_its_hiccups(
    hiccup: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, started = _Clock(monkeypatch), list[int]()

    def read(item: int, _: int) -> int:
        started.append(item)
        clock.now += hiccup if item % 100 == 3 else 5e-6
        return item

    for item in read_ahead(read, range(300)):
        assert len(started) == item + 1


def test_a_source_that_is_fast_after_all_is_read_as_it_is_used_again() -> None:
    source = _SlowSource(seconds=0.03)
    reading = read_ahead(source.read, range(40))
    for _ in range(3):
        next(reading)
    source.seconds = 0.0
    for taken in range(3, 40):
        ahead = min(40, taken + readahead._Source.window)
        next(reading)
        while source.done < ahead:  # the consumer works longer than the reads that are under way take
            time.sleep(0.001)
    assert next(reading, None) is None
    assert not readahead._Source.is_slow
    assert source.most <= readahead._FEW_AHEAD


def test_a_source_that_turns_slow_is_noticed() -> None:
    source = _SlowSource(seconds=0.0)
    reading = read_ahead(source.read, range(300))
    assert [next(reading) for _ in range(50)] == [str(i).encode() for i in range(50)]
    source.seconds = 0.03
    assert [*reading] == [str(i).encode() for i in range(50, 300)]
    assert source.most >= _MANY


def test_large_items_are_read_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that wait take 3,000 bytes, of which each thread may have its part, though every fifth item has 2,000."""
    monkeypatch.setattr(readahead, "_MOST_BYTES", 3_000)
    monkeypatch.setattr(readahead._Source, "window", 30)
    monkeypatch.setattr(readahead._Source, "is_slow", True)
    ahead: list[int] = []

    def read(item: int, max_bytes: int) -> bytes | None:
        num_bytes = 50 if item % 5 else 2_000
        if threading.current_thread() is not threading.main_thread():
            ahead.append(min(num_bytes, max_bytes))
        return bytes(num_bytes) if num_bytes <= max_bytes else None

    assert [len(data) for data in read_ahead(read, range(100))] == [50 if item % 5 else 2_000 for item in range(100)]
    assert sum(ahead[:30]) <= 3_000


def test_what_waits_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readahead, "_MOST_BYTES", 3_000)
    monkeypatch.setattr(readahead._Source, "window", 50)
    monkeypatch.setattr(readahead._Source, "is_slow", True)
    started: list[int] = []

    def read(item: int, _: int) -> bytes:
        started.append(item)
        return bytes(1_000)

    reading = read_ahead(read, range(1_000))
    for _ in range(5):
        next(reading)
        time.sleep(0.02)
    assert len(started) < 70
    reading.close()


def test_errors_come_in_their_place_and_end_the_reading() -> None:
    def read(item: int, _: int) -> int:
        if item == 7:
            raise OSError("gone")
        return item

    reading = read_ahead(read, range(1_000))
    assert [next(reading) for _ in range(7)] == list(range(7))
    with pytest.raises(OSError, match="gone"):
        next(reading)
