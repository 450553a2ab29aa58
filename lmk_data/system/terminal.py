"""What a person sees of a running command: progress on stderr, one-line errors, exit codes."""

import signal
import sys
from collections.abc import Callable
from typing import Any, TextIO

from tqdm import tqdm

from lmk_data.errors import LmkError

EXIT_DONE, EXIT_ERROR, EXIT_INTERRUPTED = 0, 1, 130
_SECONDS_BETWEEN_LINES = 15.0


def run_command(program: str, command: Callable[[], None]) -> int:
    """Run a command and return its exit code: 0 done, 1 for an error (one line on stderr), 130 interrupted.

    Errors are `LmkError`, and what the system refuses: a folder that cannot be written, a full disk. Anything else
    is a defect and shows itself as one.

    SIGTERM counts as an interruption, so that schedulers and `timeout` end a command as cleanly as Ctrl-C does.
    """
    previous = signal.signal(signal.SIGTERM, _interrupt)
    try:
        command()
    except LmkError as error:
        print(f"{program}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return EXIT_ERROR
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"{program}: error: {where}{error.strerror or error}", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt as interrupt:
        print(f"\n{program}: interrupted; {str(interrupt) or 'run it again to go on'}", file=sys.stderr)
        return EXIT_INTERRUPTED
    finally:
        signal.signal(signal.SIGTERM, previous)
    return EXIT_DONE


def notice(text: str) -> None:
    """Tell the person something that stops nothing, on stderr, without disturbing a bar."""
    tqdm.write(f"note: {text}", file=sys.stderr)


def progress_bar(
    total: int | None, description: str, unit: str, *, quiet: bool = False, initial: int = 0, delay_seconds: float = 0
) -> "tqdm[Any]":
    """A tqdm bar over `total` units of work (None: nobody knows), plain lines when stderr is not a terminal, nothing
    when quiet, nor where the work is over within `delay_seconds`.

    The caller calls `update` and closes it, or uses it as a context.
    """
    options: dict[str, Any] = {"total": total, "desc": description, "unit": unit, "initial": initial, "disable": quiet}
    options["delay"] = delay_seconds
    if sys.stderr.isatty():
        return tqdm(dynamic_ncols=True, smoothing=0.1, unit_scale=(total or 0) >= 100_000, **options)
    form = "{desc}: {n_fmt}/{total_fmt} {unit} [{elapsed}<{remaining}, {rate_fmt}]{postfix}"
    lines = _Lines(sys.stderr)
    return tqdm(file=lines, mininterval=_SECONDS_BETWEEN_LINES, miniters=1, bar_format=form, **options)


class _Lines:
    """A text stream that turns tqdm's carriage returns into lines of their own."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        line = text.strip("\r\n ")
        return self._stream.write(line + "\n") if line else 0

    def flush(self) -> None:
        self._stream.flush()


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
