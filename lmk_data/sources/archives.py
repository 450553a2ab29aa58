"""Read tars and zips without extracting them: scan the places of all members once, then read a member by its place."""

import os
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import BinaryIO, Literal

import numpy as np

from lmk_data.dataset.format import Rejection
from lmk_data.errors import UserError
from lmk_data.formats import MAX_IMAGE_BYTES
from lmk_data.leftovers import NOT_A_FILE, SPARSE, left_out_of
from lmk_data.sources.links import Links, target_of
from lmk_data.sources.tar_headers import TarEntry, TarHeaders

MAX_DIRECTORY_BYTES = 1 << 30  # of a zip
MAX_MEMBERS = 20_000_000
MAX_ZERO_BYTES = 256 << 20  # after the end mark of a tar
MAX_NAME_LENGTH, MAX_FOLDERS = 4096, 256  # of a member; Linux opens no longer path
RAW = -1  # `method` of a member that is not compressed (tar, folder); zip's own methods are 0 and above
_STORED, _DEFLATED = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED
_OTHER_METHOD = 127  # a method that no zip has; the numbers of the others fit into 8 bits
_LOCAL_HEADER = struct.Struct("<4s5H3L2H")
_LOCAL_MAGIC = b"PK\x03\x04"
_LOCAL_SLACK_BYTES = 1024  # for the name and the extra fields of a local header, read together with the member
_ENCRYPTED, _UTF8 = 0x1, 0x800
_UNIX = 3  # the system that a member of a zip comes from
_LONGEST_TARGET = 4096  # bytes of a link
_READ_AT_ONCE = 1 << 20
ArchiveKind = Literal["tar", "zip"]
Member = tuple[str, int, int, int, int, str]  # source, the fields of `Place`, why it is left out (empty: it is not)


@dataclass(frozen=True, slots=True)
class Place:
    """The place of a member: `offset` of its payload (tar) or local header (zip), stored size, method, checksum."""

    offset: int
    num_bytes: int
    method: int
    crc32: int


def scan_archive(file: BinaryIO, kind: ArchiveKind, location: str) -> Iterator[Member]:
    """Yield the members of an archive that are no folders, in their order, then the files that its links add.

    Only headers are read. A name may occur twice; its last occurrence is the one that extraction would leave. Raises
    UserError for an archive that is damaged or cannot be read by offset.
    """
    try:
        members = _zip_members(file, location) if kind == "zip" else _tar_members(file, location)
        for number, member in enumerate(members):
            if number >= MAX_MEMBERS:
                raise ValueError(f"more than {MAX_MEMBERS:,} members")
            yield member
    except (zipfile.BadZipFile, zlib.error, EOFError, struct.error, ValueError, NotImplementedError) as error:
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


def unpack(data: bytes, place: Place, max_bytes: int) -> bytes | Rejection | int:
    """Return the content of a member from the bytes at its place, or the reason why it has none.

    A member that unpacks to more than `max_bytes` is rejected. Returns an int if the headers of a zip are unusually
    long: the number of bytes that are needed instead. Raises OSError if the archive has changed since the scan.
    """
    start, method, num_bytes = 0, place.method, place.num_bytes
    if method != RAW:
        if len(data) < _LOCAL_HEADER.size or data[:4] != _LOCAL_MAGIC:
            raise OSError(f"no member at offset {place.offset:,} any more; the archive has changed")
        name_bytes, extra_bytes = _LOCAL_HEADER.unpack_from(data)[-2:]
        start = _LOCAL_HEADER.size + name_bytes + extra_bytes
        if start + num_bytes > len(data) == bytes_to_read(place):
            return int(start + num_bytes)
    payload = memoryview(data)[start : start + num_bytes]
    if len(payload) != num_bytes:
        raise OSError(f"ends within the member at offset {place.offset:,}; the archive has changed")
    return data[:num_bytes] if method == RAW else _inflate(payload, place, max_bytes)


def _inflate(payload: memoryview, place: Place, max_bytes: int) -> bytes | Rejection:
    if place.method == _STORED:
        content = bytes(payload)
    elif place.method == _DEFLATED:
        most = min(max_bytes, (MAX_IMAGE_BYTES - len(payload)) // 2)  # zlib joins what it unpacked piece by piece
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            content = inflater.decompress(payload, most + 1)
        except zlib.error as error:
            return Rejection("corrupt", f"zip member: {error}")
        if len(content) > most:
            return Rejection("too-large", f"the file has more than {most:,} bytes, unpacked from a zip")
    else:
        return Rejection("unsupported-format", f"zip compression method {place.method}")
    if zlib.crc32(content) != place.crc32:
        return Rejection("corrupt", "zip member: its checksum does not match")
    return content


class _Members:
    """The members of an archive so far: the place of each file, and the target of each link, by their names."""

    def __init__(self) -> None:
        self.places: dict[str, Place] = {}
        self._links: dict[str, str | None] = {}

    def file(self, name: str, place: Place) -> Iterator[Member]:
        """Add a file; yield it if it has a name."""
        self._links.pop(name, None)
        self.places[name] = place
        if name:
            yield _member(name, place)

    def link(self, name: str, target: str | None) -> None:
        """Add a link, which replaces a file of the same name."""
        self.places.pop(name, None)
        if name:
            self._links[name] = target

    def follow_links(self, location: str) -> Iterator[Member]:
        """Yield the files that links add, and the links that add none."""
        if not self._links:
            return
        nowhere = Place(0, 0, RAW, 0)
        try:
            for name, found in Links(self.places, self._links).follow():
                _check_name(name)
                yield _member(name, nowhere, found) if isinstance(found, str) else _member(name, found)
        except UserError as error:
            raise UserError(f"{location}: {error}") from error


def _member(name: str, place: Place, reason: str = "") -> Member:
    by_name = left_out_of(name)
    return name, place.offset, place.num_bytes, place.method, place.crc32, by_name[1] if by_name else reason


def _tar_members(file: BinaryIO, location: str) -> Iterator[Member]:
    """Yield the members of a tar, or of several that were written one after the other."""
    members = _Members()
    start: int | None = 0
    while start is not None:
        tar = TarHeaders(file, start)
        for entry in tar:
            yield from _tar_member(entry, members)
        start = _next_tar(file, tar.position, location)
    yield from members.follow_links(location)


def _tar_member(entry: TarEntry, members: _Members) -> Iterator[Member]:
    name = _clean_name(entry.name)
    if entry.kind == "link":
        members.link(name, target_of(name, entry.target))
    elif entry.kind == "hard link":  # the same file again, as `tar` writes files that share their data
        target = _clean_name(entry.target)
        if target in members.places:
            yield from members.file(name, members.places[target])
        else:
            members.link(name, target)
    elif entry.kind == "file":
        yield from members.file(name, Place(entry.offset, entry.num_bytes, RAW, 0))
    elif entry.kind != "folder":
        yield _member(name, Place(0, 0, RAW, 0), SPARSE if entry.kind == "sparse" else NOT_A_FILE)


def _next_tar(file: BinaryIO, end: int, location: str) -> int | None:
    """Return where another tar begins after the end mark at `end`, as `cat` leaves it; None if nothing follows.

    Raises UserError if there is no end mark.
    """
    file.seek(end)
    if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise UserError(f"{location}: damaged at byte {end:,}, or an unfinished download; copy it again")
    start = end + tarfile.BLOCKSIZE
    while chunk := file.read(_READ_AT_ONCE):
        if start - end > MAX_ZERO_BYTES:
            raise ValueError(f"more than {MAX_ZERO_BYTES >> 20} MB of zeros after the end mark at byte {end:,}")
        if content := chunk.lstrip(b"\0"):
            start += len(chunk) - len(content)
            return start - (start - end) % tarfile.BLOCKSIZE
        start += len(chunk)
    return None


class _Bounded:
    """A zip for `zipfile`, which otherwise reads as many bytes at once as the zip states of its directory."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.num_bytes = file.seek(0, os.SEEK_END)
        self.seek, self.tell = file.seek, file.tell

    def read(self, num_bytes: int = -1) -> bytes:
        most = self.num_bytes - self.tell()
        if not 0 <= num_bytes <= most:
            num_bytes = most
        if num_bytes > MAX_DIRECTORY_BYTES:
            raise zipfile.BadZipFile(f"its directory has more than {MAX_DIRECTORY_BYTES:,} bytes")
        return self._file.read(num_bytes)

    def seekable(self) -> bool:
        return True


def _zip_members(file: BinaryIO, location: str) -> Iterator[Member]:
    members, bounded = _Members(), _Bounded(file)
    with zipfile.ZipFile(bounded) as archive:
        infos = archive.infolist()
        _check_start(file, infos, location)
        _check_places(infos, bounded.num_bytes)
        for member in infos:
            if member.flag_bits & _ENCRYPTED:
                raise UserError(f"{location}: encrypted; unpack it and give the folder")
            name = _clean_name(_zip_name(member))
            if _is_link(member):
                with archive.open(member) as content:
                    target = content.read(_LONGEST_TARGET).decode("utf-8", "surrogateescape")
                members.link(name, target_of(name, target))
            elif not (member.is_dir() or name.endswith("/")):
                yield from members.file(name, _zip_place(member))
    yield from members.follow_links(location)


def _zip_place(member: zipfile.ZipInfo) -> Place:
    """Return the place of a member; what says that it unpacks to more than any picture is as large there."""
    num_bytes = member.file_size if member.file_size > MAX_IMAGE_BYTES else member.compress_size
    return Place(member.header_offset, num_bytes, min(member.compress_type, _OTHER_METHOD), member.CRC)


def _check_places(infos: list[zipfile.ZipInfo], num_bytes: int) -> None:
    """Raise BadZipFile unless each member has its own bytes of the file: a small zip can state the same ones often."""
    places = np.array([(info.header_offset, info.compress_size) for info in infos], dtype=object).reshape(-1, 2)
    starts, sizes = places.T
    if (starts < 0).any() or (starts + sizes + _LOCAL_HEADER.size > num_bytes).any():
        raise zipfile.BadZipFile("a member lies outside the file")
    order = np.argsort(starts)
    ends = (starts + sizes + _LOCAL_HEADER.size)[order]
    if (ends[:-1] > starts[order][1:]).any():
        raise zipfile.BadZipFile("members lie over one another")


def _check_start(file: BinaryIO, infos: list[zipfile.ZipInfo], location: str) -> None:
    """Raise UserError for a zip that begins with members that its directory does not list, as `cat` leaves it."""
    file.seek(0)
    if file.read(4) == _LOCAL_MAGIC and all(info.header_offset for info in infos):
        raise UserError(f"{location}: its directory does not list its first members; are these several zips in one?")


def _zip_name(member: zipfile.ZipInfo) -> str:
    """Return the name of a member of a zip as the system that made it meant it.

    Names that are not marked as UTF-8 are UTF-8 nevertheless if they can be, as those from macOS; else cp437. Windows
    may separate folders with back slashes.
    """
    name = member.filename
    if not member.flag_bits & _UTF8:
        with suppress(UnicodeError):
            name = name.encode("cp437").decode("utf-8")
    return name if member.create_system == _UNIX else name.replace("\\", "/")


def _is_link(member: zipfile.ZipInfo) -> bool:
    """Return whether a member of a zip is a symbolic link, whose content is its target."""
    is_link = member.create_system == _UNIX and stat.S_ISLNK(member.external_attr >> 16)
    return is_link and member.file_size <= _LONGEST_TARGET and member.compress_type in (_STORED, _DEFLATED)


def _clean_name(name: str) -> str:
    """Return the name of a member without parts that mean nothing (`./`, `//`); a leading slash stays."""
    if "./" in name or "//" in name:
        root = "/" if name.startswith("/") else ""
        name = root + "/".join(part for part in name.split("/") if part not in ("", "."))
    _check_name(name)
    return readable_name(name)


def _check_name(name: str) -> None:
    """Raise ValueError for a name that is longer than any path: a small archive can hold names without end."""
    if len(name) > MAX_NAME_LENGTH or name.count("/") > MAX_FOLDERS:
        raise ValueError(f"the name of a member has more than {MAX_NAME_LENGTH:,} characters or {MAX_FOLDERS} folders")


def readable_name(name: str) -> str:
    """Return a file name as text, with bytes that are not UTF-8 as `\\x..`; such a path counts as unsafe."""
    return name if name.isascii() else name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
