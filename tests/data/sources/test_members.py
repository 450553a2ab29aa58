"""The cached table of the members of archives."""

import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest

from lmk_data.errors import UserError
from lmk_data.sources.archives import Member, scan_archive
from lmk_data.sources.members import read_members
from lmk_data.sources.stores import open_stores
from lmk_data.system.storage import MEMBERS_TABLE, LocalFolder
from tests.data.sources.packed import write_tar


def test_archives_are_scanned_once_and_again_when_they_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tar(tmp_path / "a.tar", {"a1.jpg": b"1"})
    write_tar(tmp_path / "b.tar", {"b1.jpg": b"2"})
    stores, cache = open_stores([str(tmp_path / "?.tar")]), LocalFolder(str(tmp_path / "out"))
    first = read_members(stores, cache=cache).frame
    scanned: list[str] = []

    def counting(file: io.BufferedReader, kind: str, location: str) -> Iterator[Member]:
        scanned.append(location)
        return scan_archive(file, kind, location)  # type: ignore[arg-type]

    monkeypatch.setattr("lmk_data.sources.members.scan_archive", counting)
    pd.testing.assert_frame_equal(read_members(stores, cache=cache).frame, first)
    assert not scanned
    write_tar(tmp_path / "b.tar", {"b1.jpg": b"2", "b2.jpg": b"3"})
    assert read_members(stores, cache=cache).frame["source"].tolist() == ["a1.jpg", "b1.jpg", "b2.jpg"]
    assert scanned == [str(tmp_path / "b.tar")]


@pytest.mark.parametrize(
    "damage",
    [
        lambda _: None,
        lambda stated: [],
        lambda stated: {"archives": stated},
        lambda stated: {name: {**scan, "stamp": None} for name, scan in stated.items()},
        lambda stated: {name: {**scan, "num_members": 100} for name, scan in stated.items()},
        lambda stated: {name: {**scan, "ignored": [["rule", 1]]} for name, scan in stated.items()},
    ],
)
def test_an_unreadable_cache_is_rebuilt(tmp_path: Path, damage: Callable[[Any], Any]) -> None:
    write_tar(tmp_path / "a.tar", {"a1.jpg": b"1", "a2.jpg": b"2"})
    stores, cache = open_stores([str(tmp_path / "a.tar")]), LocalFolder(str(tmp_path / "out"))
    first, path = read_members(stores, cache=cache).frame, tmp_path / "out" / MEMBERS_TABLE
    table = pq.read_table(path)
    stated = damage(json.loads(table.schema.metadata[b"archives"]))
    if stated is None:
        path.write_bytes(b"PAR1 and then nothing")
    else:
        pq.write_table(table.replace_schema_metadata({"archives": json.dumps(stated)}), path)
    pd.testing.assert_frame_equal(read_members(stores, cache=cache).frame, first)


def test_the_scan_of_an_archive_whose_name_is_not_utf_8_is_cached(tmp_path: Path) -> None:
    write_tar(tmp_path / os.fsdecode(b"caf\xe9.tar"), {"a1.jpg": b"1"})
    stores, cache = open_stores([str(tmp_path / os.fsdecode(b"caf\xe9.tar"))]), LocalFolder(str(tmp_path / "out"))
    first = read_members(stores, cache=cache).frame
    pd.testing.assert_frame_equal(read_members(stores, cache=cache).frame, first)


def test_checksums_are_compared_and_only_warn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tar(tmp_path / "images_000.tar", {"a1.jpg": b"1"})
    write_tar(tmp_path / "images_001.tar", {"b1.jpg": b"2"})
    right = hashlib.md5((tmp_path / "images_000.tar").read_bytes()).hexdigest()
    sums = tmp_path / "sums"
    sums.mkdir()
    stores = open_stores([str(tmp_path / "*.tar")])
    with pytest.raises(UserError, match=r"no checksum of these archives, such as md5\.images_000\.txt"):
        read_members(stores, cache=None, md5=str(sums))
    (sums / "md5.images_000.txt").write_text(f"{right}  images_000.tar\n")
    (sums / "md5.images_001.txt").write_text(f"{right}  images_001.tar\n")
    assert len(read_members(stores, cache=None, md5=str(sums)).frame) == 2
    cache = LocalFolder(str(tmp_path / "out"))
    for _ in range(2):  # an archive that is not scanned again is compared all the same
        assert len(read_members(stores, cache=cache, md5=str(sums)).frame) == 2
        said = capsys.readouterr().err
        assert "images_001.tar: its md5 is" in said
        assert "images_000.tar: its md5" not in said
