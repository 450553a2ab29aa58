"""What each window of a browser did, so that it can be undone: step by step, and only where nothing came after."""

from collections import OrderedDict, deque
from collections.abc import Mapping
from dataclasses import dataclass

from lmk_data.views.marks import Mark

MAX_WINDOWS, MAX_STEPS = 64, 200
MAX_KEYS = 200_000  # of all steps of a window together


@dataclass(frozen=True, slots=True)
class Step:
    """One change of marks: what each key had before and after it."""

    before: Mapping[str, Mark | None]
    after: Mapping[str, Mark | None]


class Steps:
    """The last steps of each window, in memory: those of windows that were used longest ago are forgotten first."""

    def __init__(self) -> None:
        self._windows: OrderedDict[str, deque[Step]] = OrderedDict()

    def add(self, window: str, before: Mapping[str, Mark | None], after: Mapping[str, Mark | None]) -> None:
        """Remember a step of a window; keys that it did not change are no part of it."""
        changed = [key for key in after if before[key] != after[key]]
        if not changed:
            return
        steps = self._windows.setdefault(window, deque(maxlen=MAX_STEPS))
        self._windows.move_to_end(window)
        steps.append(Step({key: before[key] for key in changed}, {key: after[key] for key in changed}))
        while len(steps) > 1 and sum(len(step.after) for step in steps) > MAX_KEYS:
            steps.popleft()
        while len(self._windows) > MAX_WINDOWS:
            self._windows.popitem(last=False)

    def last(self, window: str) -> Step | None:
        """Return the last step of a window that is not undone, None if there is none."""
        steps = self._windows.get(window)
        return steps[-1] if steps else None

    def drop(self, window: str) -> None:
        """Forget the last step of a window, which is undone."""
        self._windows[window].pop()
