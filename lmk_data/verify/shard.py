"""Compare a shard with its rows of the index: every byte, as webdataset reads it, and as pictures."""

import hashlib
import io
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
from PIL import Image

from lmk_data.dataset.tar import cls_bytes, end_bytes, json_bytes, member_header, padding
from lmk_data.decoding import checked_jpeg
from lmk_data.system.storage import Folder

_READ_AT_ONCE = 4 << 20


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is wrong, in bytes `start` to `end` (exclusive) of a file where that is known."""

    location: str
    what: str
    start: int | None = None
    end: int | None = None

    def __str__(self) -> str:
        where = "" if self.start is None else f" bytes {self.start:,} to {(self.end or self.start + 1) - 1:,}:"
        return f"{self.location}:{where} {self.what}"


@dataclass(frozen=True, slots=True)
class ShardToCheck:
    """A shard to check. `rows` are its rows of the index as an Arrow stream, in a view only some of its samples.

    `size` is the side of its pictures in pixels. With `as_others_read` webdataset reads it too. Of `decode_every`
    pictures one is decoded; 0 decodes none.
    """

    folder: Folder
    name: str
    num_bytes: int
    sha256: str
    rows: bytes
    size: int
    as_others_read: bool
    decode_every: int
    is_view: bool


@dataclass(frozen=True, slots=True)
class CheckedShard:
    """What a check found: the problems, how many bytes the shard should have, and how many pictures were decoded."""

    problems: list[Problem]
    num_bytes: int
    num_decoded: int = 0


def check_shard(task: ShardToCheck) -> CheckedShard:
    """Check a tar, as far as it can be read."""
    rows = pa.ipc.open_stream(task.rows).read_all().to_pylist()
    location = task.folder.location(task.name)
    try:
        num_bytes = task.folder.size(task.name)
        if num_bytes != task.num_bytes:
            start, end = sorted((num_bytes, task.num_bytes))
            what = f"{num_bytes:,} bytes instead of {task.num_bytes:,}"
            return CheckedShard([Problem(location, what, start, end)], task.num_bytes)
        problems = list(_check_pictures(task, rows) if task.is_view else _check_bytes(task, rows))
        if not problems and task.as_others_read:
            problems = list(_check_as_others_read(task, rows))
        decoded = 0
        if not problems and task.decode_every:
            chosen = rows[:: task.decode_every]
            problems, decoded = list(_check_decoding(task, chosen)), len(chosen)
    except OSError as error:
        return CheckedShard([Problem(location, f"cannot be read: {error.strerror or error}")], task.num_bytes)
    return CheckedShard(problems, task.num_bytes, decoded)


def first_difference(actual: bytes, expected: bytes) -> int:
    """Return the first position at which two byte strings differ, or at which the shorter one ends."""
    a, b = np.frombuffer(actual, np.uint8), np.frombuffer(expected, np.uint8)
    size = min(len(a), len(b))
    different = np.flatnonzero(a[:size] != b[:size])
    return int(different[0]) if len(different) else size


def _check_bytes(task: ShardToCheck, rows: list[dict[str, Any]]) -> Iterator[Problem]:
    """Check every byte of a tar against the index or the checksum of a picture, and the hash of the tar."""
    location = task.folder.location(task.name)
    with task.folder.open(task.name) as file:
        reader = _Hashing(file)
        for position, row in enumerate(rows):
            if row["position"] != position:
                yield Problem(location, f"the index has sample {row['key']} at position {row['position']}")
                return
            cls, jpg_bytes = cls_bytes(row), row["jpg_size"]
            before = member_header(f"{row['key']}.cls", len(cls)) + cls + padding(len(cls))
            before += member_header(f"{row['key']}.jpg", jpg_bytes)
            json_data = json_bytes(row)
            after = padding(jpg_bytes) + member_header(f"{row['key']}.json", len(json_data))
            after += json_data + padding(len(json_data))
            if (
                problem := reader.expect(before, f"sample {row['key']}: not what the index says", location)
            ) is not None:
                yield problem
                return
            if reader.position != row["jpg_offset"]:
                yield Problem(
                    location, f"sample {row['key']}: its picture lies at {reader.position:,}, not where the index says"
                )
                return
            start = reader.position
            if zlib.crc32(reader.read(jpg_bytes)) != row["jpg_crc32"]:
                what = f"sample {row['key']}: the picture is damaged (its checksum differs)"
                yield Problem(location, what, start, start + jpg_bytes)
                return
            if (problem := reader.expect(after, f"sample {row['key']}: not what the index says", location)) is not None:
                yield problem
                return
        end = bytes(end_bytes(reader.position))
        if (problem := reader.expect(end, "not the end of the tar", location)) is not None:
            yield problem
        elif reader.read(1):
            yield Problem(location, "bytes after the end of the tar", reader.position - 1, task.num_bytes)
        elif reader.sha256() != task.sha256:
            yield Problem(location, "its sha256 is not that of the manifest, though every byte agrees with the index")


class _Hashing:
    """A file that is hashed while it is read from beginning to end."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = io.BufferedReader(file, _READ_AT_ONCE) if isinstance(file, io.RawIOBase) else file
        self._digest = hashlib.sha256()
        self.position = 0

    def read(self, num_bytes: int) -> bytes:
        data = self._file.read(num_bytes)
        self._digest.update(data)
        self.position += len(data)
        return data

    def expect(self, expected: bytes, what: str, location: str) -> Problem | None:
        """Read the expected bytes; return the problem at the first byte that differs, or None."""
        start = self.position
        actual = self.read(len(expected))
        if actual == expected:
            return None
        start += first_difference(actual, expected)
        return Problem(location, what, start, start + 1)

    def sha256(self) -> str:
        return self._digest.hexdigest()


def _check_pictures(task: ShardToCheck, rows: list[dict[str, Any]]) -> Iterator[Problem]:
    """Check that the pictures of a view are the ones that its index describes."""
    location = task.folder.location(task.name)
    for row in rows:
        start, num_bytes = row["jpg_offset"], row["jpg_size"]
        if zlib.crc32(task.folder.read_range(task.name, start, num_bytes)) != row["jpg_crc32"]:
            yield Problem(location, f"sample {row['key']}: the picture is damaged", start, start + num_bytes)
            return


def _check_as_others_read(task: ShardToCheck, rows: list[dict[str, Any]]) -> Iterator[Problem]:
    """Check that webdataset, an independent reader, finds the samples of the index in the same order."""
    from webdataset.tariterators import group_by_keys, tar_file_expander

    location = task.folder.location(task.name)
    with task.folder.open(task.name) as file:  # one sample at a time: a shard may be larger than the memory
        samples = group_by_keys(tar_file_expander([{"url": location, "stream": file}]))
        read = ((one["__key__"], one["cls"], zlib.crc32(one["jpg"]), one["json"]) for one in samples)
        indexed = ((row["key"], cls_bytes(row), row["jpg_crc32"], json_bytes(row)) for row in rows)
        for number, (actual, expected) in enumerate(zip_longest(read, indexed)):
            if actual != expected:
                what = f"webdataset reads other samples than the index has, from sample {number} of {len(rows)} on"
                yield Problem(location, what)
                return


def _check_decoding(task: ShardToCheck, rows: list[dict[str, Any]]) -> Iterator[Problem]:
    """Check that pictures decode to the size and mode of the recipe."""
    location = task.folder.location(task.name)
    for row in rows:
        start, num_bytes = row["jpg_offset"], row["jpg_size"]
        jpeg = task.folder.read_range(task.name, start, num_bytes)
        try:
            with Image.open(io.BytesIO(checked_jpeg(jpeg, task.size)), formats=["JPEG"]) as image:
                image.load()
                mode = image.mode
        except (OSError, SyntaxError, ValueError) as error:
            yield Problem(location, f"sample {row['key']}: does not decode: {error}", start, start + num_bytes)
            continue
        if mode != "RGB":
            what = f"sample {row['key']}: pixels of the kind {mode} instead of RGB"
            yield Problem(location, what, start, start + num_bytes)
