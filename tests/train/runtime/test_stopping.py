"""Requests to stop."""

import pytest

from lmk_train.runtime.world import World


def test_a_signal_while_the_ranks_agree_takes_effect_at_the_next_step() -> None:
    from lmk_train.runtime.stopping import StopRequest

    class Asking(World):
        def max(self, value: int) -> int:
            stop.requested = True  # the handler runs as soon as the call returns
            return value

    stop = StopRequest()
    assert not stop.should_save(Asking(), False)
    stop.raise_if_stopping(3)  # the others know nothing of it yet
    assert stop.should_save(Asking(), False)
    with pytest.raises(KeyboardInterrupt, match="at step 4"):
        stop.raise_if_stopping(4)
