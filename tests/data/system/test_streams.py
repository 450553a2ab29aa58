"""What a command prints when nobody reads it, or in an encoding that lacks its characters."""

import io
import os
import subprocess
import sys

import pytest

from lmk_data.system.streams import lasting_streams

_COMMAND = """
import sys
from lmk_data.system.terminal import run_command

def command():
    print("é \\udcff \\u202e")
    print("first", flush=True)
    print("second", flush=True)
    print("work is done", file=sys.stderr)

sys.exit(run_command("x", command))
"""


def ran(stdout: int, **environment: str) -> "subprocess.CompletedProcess[bytes]":
    words = [sys.executable, "-c", _COMMAND]
    return subprocess.run(words, stdout=stdout, stderr=subprocess.PIPE, env={**os.environ, **environment})


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_the_work_goes_on_when_nobody_reads_and_the_code_says_so(unbuffered: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = ran(writing, PYTHONUNBUFFERED=unbuffered)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"work is done\n")


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("utf-8", "é".encode() + b" \xff " + "\u202e".encode()),
        ("ascii", b"\\xe9 \xff \\u202e"),
        ("latin-1", b"\xe9 \xff \\u202e"),
    ],
)
def test_what_an_encoding_lacks_is_escaped(encoding: str, shown: bytes) -> None:
    done = ran(subprocess.PIPE, PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, shown)


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_is_an_error_in_a_line(unbuffered: str) -> None:
    with open("/dev/full", "wb") as full:
        done = ran(full.fileno(), PYTHONUNBUFFERED=unbuffered)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [b"x: error: No space left on device"]


def test_a_stream_that_something_else_put_in_place_is_given_back_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = io.BytesIO()
    stream = io.TextIOWrapper(kept, "utf-8", "strict")
    monkeypatch.setattr(sys, "stdout", stream)
    with lasting_streams():
        sys.stdout.write("caf\udce9\n")
        sys.stdout.flush()
        kept.seek(0)
        assert stream.read() == "caf\\udce9\n"
    assert (sys.stdout, stream.errors, kept.getvalue()) == (stream, "strict", b"caf\\udce9\n")
