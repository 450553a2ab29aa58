"""Requests to stop."""

import pytest

from lmk_train.runtime.world import World


def test_a_signal_while_the_processes_agree_is_heeded() -> None:
    from lmk_train.runtime.stopping import Stop

    class Asking(World):
        def most(self, value: int) -> int:
            stop.requested = True  # the handler runs as soon as the call returns
            return value

    stop = Stop()
    assert not stop.agreed(Asking(), False)
    stop.heed(3)  # the others know nothing of it yet
    assert stop.agreed(Asking(), False)
    with pytest.raises(KeyboardInterrupt, match="at step 4"):
        stop.heed(4)
