"""Locks: one holder at a time, whatever process it is, and none that holds a deleted file."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from lmk_data.errors import UserError
from lmk_data.system.files import file_lock


def is_free(path: Path) -> bool:
    try:
        with file_lock(path, wait_seconds=0, busy="held"):
            return True
    except UserError as error:
        assert str(error) == "held"  # noqa: PT017 - the caller's words
        return False


def test_one_holder_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with file_lock(path):
        assert not is_free(path)
        with pytest.raises(UserError, match="held"), file_lock(path, wait_seconds=0.15, busy="held"):
            pass
    assert is_free(path)
    with pytest.raises(BlockingIOError), file_lock(path):  # an error of the block is not taken for a held lock
        raise BlockingIOError
    assert is_free(path)


@pytest.mark.parametrize("wait_seconds", [60.0, float("inf")])
def test_a_lock_is_waited_for(tmp_path: Path, wait_seconds: float) -> None:
    path, order = tmp_path / "lock", []

    def second() -> None:
        with file_lock(path, wait_seconds=wait_seconds, busy="held"):
            order.append("second")

    thread = threading.Thread(target=second)
    with file_lock(path):
        thread.start()
        thread.join(0.3)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


@pytest.mark.parametrize("wait_seconds", [60.0, float("inf")])
def test_a_deleted_lock_does_not_count(tmp_path: Path, wait_seconds: float) -> None:
    """The holder deletes the file while another waits: the other one must hold the file that the next will open."""
    path, locked, release = tmp_path / "lock", threading.Event(), threading.Event()

    def second() -> None:
        with file_lock(path, wait_seconds=wait_seconds, busy="held"):
            locked.set()
            release.wait(60)

    thread = threading.Thread(target=second)
    with file_lock(path):
        thread.start()
        thread.join(0.3)
        path.unlink()
    assert locked.wait(60)
    assert not is_free(path)
    release.set()
    thread.join()
    assert is_free(path)


def test_a_child_that_inherits_the_lock_holds_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    program = [sys.executable, "-c", "input()"]
    with file_lock(path) as descriptor:
        heir = subprocess.Popen(program, stdin=subprocess.PIPE, pass_fds=(descriptor,))
        other = subprocess.Popen(program, stdin=subprocess.PIPE)
    assert not is_free(path)
    heir.communicate(b"\n")
    assert is_free(path), "a child that was not given the descriptor holds nothing"
    other.communicate(b"\n")
