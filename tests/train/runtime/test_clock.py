"""Shares of the time, on a device that works asynchronously."""

import pytest

from lmk_train.runtime.clock import HostClock, TimeShares


class Device:
    """A device and a host that puts work into its queue; `now` is the time of the host."""

    def __init__(self) -> None:
        self.now = self.free = 0.0

    def work(self, seconds: float) -> None:
        """Queue some work."""
        self.free = max(self.free, self.now) + seconds

    def mark(self) -> float:
        """When the device gets there."""
        return max(self.free, self.now)

    def seconds(self, start: float, end: float) -> float:
        return end - start


@pytest.mark.parametrize(
    ("decoding", "computing", "share_of_waiting"),
    [(0.09, 0.1, 0.0), (0.1, 0.03, 0.68), (0.0, 0.1, 0.0)],
    ids=["a slow device, for which the host waits most of the time", "a slow reader", "nothing to decode"],
)
def test_the_shares_are_those_of_the_device(decoding: float, computing: float, share_of_waiting: float) -> None:
    """A batch is decoded in so many seconds, whatever the host does meanwhile."""
    device, steps, copying = Device(), 50, 0.002
    times = TimeShares(device)
    for step in range(1, steps + 1):
        times.begin("data")
        device.now = max(device.now, decoding * step)
        times.begin("copy")
        device.work(copying)
        device.now += 0.001
        times.begin("compute")
        device.work(computing)
    found = times.read()
    total = sum(found.values())
    assert total == pytest.approx(device.mark())
    assert found["copy"] == pytest.approx(steps * copying)
    assert found["data"] / total == pytest.approx(share_of_waiting, abs=0.03)
    assert found["compute"] >= steps * computing - 1e-9


def test_what_is_stopped_or_was_read_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(HostClock, "mark", lambda _: now[0])
    times = TimeShares(HostClock())
    for activity, seconds in ((None, 1), ("data", 2), ("compute", 4), ("data", 8)):
        times.begin(activity)  # type: ignore[arg-type]
        now[0] += seconds
    with times.stopped():
        now[0] += 16
    now[0] += 32
    assert times.read() == {"data": 42, "copy": 0, "compute": 4}
    now[0] += 64
    assert times.read() == {"data": 64, "copy": 0, "compute": 0}
