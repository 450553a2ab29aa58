"""The tar of a shard, byte for byte: the members of a sample, their headers, and the end of the archive."""

import hashlib
import tarfile
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO, NamedTuple

from lmk_data.dataset.format import canonical_json, is_safe_key
from lmk_data.errors import DatasetError

BLOCK_BYTES = tarfile.BLOCKSIZE
# The values that webdataset's TarWriter writes with user="lmk", group="lmk", mtime=0 and its default mode.
_OWNER, _MODE = "lmk", 0o444


def _blank_header() -> bytes:
    """Return a header without name, size and checksum, whose field counts as spaces in the sum."""
    member = tarfile.TarInfo("")
    member.mode, member.uname, member.gname = _MODE, _OWNER, _OWNER
    header = bytearray(member.tobuf(tarfile.USTAR_FORMAT))
    header[124:135], header[148:156] = bytes(11), b" " * 8
    return bytes(header)


_HEADER = _blank_header()
_HEADER_SUM = sum(_HEADER)


class TarFile:
    """A writer of an uncompressed USTAR file, byte for byte as webdataset's `TarWriter` writes it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self.num_bytes = 0

    def add(self, name: str, data: bytes) -> int:
        """Append a member; return the offset of its payload in bytes.

        Raises DatasetError for a name that does not begin with a safe key: it may come from a stranger's index.
        """
        if not is_safe_key(name.partition(".")[0]):
            raise DatasetError(f"the key {name[:200]!r} is not of the documented form; do not trust this dataset")
        offset = self.num_bytes + BLOCK_BYTES
        self._write(b"".join((member_header(name, len(data)), data, padding(len(data)))))
        return offset

    def close(self) -> str:
        """Write the end of the archive; return the sha256 of the whole file."""
        self._write(bytes(end_bytes(self.num_bytes)))
        return self._digest.hexdigest()

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)
        self.num_bytes += len(data)


def member_header(name: str, num_bytes: int) -> bytes:
    """Return the 512 bytes before a member's payload. Headers differ only in name, size and checksum."""
    encoded, size = name.encode(), b"%011o" % num_bytes
    assert len(encoded) <= 100, "keys are short enough for the name field"
    assert len(size) == 11, "pictures are small enough for the size field"
    header = bytearray(_HEADER)
    header[: len(encoded)] = encoded
    header[124:135] = size
    header[148:156] = b"%06o\0 " % (_HEADER_SUM + sum(encoded) + sum(size))
    return bytes(header)


def padding(num_bytes: int) -> bytes:
    """Return the zeros that fill the last block of a payload of `num_bytes`."""
    return bytes(-num_bytes % BLOCK_BYTES)


def end_bytes(num_bytes: int) -> int:
    """Return how many zeros end an archive whose members take `num_bytes`: two blocks, then to the end of a record."""
    end = 2 * BLOCK_BYTES
    return end + -(num_bytes + end) % tarfile.RECORDSIZE


class Member(NamedTuple):
    """The place of a member's payload in a tar, in bytes."""

    extension: str
    offset: int
    num_bytes: int


def sample_members(row: Mapping[str, Any]) -> tuple[Member, Member, Member]:
    """Return where `.cls`, `.jpg` and `.json` of an index row lie; each header is the block before its payload."""
    jpg_offset, jpg_bytes = row["jpg_offset"], row["jpg_size"]
    json_offset = jpg_offset + jpg_bytes + len(padding(jpg_bytes)) + BLOCK_BYTES
    return (
        Member("cls", jpg_offset - 2 * BLOCK_BYTES, len(cls_bytes(row))),
        Member("jpg", jpg_offset, jpg_bytes),
        Member("json", json_offset, len(json_bytes(row))),
    )


def end_of_members(members: Sequence[Member]) -> int:
    """Return the offset at which the last of these members ends, with its padding."""
    last = members[-1]
    return last.offset + last.num_bytes + len(padding(last.num_bytes))


def cls_bytes(row: Mapping[str, Any]) -> bytes:
    """Return the content of a sample's `.cls`: the dense label of its index row, in ASCII."""
    return str(row["label"]).encode()


def json_bytes(row: Mapping[str, Any]) -> bytes:
    """Return the content of a sample's `.json`, from its index row."""
    names = ("key", "label", "landmark_id", "original_height", "original_width")
    return canonical_json({name: row[name] for name in names})
