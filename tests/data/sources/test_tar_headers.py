"""Tars whose headers state what is not so: each ends as a line that names the archive, and honest ones are read."""

import io
import itertools
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from lmk_data.errors import UserError
from lmk_data.leftovers import SPARSE
from lmk_data.sources import archives
from lmk_data.sources.members import read_members
from lmk_data.sources.stores import open_stores
from lmk_data.sources.tar_headers import MAX_HEADER_BYTES, MAX_HEADERS, DamagedTarError, TarHeaders
from tests.data.sources.packed import content, read


def header(name: str, num_bytes: int = 0, kind: bytes = b"0", size: bytes | None = None, more: bool = False) -> bytes:
    """Return a header; `size` replaces the field of the size, `more` announces more blocks of a map of holes."""
    member = tarfile.TarInfo(name)
    member.size, member.type = num_bytes, kind
    block = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    block[124:136] = size or block[124:136]
    block[482] |= more
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def member(name: str, data: bytes, kind: bytes = b"0") -> bytes:
    return header(name, len(data), kind) + data + bytes(-len(data) % 512)


def pax(records: bytes) -> bytes:
    return member("pax", records, b"x")


GOOD, END = member("a/1.jpg", b"one"), bytes(1024)
NEGATIVE = b"\xff" * 11 + b"\x00"
HOSTILE = {
    "a long name of 8 GiB": header("x", kind=b"L", size=b"77777777777\0") + bytes(512),
    "a pax header of 8 GiB": header("x", kind=b"x", size=b"77777777777\0") + bytes(512),
    "a global header of 8 GiB": header("x", kind=b"g", size=b"77777777777\0") + bytes(512),
    "a long target that is not there": header("x", MAX_HEADER_BYTES, b"K"),
    "long names without end": member("x", b"n\0", b"L") * 3000,
    "pax headers without end": header("x", kind=b"x") * 3000,
    "global headers without end": header("x", kind=b"g") * 3000,
    "headers of all kinds": (member("x", b"n", b"L") + member("x", b"n", b"K") + header("x", kind=b"g")) * 6 + GOOD,
    "a header at the end": member("x", b"n\0", b"L") + END,
    "a pax size below 0": pax(b"14 size=-1536\n") + member("b.jpg", bytes(512)),
    "a pax size of 10^40": pax(b"50 size=1%s\n" % (b"0" * 40)) + member("b.jpg", bytes(512)),
    "a pax size beyond the file": pax(b"19 size=1234567890\n") + member("b.jpg", bytes(512)),
    "a pax size in letters": pax(b"12 size=abc\n") + member("b.jpg", bytes(512)),
    "a pax record without length": pax(b"0 size=1\n") + GOOD,
    "a pax record of digits": pax(b"1" * 100_000) + GOOD,
    "a pax record longer than its header": pax(b"9999 path=x\n") + GOOD,
    "a map of holes without end": header("x", kind=b"S", more=True) + (bytes(504) + b"\1" + bytes(7)) * 40_000,
    "a size below 0": header("b.jpg", size=NEGATIVE),
    "a long name of size below 0": header("x", kind=b"L", size=NEGATIVE) + GOOD,
    "a size of 2^62": header("b.jpg", size=b"\x80" + (1 << 62).to_bytes(11, "big")) + bytes(512),
    "a size of 2^80": header("b.jpg", size=b"\x80" + (1 << 80).to_bytes(11, "big")) + bytes(512),
    "a size in letters": header("b.jpg", size=b"12345abc\0\0\0\0"),
    "a name of 10,000 characters": member("x", b"n" * 10_000, b"L") + GOOD,
    "a name of 2,000 folders": member("x", b"n/" * 2000 + b"b.jpg", b"L") + GOOD,
}


@pytest.mark.parametrize("what", HOSTILE)
def test_headers_that_state_what_is_not_so(tmp_path: Path, what: str) -> None:
    (tmp_path / "a.tar").write_bytes(GOOD + HOSTILE[what] + END)
    with pytest.raises(UserError, match=r"a\.tar: .*copy it again"):
        read_members(open_stores([str(tmp_path / "a.tar")]), cache=None)


def test_zeros_after_the_end_are_read_up_to_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_ZERO_BYTES", 4 << 20)
    with (tmp_path / "a.tar").open("wb") as file:
        file.write(GOOD + END)
        file.truncate(3 << 20)
    assert len(read_members(open_stores([str(tmp_path / "a.tar")]), cache=None).frame) == 1
    with (tmp_path / "a.tar").open("r+b") as file:
        file.truncate(1 << 40)
    with pytest.raises(UserError, match=r"a\.tar: .*4 MB of zeros"):
        read_members(open_stores([str(tmp_path / "a.tar")]), cache=None)


def test_headers_within_the_limits_are_read() -> None:
    extension = pax(b"16 path=b/1.jpg\n")
    most = header("x", kind=b"g") * (MAX_HEADERS - 1) + extension + member("other", b"two")
    entries = list(TarHeaders(io.BytesIO(GOOD + most + GOOD + END), 0))
    assert [entry.name for entry in entries] == ["a/1.jpg", "b/1.jpg", "a/1.jpg"]
    with pytest.raises(DamagedTarError, match="16 extension headers"):
        list(TarHeaders(io.BytesIO(header("x", kind=b"g") + most + END), 0))


def test_archives_of_more_members_than_any_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_MEMBERS", 3)
    (tmp_path / "a.tar").write_bytes(GOOD * 4 + END)
    with pytest.raises(UserError, match=r"a\.tar: .*more than 3 members"):
        read_members(open_stores([str(tmp_path / "a.tar")]), cache=None)


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_those_that_tarfile_finds(kind: int) -> None:
    names = ["a.jpg", f"{'d' * 90}/{'e' * 60}.jpg", "caf\u00e9.jpg", "x" * 99, "y" * 100]
    names += [] if kind == tarfile.USTAR_FORMAT else [f"{'z' * 300}.jpg", f"{'deep/' * 60}z.jpg"]
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=kind) as tar:
        for number, (name, type_) in enumerate(itertools.product(names, (b"0", b"1", b"2", b"5", b"6"))):
            info = tarfile.TarInfo(name)
            info.type, info.size = type_, number * 100 if type_ == b"0" else 0
            info.linkname = "" if type_ in b"056" else f"to/{name}"[: 60 if kind == tarfile.USTAR_FORMAT else None]
            info.mtime = number + 0.5 if kind == tarfile.PAX_FORMAT else number
            tar.addfile(info, io.BytesIO(bytes(info.size)))
    kinds = {b"0": "file", b"1": "hard link", b"2": "link", b"5": "folder", b"6": "other"}
    with tarfile.open(fileobj=io.BytesIO(file.getvalue())) as tar:
        expected = [(info.name, kinds[info.type], info.linkname, info.offset_data, info.size) for info in tar]
    entries = list(TarHeaders(file, 0))
    found = [(entry.name.rstrip("/"), entry.kind, entry.target, entry.offset, entry.num_bytes) for entry in entries]
    assert found == expected


@pytest.mark.skipif(shutil.which("tar") is None, reason="needs tar")
@pytest.mark.parametrize("options", ["--format=gnu", "--format=posix --sparse-version=0.1", "--format=posix"])
def test_files_with_holes_are_counted_and_those_after_them_found(tmp_path: Path, options: str) -> None:
    with (tmp_path / "holes.jpg").open("wb") as file:
        for number in range(60):
            file.seek(number << 18)
            file.write(b"x")
    (tmp_path / "after.jpg").write_bytes(content("after"))
    words = ["tar", "-cSf", "a.tar", *options.split(), "holes.jpg", "after.jpg"]
    if subprocess.run(words, cwd=tmp_path, capture_output=True).returncode:
        pytest.skip("not GNU's tar")
    stores = open_stores([str(tmp_path / "a.tar")])
    members = read_members(stores, cache=None)
    assert [read(stores, row) for _, row in members.frame.iterrows()] == [content("after")]
    assert [(entry.rule, entry.count, entry.example) for entry in members.ignored] == [(SPARSE, 1, "holes.jpg")]
