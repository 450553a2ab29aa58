"""Read tars and zips without extracting them: scan the places of all members once, then read a member by its place."""

import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Literal

from lmk_data.dataset.format import Rejection
from lmk_data.errors import UserError

MAX_IMAGE_BYTES = 1 << 30
RAW = -1  # `method` of a member that is not compressed (tar, folder); zip's own methods are 0 and above
_STORED, _DEFLATED = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED
_LOCAL_HEADER = struct.Struct("<4s5H3L2H")
_LOCAL_MAGIC = b"PK\x03\x04"
_LOCAL_SLACK_BYTES = 1024  # for the name and the extra fields of a local header, read together with the member
_ENCRYPTED = 0x1
ArchiveKind = Literal["tar", "zip"]
Member = tuple[str, int, int, int, int]  # source, then the fields of `Place`


@dataclass(frozen=True, slots=True)
class Place:
    """The place of a member: `offset` of its payload (tar) or local header (zip), stored size, method, checksum."""

    offset: int
    num_bytes: int
    method: int
    crc32: int


def scan_archive(file: BinaryIO, kind: ArchiveKind, location: str) -> Iterator[Member]:
    """Yield the regular files of an archive in their order; only headers are read.

    A name may occur twice; its last occurrence is the one that extraction would leave. Raises UserError for an
    archive that is damaged or cannot be read by offset.
    """
    try:
        yield from _zip_members(file, location) if kind == "zip" else _tar_members(file, location)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, struct.error, ValueError, NotImplementedError) as error:
        raise UserError(
            f"{location}: cannot be read as a {kind} ({error}); copy it again, an unfinished download ends like this"
        ) from error


def archive_kind(head: bytes) -> ArchiveKind | None:
    """Return the kind of an archive from the first 512 bytes of the file; None if it cannot be read by offset."""
    if head[:4] in (_LOCAL_MAGIC, b"PK\x05\x06"):
        return "zip"
    try:
        tarfile.TarInfo.frombuf(head[:512], "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return None
    return "tar"


def bytes_to_read(place: Place) -> int:
    """Return how many bytes to read at `place.offset` to get a member and its headers."""
    slack = 0 if place.method == RAW else _LOCAL_HEADER.size + _LOCAL_SLACK_BYTES
    return place.num_bytes + slack


def unpack(data: bytes, place: Place) -> bytes | Rejection | int:
    """Return the content of a member from the bytes at its place, or the reason why it has none.

    Returns an int if the headers of a zip are unusually long: the number of bytes that are needed instead.
    Raises OSError if the archive has changed since the scan.
    """
    start, method, num_bytes = 0, place.method, place.num_bytes
    if method != RAW:
        if len(data) < _LOCAL_HEADER.size or data[:4] != _LOCAL_MAGIC:
            raise OSError(f"no member at offset {place.offset:,} any more; the archive has changed")
        name_bytes, extra_bytes = _LOCAL_HEADER.unpack_from(data)[-2:]
        start = _LOCAL_HEADER.size + name_bytes + extra_bytes
        if start + num_bytes > len(data) == bytes_to_read(place):
            return int(start + num_bytes)
    payload = data[start : start + num_bytes]
    if len(payload) != num_bytes:
        raise OSError(f"ends within the member at offset {place.offset:,}; the archive has changed")
    return payload if method == RAW else _inflate(payload, method, place.crc32)


def _inflate(payload: bytes, method: int, crc32: int) -> bytes | Rejection:
    if method == _DEFLATED:
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            payload = inflater.decompress(payload, MAX_IMAGE_BYTES + 1)
        except zlib.error as error:
            return Rejection("corrupt", f"zip member: {error}")
        if len(payload) > MAX_IMAGE_BYTES:
            return Rejection("too-large", f"the file has more than {MAX_IMAGE_BYTES:,} bytes")
    elif method != _STORED:
        return Rejection("unsupported-format", f"zip compression method {method}")
    if zlib.crc32(payload) != crc32:
        return Rejection("corrupt", "zip member: its checksum does not match")
    return payload


def _tar_members(file: BinaryIO, location: str) -> Iterator[Member]:
    with tarfile.open(fileobj=file, mode="r:", errorlevel=2) as tar:
        places: dict[str, tuple[int, int]] = {}
        for member in tar:
            if member.isreg() and not member.issparse():
                places[member.name] = (member.offset_data, member.size)
            elif member.islnk() and member.linkname in places:  # a hard link to an earlier member
                places[member.name] = places[member.linkname]
            if member.name in places and (name := _listed_name(member.name)):
                yield name, *places[member.name], RAW, 0
            tar.members = []  # type: ignore[attr-defined]  # otherwise tarfile keeps every header
        end = tar.offset
    file.seek(end)
    if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise UserError(f"{location}: damaged at byte {end:,}, or an unfinished download; copy it again")


def _zip_members(file: BinaryIO, location: str) -> Iterator[Member]:
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            if member.flag_bits & _ENCRYPTED:
                raise UserError(f"{location}: encrypted; unpack it and give the folder")
            if not member.is_dir() and (name := _listed_name(member.filename)):
                yield name, member.header_offset, member.compress_size, member.compress_type, member.CRC


def _listed_name(name: str) -> str | None:
    """Return the name of a member as a relative path; None for hidden files."""
    while name.startswith("./"):
        name = name[2:]
    parts = name.split("/")
    if any(part.startswith(".") and part != ".." for part in parts):
        return None
    return readable_name(name) or None


def readable_name(name: str) -> str:
    """Return a file name as text, with bytes that are not UTF-8 as `\\x..`; such a path counts as unsafe."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
