"""Joining the ranks of torchrun, and leaving them."""

import os

import pytest
import torch
from torch import distributed

from lmk_train.runtime.world import joined_world, run_as_rank
from tests.ports import free_port


@pytest.fixture
def torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variables of a single rank."""
    place = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    for name, value in place.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("torchrun")
def test_only_a_rank_that_succeeds_destroys_the_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """On NCCL that waits for the other ranks. One that failed ends at once, with what it has said."""
    with joined_world(torch.device("cpu")):
        assert distributed.is_initialized()
    assert not distributed.is_initialized()
    assert run_as_rank(lambda: 3) == 3

    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    with pytest.raises(ZeroDivisionError), joined_world(torch.device("cpu")):
        raise ZeroDivisionError
    try:
        run_as_rank(lambda: 3)
        assert ended == [3]
    finally:
        distributed.destroy_process_group()
