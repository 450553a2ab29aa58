"""The headers of a tar, read in bounded memory: sizes are claims, offsets only go forward, chains of headers end."""

import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Literal

MAX_HEADER_BYTES = 1 << 20  # of one extension header: long names, and attributes that systems keep there
MAX_HEADERS = 16  # extension headers before one member
_MAX_SPARSE_MAP_BYTES = 16 << 20  # for 700,000 holes
_BLOCK = tarfile.BLOCKSIZE
_LONG_NAME, _LONG_TARGET, _GLOBAL = b"L", b"K", b"g"
_PAX = (b"x", b"X")
_SPARSE = b"S"
_EXTENSIONS = (_LONG_NAME, _LONG_TARGET, _GLOBAL, *_PAX)
_FILES = (b"0", b"\0", b"7")
_WITHOUT_DATA = (b"1", b"2", b"3", b"4", b"5", b"6")
_LONGEST_NUMBER = 20  # digits of a size
_GNU_MAGIC = b"ustar  \0"  # such headers have times where others have the beginning of the name
Kind = Literal["file", "folder", "hard link", "link", "sparse", "other"]
_KINDS: dict[bytes, Kind] = {b"1": "hard link", b"2": "link", b"5": "folder", _SPARSE: "sparse"}


class DamagedTarError(ValueError):
    """A header that no tar has, at a byte of the file."""

    def __init__(self, what: str, position: int) -> None:
        super().__init__(f"{what} at byte {position:,}")


@dataclass(frozen=True, slots=True)
class TarEntry:
    """One member of a tar. `target` is what a link names; `offset` and `num_bytes` are the place of its payload."""

    name: str
    kind: Kind
    target: str
    offset: int
    num_bytes: int


class TarHeaders:
    """The members of one tar that begins at `start` in a file, in their order; `position` is where it ends."""

    def __init__(self, file: BinaryIO, start: int) -> None:
        self._file = file
        self._end = file.seek(0, os.SEEK_END)
        self.position = start

    def __iter__(self) -> Iterator[TarEntry]:
        """Yield the members up to a header that is none, such as the end mark.

        Raises DamagedTarError for a member that is not whole, or whose headers are over the limits.
        """
        while (header := self._header()) is not None:
            yield self._entry(header)

    def _header(self) -> bytes | None:
        """Return the header at `position`, None if none is there."""
        header = self._read()
        return header if _has_checksum(header) else None

    def _entry(self, header: bytes) -> TarEntry:
        """Return the member that begins with a header at `position`, and move behind it."""
        stated: dict[str, str] = {}
        num_headers = 0
        while (kind := header[156:157]) in _EXTENSIONS:
            num_headers += 1
            if num_headers > MAX_HEADERS:
                raise DamagedTarError(f"more than {MAX_HEADERS} extension headers before a member", self.position)
            for name, value in self._extension(header, kind).items():
                stated.setdefault(name, value)
            following = self._header()
            if following is None:
                raise DamagedTarError("an extension header without a member", self.position)
            header = following
        if kind == _SPARSE:
            self._skip_sparse_map(header)
        name = stated.get("GNU.sparse.name") or stated.get("path") or _name_of(header)
        if kind == b"\0" and name.endswith("/"):  # as tars of Unix V7 mark folders
            kind = b"5"
        offset = self.position + _BLOCK
        num_bytes = self._number(stated["size"].encode(), 10) if "size" in stated else self._size(header)
        if kind not in _WITHOUT_DATA:
            self._move_over(num_bytes)
        else:
            self.position = offset
        target = stated.get("linkpath") or _text(header[157:257])
        return TarEntry(name, _kind_of(kind, stated), target, offset, num_bytes)

    def _extension(self, header: bytes, kind: bytes) -> dict[str, str]:
        """Return what an extension header at `position` states of the next member, and move behind it."""
        num_bytes, start = self._size(header), self.position + _BLOCK
        if num_bytes > MAX_HEADER_BYTES:
            raise DamagedTarError(f"an extension header of {num_bytes:,} bytes", self.position)
        self._move_over(num_bytes)
        if kind == _GLOBAL:
            return {}
        self._file.seek(start)
        data = self._file.read(num_bytes)
        if kind in _PAX:
            return self._pax_records(data, start)
        return {"path" if kind == _LONG_NAME else "linkpath": _text(data)}

    def _pax_records(self, data: bytes, start: int) -> dict[str, str]:
        """Return the records `<length> <name>=<value>\\n` of a pax header."""
        records: dict[str, str] = {}
        position = 0
        while position < len(data) and data[position]:
            digits, _, _ = data[position : position + _LONGEST_NUMBER].partition(b" ")
            length = self._number(digits, 10)
            name, equals, value = data[position + len(digits) + 1 : position + length - 1].partition(b"=")
            if not equals or data[position + length - 1 : position + length] != b"\n":
                raise DamagedTarError("a damaged pax header", start)
            records[_text(name)] = value.decode("utf-8", "surrogateescape")
            position += length
        if "path" in records:
            records["path"] = records["path"].rstrip("/")
        return records

    def _skip_sparse_map(self, header: bytes) -> None:
        """Move to the last header of a sparse file of GNU's old format, which lists more holes in further blocks."""
        more, end = header[482], self.position + _MAX_SPARSE_MAP_BYTES
        while more:
            self.position += _BLOCK
            if self.position > end:
                raise DamagedTarError("a map of holes without end", self.position)
            block = self._read()
            more = block[504] if len(block) == _BLOCK else 0

    def _size(self, header: bytes) -> int:
        """Return the size of the payload that a header states, which is in octal digits or, for large ones, binary."""
        field = header[124:136]
        if field[0] in (0x80, 0xFF):
            return int.from_bytes(field[1:], "big") - (1 << 88 if field[0] == 0xFF else 0)
        return self._number(field.partition(b"\0")[0].strip() or b"0", 8)

    def _number(self, digits: bytes, base: int) -> int:
        if not digits.isdigit() or len(digits) > _LONGEST_NUMBER:
            raise DamagedTarError("a header with a size that is no number", self.position)
        try:
            return int(digits, base)
        except ValueError:
            raise DamagedTarError("a header with a size that is no number", self.position) from None

    def _move_over(self, num_bytes: int) -> None:
        """Move from a header to what follows its payload. Raises DamagedTarError if the file ends before."""
        end = self.position + _BLOCK + num_bytes
        if num_bytes < 0 or end > self._end:
            raise DamagedTarError(f"a header that states {num_bytes:,} bytes, which are not there,", self.position)
        self.position = end + -num_bytes % _BLOCK

    def _read(self) -> bytes:
        self._file.seek(self.position)
        return self._file.read(_BLOCK)


def _kind_of(kind: bytes, stated: dict[str, str]) -> Kind:
    if kind in _FILES:
        return "sparse" if any(name.startswith("GNU.sparse.") for name in stated) else "file"
    return _KINDS.get(kind, "other")


def _has_checksum(header: bytes) -> bool:
    """Return whether a block has the checksum of a header: the sum of its bytes, which some old tars took as signed."""
    field = header[148:156].partition(b"\0")[0].strip()
    if len(header) < _BLOCK or not field.isdigit() or field.translate(None, b"01234567"):
        return False
    others = header[:148] + header[156:]
    total = sum(others) + 8 * ord(" ")
    return int(field, 8) in (total, total - 256 * sum(byte > 127 for byte in others))


def _name_of(header: bytes) -> str:
    prefix = b"" if header[257:265] == _GNU_MAGIC else header[345:500].partition(b"\0")[0]
    name = header[:100].partition(b"\0")[0]
    return _text(prefix + b"/" + name if prefix else name)


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "surrogateescape")
