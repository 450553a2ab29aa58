"""Read an untrusted file: a bounded, regular file of JSON with a declared shape."""

import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

import msgspec

from lmk_data.errors import UserError, one_line
from lmk_data.system import files

MAX_JSON_BYTES = 64 << 20
Shape = TypeVar("Shape")


@contextmanager
def open_regular(path: Path) -> Iterator[BinaryIO]:
    """Open a file for reading; a FIFO or a device, which may have no end, is refused.

    Raises:
        FileNotFoundError: there is none.
        UserError: it is not a regular file, or cannot be opened.
    """
    try:
        raw = files.open_regular(path)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    with io.BufferedReader(cast(io.RawIOBase, raw)) as file:
        yield cast(BinaryIO, file)


def read_end(path: Path, num_bytes: int) -> bytes:
    """Return the last bytes of a file, up to `num_bytes`. Raises as `read_bounded`."""
    with open_regular(path) as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - num_bytes))
        return file.read(num_bytes)


def read_bounded(path: Path, max_bytes: int = MAX_JSON_BYTES) -> bytes:
    """Return the content of a file.

    Raises:
        FileNotFoundError: there is none.
        UserError: it is not a regular file, cannot be read, or is larger than `max_bytes`.
    """
    with open_regular(path) as file:
        try:
            data = file.read(max_bytes + 1)
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    if len(data) > max_bytes:
        raise UserError(f"{path}: larger than {max_bytes >> 20} MB; not a file of lmk")
    return data


def read_json(path: Path, shape: type[Shape], what: str) -> Shape:
    """Return the JSON value of a file, checked against a type; `what` names it, such as "the metrics of a split".

    Raises:
        FileNotFoundError: there is no such file.
        UserError: it cannot be read or does not have the shape.
    """
    try:
        return checked(json.loads(read_bounded(path)), shape)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not {what} ({one_line(error)})") from None


def checked(value: Any, shape: type[Shape]) -> Shape:
    """Return a plain value as the type `shape`; ValueError, in one line, if it is not of that shape."""
    try:
        return msgspec.convert(value, shape)
    except (msgspec.ValidationError, RecursionError) as error:
        raise ValueError(one_line(error)) from None
