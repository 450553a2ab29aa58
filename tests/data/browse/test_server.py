"""The command `lmk-shard browse`: where it listens, where marks are kept, and what it refuses in one line."""

import os
import socket
import sys
from pathlib import Path

import pytest

pytest.importorskip("uvicorn", reason="the extra `browse` is not installed")
pytest.importorskip("starlette", reason="the extra `browse` is not installed")

from lmk_data.browse import server
from lmk_data.cli import main
from lmk_data.errors import UserError


def test_it_listens_at_a_free_port_of_this_machine_alone() -> None:
    with server.listen("127.0.0.1", 0) as listening:
        port = listening.getsockname()[1]
        assert server.is_loopback(listening)
        assert server.address_of("127.0.0.1", listening) == f"http://127.0.0.1:{port}/"
        assert server.host_names("127.0.0.1", listening) == ["127.0.0.1"]
        with pytest.raises(UserError, match=f"cannot listen at 127.0.0.1 port {port}: "):
            server.listen("127.0.0.1", port)
    with pytest.raises(UserError, match="not a name or address of this machine"):
        server.listen("x" * 70, 0)
    with pytest.raises(UserError, match="cannot listen at 192"):
        server.listen("192.0.2.1", 0)


def test_other_machines_are_given_a_name_that_they_can_open() -> None:
    with server.listen("0.0.0.0", 0) as listening:
        port = listening.getsockname()[1]
        assert not server.is_loopback(listening)
        assert server.address_of("0.0.0.0", listening) == f"http://{socket.gethostname()}:{port}/"
        assert socket.gethostname() in server.host_names("0.0.0.0", listening)


@pytest.mark.parametrize(
    ("marks", "dataset", "expected"),
    [
        (None, "data/shards/", "shards-marks.csv"),
        (None, "s3://bucket/landmarks?versionId=1", "landmarks-marks.csv"),
        (None, "https://example.org/", "dataset-marks.csv"),
        ("mine.csv", "data/shards", "mine.csv"),
    ],
)
def test_each_dataset_has_its_own_marks(marks: str | None, dataset: str, expected: str) -> None:
    assert server.marks_path(marks, dataset) == Path(expected)


def test_the_current_folder_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert server.marks_path(None, ".") == Path(f"{tmp_path.name}-marks.csv")


def test_what_cannot_be_opened_is_said_in_one_line(
    named_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "marks.csv").write_text("key,action\nx,burn\n")
    for words, message in (
        ([str(tmp_path)], "not a dataset"),
        ([str(named_dataset), "--marks", str(tmp_path / "marks.csv")], "line 2"),
        ([str(named_dataset), "--marks", "s3://bucket/marks.csv"], "marks are kept in a file of this machine"),
        ([str(named_dataset), "--port", "70000"], "--port 70000: must be from 0 to 65535"),
        ([str(named_dataset), "--run", str(tmp_path / "none")], "none"),
        ([str(named_dataset), "--quality", str(tmp_path / "none")], "none"),
    ):
        assert main(["browse", "--no-open", *words]) == 1
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


def test_without_the_extra_it_says_what_to_install(
    named_dataset: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.startswith("lmk_data.browse.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["browse", str(named_dataset)]) == 1
    assert "pip install '.[browse]'" in capsys.readouterr().err


def test_a_browser_is_opened_where_there_is_a_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr(server.webbrowser, "open", opened.append)
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(server.sys, "platform", "linux")
    assert server.open_browser("http://one/") is None
    monkeypatch.setitem(os.environ, "DISPLAY", ":0")
    thread = server.open_browser("http://two/")
    assert thread is not None
    thread.join()
    assert opened == ["http://two/"]
