"""What the time of a training goes into, by the clock of the device that computes."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, Protocol

import torch

Activity = Literal["data", "copy", "compute"]


class Clock(Protocol):
    """A clock of the work that is queued on a device."""

    def mark(self) -> Any:
        """Return a mark behind all work that has been queued so far, without waiting for it."""

    def seconds(self, start: Any, end: Any) -> float:
        """Return the seconds from one mark to another; waits until the device has reached the second."""


class HostClock:
    """The clock of this process, whose work is done when it is queued."""

    def mark(self) -> float:
        """Return the time."""
        return time.perf_counter()

    def seconds(self, start: float, end: float) -> float:
        """Return the seconds between two times."""
        return end - start


class CudaClock:
    """The clock of the current CUDA stream."""

    def mark(self) -> torch.cuda.Event:
        """Return an event behind all work that has been queued so far."""
        event = torch.cuda.Event(enable_timing=True, blocking=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def seconds(self, start: torch.cuda.Event, end: torch.cuda.Event) -> float:
        """Return the seconds between two events; waits for the second without keeping a core busy."""
        end.synchronize()
        milliseconds: float = start.elapsed_time(end)
        return milliseconds / 1000


class TimeShares:
    """Sort the time of a device into waiting for data, copying, and computing with all that surrounds it.

    On a device that works asynchronously, data for which the host waits while the device still computes cost nothing:
    what counts is how long the device itself has nothing to do. The three add up to all of the time that is counted.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._activity: Activity | None = None
        self._since: Any = None
        self._spans: list[tuple[Activity, Any, Any]] = []

    @classmethod
    def of(cls, device: torch.device) -> "TimeShares":
        """Return shares of the time of a device; nothing is counted yet."""
        return cls(CudaClock() if device.type == "cuda" else HostClock())

    def begin(self, activity: Activity | None) -> None:
        """Count the time from here on as an activity; None does not count it. Does not wait for the device."""
        if activity != self._activity:
            self._mark()
            self._activity = activity

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Do not count the time of this block."""
        activity = self._activity
        self.begin(None)
        try:
            yield
        finally:
            self.begin(activity)

    def read(self) -> dict[Activity, float]:
        """Return the seconds of each activity since they were last read; waits for the device."""
        self._mark()
        seconds: dict[Activity, float] = {"data": 0.0, "copy": 0.0, "compute": 0.0}
        for activity, start, end in self._spans:
            seconds[activity] += self._clock.seconds(start, end)
        self._spans.clear()
        return seconds

    def _mark(self) -> None:
        now = self._clock.mark()
        if self._activity is not None:
            self._spans.append((self._activity, self._since, now))
        self._since = now
