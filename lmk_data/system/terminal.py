"""What a person sees of a running command: progress on stderr, errors in one line, exit codes."""

import atexit
import gc
import re
import signal
import sys
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

from lmk_data.errors import LmkError
from lmk_data.system.streams import lasting_streams, stdout_is_abandoned

if TYPE_CHECKING:
    from tqdm import tqdm

EXIT_DONE, EXIT_ERROR, EXIT_INTERRUPTED, EXIT_UNREAD = 0, 1, 130, 128 + signal.SIGPIPE
_SECONDS_BETWEEN_LINES = 15.0
_USER = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)[^/?#\s'\"<>]*@")
_QUERY = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://[^\s?'\"<>]*)\?[^\s'\"<>]*")
_CONTROL = (range(0x20), range(0x7F, 0xA0), (0x61C, 0x200E, 0x200F, 0x2028, 0x2029, 0xFEFF), range(0x202A, 0x202F))
_ESCAPES = {code: ascii(chr(code))[1:-1] for codes in (*_CONTROL, range(0x2066, 0x206A)) for code in codes}
_UNIT_SCALE_FROM = 100_000  # totals from here on are shown as 120k instead of 120000


def printable(text: str) -> str:
    """Return a text in one line, with what could command a terminal or forge its lines as escapes such as `\\x1b`.

    These are the control characters of C0 and C1, the line separators, and the marks that reorder text (bidi). Secrets
    in URLs are left out.
    """
    return without_secrets(text).translate(_ESCAPES)


def without_secrets(text: str) -> str:
    """Return a text without user name, password and query of the URLs in it, where keys and tokens are."""
    return _QUERY.sub(r"\1", _USER.sub(r"\1", text)) if "://" in text else text


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, which is in the plural unless the number is 1."""
    plural = "es" if noun.endswith("s") else "s"
    return f"{number:,} {noun}" + ("" if number == 1 else plural)


def say(*lines: str) -> None:
    """Print lines on stdout, each `printable`: parts of them may come from files of strangers."""
    for line in lines:
        print(printable(line))


def run_command(program: str, command: Callable[[], None]) -> int:
    """Run a command and return its exit code: 0 done, 1 after an error, 130 interrupted, 141 if nobody reads stdout.

    An error is one line on stderr. It is an `LmkError` or what the operating system refuses: a folder that cannot be
    written, a full disk, too little memory. Any other exception is a bug and keeps its traceback. A reader of stdout
    that stops early, such as `| head`, does not end the command: it does the rest of its work, and the code is then
    141, as after SIGPIPE.

    SIGTERM and SIGHUP count as interruptions: schedulers, `timeout` and a terminal that is closed end a command as
    cleanly as Ctrl-C does.
    """
    sys.excepthook = _print_traceback
    atexit.register(gc.freeze)  # a tenth of a second goes by if the ending interpreter looks for cycles in all modules
    previous = {number: signal.signal(number, _interrupt) for number in interruptions() if number != signal.SIGINT}
    try:
        with lasting_streams():
            return _code_of(program, command)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def interruptions() -> list[signal.Signals]:
    """Return the signals that interrupt a command; SIGHUP is none under `nohup`, which ignores it."""
    numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    return [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN or number != signal.SIGHUP]


def _print_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print the traceback of a bug as Python does, without the secrets of URLs: logs keep it."""
    print(without_secrets("".join(traceback.format_exception(kind, error, trace))), end="", file=sys.stderr)


def _code_of(program: str, command: Callable[[], None]) -> int:
    try:
        command()
        sys.stdout.flush()  # here, not at exit, where a full disk could not be reported any more
    except SystemExit:  # --help, or a command line that does not parse
        sys.stdout.flush()
        if stdout_is_abandoned():
            return EXIT_UNREAD
        raise
    except LmkError as error:
        print(printable(f"{program}: error: {' '.join(str(error).split())}"), file=sys.stderr)
        return EXIT_ERROR
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(printable(f"{program}: error: {where}{error.strerror or error}"), file=sys.stderr)
        return EXIT_ERROR
    except MemoryError:  # what a file states is checked first, but a machine may have less than is allowed
        print(f"{program}: error: there is not enough memory for this; use a machine that has more", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt as interrupt:
        print(f"\n{program}: interrupted; {str(interrupt) or 'run it again to resume'}", file=sys.stderr)
        return EXIT_INTERRUPTED
    return EXIT_UNREAD if stdout_is_abandoned() else EXIT_DONE


def notice(text: str) -> None:
    """Print a note on stderr about something that does not stop the command, without breaking a progress bar."""
    from tqdm import tqdm  # here: worker processes show nothing, and start without it

    tqdm.write(printable(f"note: {text}"), file=sys.stderr)


def progress_bar(
    total: int | None, description: str, unit: str, *, quiet: bool = False, initial: int = 0, delay_seconds: float = 0
) -> "tqdm[Any]":
    """Return a tqdm bar, which the caller updates and closes, or uses as a context manager.

    Where stderr is not a terminal, it prints plain lines.

    Args:
        total: Units of work, None if unknown.
        description: Text before the bar.
        unit: Plural noun of the units, such as "images".
        quiet: Show nothing.
        initial: Units that were done before.
        delay_seconds: Show nothing if the work ends earlier than this.
    """
    from tqdm import tqdm

    options: dict[str, Any] = {"total": total, "desc": description, "unit": unit, "initial": initial, "disable": quiet}
    options["delay"] = delay_seconds
    if sys.stderr.isatty():
        return tqdm(dynamic_ncols=True, smoothing=0.1, unit_scale=(total or 0) >= _UNIT_SCALE_FROM, **options)
    form = "{desc}: {n_fmt}/{total_fmt} {unit} [{elapsed}<{remaining}, {rate_fmt}]{postfix}"
    lines = _Lines(sys.stderr)
    return tqdm(file=lines, mininterval=_SECONDS_BETWEEN_LINES, miniters=1, bar_format=form, **options)


class _Lines:
    """A text stream that turns tqdm's carriage returns into separate lines."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        line = text.strip("\r\n ")
        return self._stream.write(line + "\n") if line else 0

    def flush(self) -> None:
        self._stream.flush()


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
