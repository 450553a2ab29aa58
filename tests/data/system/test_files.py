"""Locks: one holder at a time, whatever process it is, and none that holds a deleted file."""

import errno
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from lmk_data.errors import UserError
from lmk_data.system.files import file_lock, is_unfinished, make_folder, open_regular, write_bytes
from lmk_data.system.storage import open_folder


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


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], code: int
) -> None:
    def flock(*_: object) -> None:
        raise OSError(code, "not here")

    monkeypatch.setattr("fcntl.flock", flock)
    for _ in range(2):
        with file_lock(tmp_path / "lock", wait_seconds=0, busy="held") as descriptor:
            assert descriptor > 0
    assert capsys.readouterr().err.count("has no locks; run only one command at a time") == 1


def test_another_failure_of_a_lock_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.raises(OSError, match="broken"), file_lock(tmp_path / "lock", wait_seconds=0):
        pass


def test_a_file_system_that_syncs_no_folders_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync = os.fsync

    def only_files(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr("os.fsync", only_files)
    write_bytes(tmp_path / "a", b"whole")
    assert (tmp_path / "a").read_bytes() == b"whole"


def test_a_lock_is_a_file_and_no_link(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    (tmp_path / "dangling").symlink_to(tmp_path / "made")
    os.mkfifo(tmp_path / "fifo")
    for name in ("link", "dangling", "fifo"):
        with pytest.raises(UserError, match=r"is a symbolic link|not a file"), file_lock(tmp_path / name):
            pass
    assert (tmp_path / "target").read_text() == "mine"
    assert not (tmp_path / "made").exists()


def test_names_of_unfinished_files() -> None:
    assert is_unfinished("metrics.jsonl.4711-0123abcd.tmp")
    for name in ("notes.tmp", "a.4711-0123abcd.tmp.bak", ".4711-0123abcd.tmp", "a.x-0123abcd.tmp"):
        assert not is_unfinished(name)


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    """A FIFO would be waited for, and /dev/zero never ends."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "zero").symlink_to("/dev/zero")
    folder = open_folder(tmp_path)
    for name in ("fifo", "zero"):
        reads = (
            folder.read,
            folder.open,
            lambda name: folder.read_range(name, 0, 1),
            lambda name: open_regular(tmp_path / name),
        )
        for read in reads:
            with pytest.raises(OSError, match="not a regular file"):
                read(name)
    with pytest.raises(IsADirectoryError):
        open_regular(tmp_path)
    (tmp_path / "file").write_bytes(b"whole")
    with folder.open("file") as file:
        assert (file.read(2), file.seek(1), file.read()) == (b"wh", 1, b"hole")
    assert (folder.read("file"), folder.read_range("file", 1, 2)) == (b"whole", b"ho")


def test_a_new_folder_survives_a_power_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[tuple[str, bool]] = []
    made = tmp_path / "a" / "b"
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append((os.readlink(f"/proc/self/fd/{fd}"), made.exists())))
    make_folder(made)
    assert synced == [(str(tmp_path), False), (str(tmp_path / "a"), True)]
    make_folder(made)
    assert len(synced) == 2
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        make_folder(tmp_path / "file")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every folder")
def test_a_folder_that_may_be_written_and_not_read_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "drop").mkdir()
    (tmp_path / "drop").chmod(0o300)
    make_folder(tmp_path / "drop" / "a")
    (tmp_path / "drop").chmod(0o700)
