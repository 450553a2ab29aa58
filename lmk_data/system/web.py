"""Web servers behind fsspec: their answers are bounded in bytes, and a server that says nothing is given up."""

import io
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any
from urllib.parse import unquote

from lmk_data.errors import TooLargeError
from lmk_data.system.files import MAX_FILE_BYTES

MAX_LISTING_BYTES = 64 << 20
MAX_WHOLE_BYTES = 64 << 20  # of a file that is sent whole where a part of it is asked for
SILENT_SECONDS = 20  # without a byte of an answer, or before a connection is there
MAX_ANSWER_SECONDS = 3600
LEAST_BYTES_PER_SECOND = 1024  # of an answer, once it takes longer than `_SLOW_SECONDS`
_SLOW_SECONDS = 60
_LATER = (408, 425, 429)  # what a server answers that may have the file, but not now
_MAX_ANSWER: ContextVar[int] = ContextVar("max_answer", default=MAX_FILE_BYTES)


def is_web(file_system: Any) -> bool:
    """Return whether an fsspec file system is a web server."""
    stated = file_system.protocol
    return bool({"http", "https"} & set((stated,) if isinstance(stated, str) else stated))


def web_options(url: str) -> dict[str, Any]:
    """Return what fsspec is given for a URL, or for the links of a chain of them, that lead to web servers."""
    schemes = {link.partition("://")[0] for link in url.split("::")} & {"http", "https"}
    return {scheme: {"get_client": _client} for scheme in schemes}


@contextmanager
def bounded_answers(max_bytes: int) -> Iterator[None]:
    """Let no answer of a web server have more bytes while the block runs. Reading one then raises TooLargeError."""
    token = _MAX_ANSWER.set(max_bytes)
    try:
        yield
    finally:
        _MAX_ANSWER.reset(token)


def exists(file_system: Any, url: str) -> bool:
    """Return whether a web server has a file. Raises FileNotFoundError, which is not `is_absent`, if it did not say."""
    try:
        file_system.info(url)
    except FileNotFoundError as error:
        if not is_absent(error):
            raise
        return False
    return True


def link_below(folder: str, url: str) -> str:
    """Return the path below a folder to which its page links; empty for a link to itself, in another order, or out.

    In the path, `%20` of the link is a space; bytes that are not UTF-8 are as in names of files.
    """
    above = [unquote(part, errors="surrogateescape") for part in folder.split("/")]
    quoted = [part for part in url.split("/")[len(above) :] if part not in ("", ".")]
    parts = [unquote(part, errors="surrogateescape") for part in quoted]
    is_below = [unquote(part, errors="surrogateescape") for part in url.split("/")[: len(above)]] == above
    leads_out = not is_below or any(part in ("", ".", "..") or "/" in part for part in parts)
    return "" if leads_out or not parts or quoted[-1][0] in "?#" else "/".join(parts)


def is_absent(error: FileNotFoundError) -> bool:
    """Return whether a server said that a file does not exist; fsspec also says so if there was no answer at all."""
    cause = error.__cause__
    if not isinstance(cause, TimeoutError) and not type(cause).__module__.startswith("aiohttp"):
        return True
    status = getattr(cause, "status", 0)
    return 400 <= status < 500 and status not in _LATER


class WebFile(io.RawIOBase):
    """A file of a web server, read part by part; a file that is sent whole for a part is kept, up to its limit."""

    def __init__(self, file_system: Any, url: str) -> None:
        self._file_system, self._url, self._position = file_system, url, 0
        self._num_bytes: int | None = file_system.size(url)
        self._whole: bytes | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._length()}[whence]
        self._position = max(0, start + offset)
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        end = min(self._position + len(view), self._length())
        data = self._part(self._position, end) if self._position < end else b""
        view[: len(data)] = data
        self._position += len(data)
        return len(data)

    def _length(self) -> int:
        if self._num_bytes is None:  # the server does not say
            self._whole = self._fetch(None, None)
            self._num_bytes = len(self._whole)
        return self._num_bytes

    def _part(self, start: int, end: int) -> bytes:
        if self._whole is None:
            data = self._fetch(start, end)
            if len(data) <= end - start:
                return data
            self._whole = data
        return self._whole[start:end]

    def _fetch(self, start: int | None, end: int | None) -> bytes:
        with bounded_answers(max((end or 0) - (start or 0), MAX_WHOLE_BYTES)):
            return bytes(self._file_system.cat_file(self._url, start=start, end=end))


async def _client(**options: Any) -> Any:
    """Return the session of a web server, as fsspec's own but with limits."""
    import aiohttp

    timeout = aiohttp.ClientTimeout(MAX_ANSWER_SECONDS, sock_connect=SILENT_SECONDS, sock_read=SILENT_SECONDS)
    return aiohttp.ClientSession(**{"timeout": timeout, "response_class": _answer_class(), **options})


@cache
def _answer_class() -> type[Any]:
    import aiohttp

    class Answer(aiohttp.ClientResponse):
        """An answer whose body is read up to a limit, whatever the server states of it."""

        async def read(self) -> bytes:
            if self._body is None:
                try:
                    self._body = await self._bounded(_MAX_ANSWER.get())
                except BaseException:
                    self.close()
                    raise
            return await super().read()

        async def _bounded(self, max_bytes: int) -> bytes:
            stated, started, body = self.content_length, time.monotonic(), bytearray()
            if stated is not None and stated > max_bytes and self.method != "HEAD":
                raise TooLargeError(max_bytes)
            async for part in self.content.iter_any():
                body += part
                if len(body) > max_bytes:
                    raise TooLargeError(max_bytes)
                seconds = time.monotonic() - started
                if seconds > _SLOW_SECONDS and len(body) < seconds * LEAST_BYTES_PER_SECOND:
                    raise TimeoutError
            return bytes(body)

    return Answer
