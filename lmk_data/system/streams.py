"""stdout and stderr whose reader may leave early, and whose encoding may lack characters: neither ends a command."""

import codecs
import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

_ERRORS = "lmk-escape"
_SURROGATES = range(0xDC80, 0xDD00)  # stand for the bytes of a file name that is not UTF-8


class _Pipe(io.FileIO):
    """A file descriptor to which writing goes on, without effect, once nobody reads it any more.

    That is a pipe without a reader, or a terminal that was closed.
    """

    is_abandoned = False

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self._is_terminal = self.isatty()

    def write(self, data: Any) -> int:
        if not self.is_abandoned:
            try:
                return super().write(data) or 0
            except OSError as error:
                is_closed_terminal = error.errno == errno.EIO and self._is_terminal
                if not (isinstance(error, BrokenPipeError) or is_closed_terminal):
                    raise
                self.is_abandoned = True
        return memoryview(data).nbytes


@contextmanager
def lasting_streams() -> Iterator[None]:
    """Let stdout and stderr outlast their readers while the block runs, and escape what their encoding lacks.

    Streams that something else put in place only get the escapes. One that was closed (`>&-`) goes nowhere.
    """
    sys.stdout, sys.stderr = given = sys.stdout or _nowhere(1), sys.stderr or _nowhere(2)
    handlers = [getattr(stream, "errors", None) for stream in given]
    made = [_lasting(stream, descriptor) for descriptor, stream in enumerate(given, start=1)]
    sys.stdout, sys.stderr = made
    try:
        yield
    finally:
        for stream in made:
            _let_go(stream)
        for stream, errors in zip(given, handlers, strict=True):
            if isinstance(stream, io.TextIOWrapper) and not stream.closed:
                stream.reconfigure(errors=errors)
        if (sys.stdout, sys.stderr) == tuple(made):
            sys.stdout, sys.stderr = given


def stdout_is_abandoned() -> bool:
    """Return whether the reader of stdout, such as `head`, has left; only known after a flush."""
    raw = _raw(sys.stdout)
    return isinstance(raw, _Pipe) and raw.is_abandoned


def _lasting(stream: Any, descriptor: int) -> Any:
    """Return a stream to the same descriptor that outlasts its reader; the stream itself if it is not a plain one."""
    codecs.register_error(_ERRORS, _escaped)
    if not isinstance(_raw(stream), io.FileIO) or stream.closed or stream.fileno() != descriptor:
        if isinstance(stream, io.TextIOWrapper):
            in_memory = isinstance(_raw(stream), io.BytesIO)  # its reader expects text of its encoding
            stream.reconfigure(errors="backslashreplace" if in_memory else _ERRORS)
        return stream
    try:
        stream.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)  # what it holds goes nowhere
    raw: Any = _Pipe(descriptor)
    is_buffered = isinstance(stream.buffer, io.BufferedWriter)  # not under PYTHONUNBUFFERED
    return io.TextIOWrapper(
        io.BufferedWriter(raw) if is_buffered else raw,
        stream.encoding,
        _ERRORS,
        line_buffering=stream.line_buffering or descriptor == 2,
        write_through=not is_buffered,
    )


def _nowhere(descriptor: int) -> TextIO:
    """Return a stream that discards what is written, at a descriptor that is closed: the next file must not get it."""
    opened = os.open(os.devnull, os.O_RDWR)
    if opened != descriptor:
        os.dup2(opened, descriptor)
        os.close(opened)
    os.set_inheritable(descriptor, True)
    return open(descriptor, "w", closefd=False)


def _let_go(stream: Any) -> None:
    """Flush a stream; what cannot be written, which `run_command` has reported, goes nowhere."""
    try:
        stream.flush()
    except OSError:
        if isinstance(raw := _raw(stream), _Pipe):
            raw.is_abandoned = True
            stream.flush()


def _raw(stream: Any) -> Any:
    """Return the file below a text stream, None if there is none."""
    buffer = getattr(stream, "buffer", None)
    return getattr(buffer, "raw", buffer)


def _escaped(error: UnicodeError) -> tuple[str | bytes, int]:
    """Encode the bytes of a file name as they are, and anything else that an encoding lacks as a backslash escape."""
    assert isinstance(error, UnicodeEncodeError)
    if ord(error.object[error.start]) in _SURROGATES:
        return bytes([ord(error.object[error.start]) - 0xDC00]), error.start + 1
    escaped, _ = codecs.backslashreplace_errors(
        UnicodeEncodeError(error.encoding, error.object, error.start, error.start + 1, error.reason)
    )
    return escaped, error.start + 1
