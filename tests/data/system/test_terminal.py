"""What strangers' files say never commands the terminal."""

import re
import sys

import pytest

from lmk_data.errors import UserError
from lmk_data.system.remote import RemoteFolder, _as_os_errors
from lmk_data.system.terminal import counted, notice, printable, run_command, say, without_secrets

EVIL = "\x1b]52;c;Y3VybA==\x07\x1b[2K\x9b31m\x7f\u202eRTL\u2066\u200f\u2028\nlmk-shard: done\r\t\0"


def test_only_what_commands_a_terminal_is_escaped() -> None:
    assert printable("Größe 東京 🏛️ تاج محل a\\b 'c' \udcff") == "Größe 東京 🏛️ تاج محل a\\b 'c' \udcff"
    assert printable("\x1b[31m\x9b\u202e\n") == r"\x1b[31m\x9b\u202e\n"


def test_nothing_that_is_shown_commands_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    def refused(error: Exception) -> None:
        raise error

    say(EVIL, EVIL)
    notice(EVIL)
    for error in (UserError(EVIL), OSError(2, EVIL, EVIL), KeyboardInterrupt()):
        run_command("lmk-shard", lambda error=error: refused(error))  # type: ignore[misc]
    shown = capsys.readouterr()
    for text in (shown.out, shown.err):
        assert not [
            character for character in EVIL if character in text and not character.isprintable() and character != "\n"
        ]
        assert "\nlmk-shard: done" not in text
    assert shown.out.count("\n") == 2


def test_a_traceback_and_what_a_storage_says_show_no_secret(capsys: pytest.CaptureFixture[str]) -> None:
    url = "http://alice:s3cr3t@h/x?token=t0ken"
    run_command("lmk-shard", lambda: None)
    try:
        raise RuntimeError(f"cannot fetch {url}") from ValueError(url)
    except RuntimeError as error:
        sys.excepthook(type(error), error, error.__traceback__)
    shown = capsys.readouterr().err
    assert "ValueError: http://h/x\n" in shown
    assert "RuntimeError: cannot fetch http://h/x\n" in shown
    for raised in (FileNotFoundError(2, f"nothing at {url}", url), PermissionError(url), RuntimeError(url)):
        with pytest.raises(OSError, match=r"nothing at|h/x") as caught, _as_os_errors(url):
            raise raised
        assert not re.search("s3cr3t|t0ken", f"{caught.value.filename} {caught.value.strerror}")


def test_too_little_memory_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def fill() -> None:
        raise MemoryError

    assert run_command("lmk-shard", fill) == 1
    assert capsys.readouterr().err.startswith("lmk-shard: error: there is not enough memory")


def test_secrets_of_urls_are_left_out() -> None:
    shown = without_secrets("cannot read s3://key:pa/ss@x/a, http://u:pw@host:80/a/b.csv?token=T&x=1: 'https://h/?k=v'")
    assert shown == "cannot read s3://key:pa/ss@x/a, http://host:80/a/b.csv 'https://h/'"
    assert without_secrets("simplecache::http://a:b@h/x?t") == "simplecache::http://h/x"
    assert without_secrets("why? me@example.org a/b?c") == "why? me@example.org a/b?c"
    folder = RemoteFolder("http://u:pw@127.0.0.1:1/a?token=T")
    assert (folder.root, folder.location("b?c")) == ("http://127.0.0.1:1/a", "http://127.0.0.1:1/a")
    assert folder.url == "http://u:pw@127.0.0.1:1/a?token=T"
    assert repr(folder) == "RemoteFolder('http://127.0.0.1:1/a')"


def test_a_noun_is_in_the_plural_unless_there_is_one() -> None:
    counts = [counted(number, noun) for noun in ("image", "class") for number in (0, 1, 1200)]
    assert counts == ["0 images", "1 image", "1,200 images", "0 classes", "1 class", "1,200 classes"]
