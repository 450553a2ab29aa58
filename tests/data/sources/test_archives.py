"""Members of tars and zips, whole and damaged."""

import os
import tarfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmk_data.dataset.format import Rejection
from lmk_data.errors import StorageError, UserError
from lmk_data.sources.members import read_members
from lmk_data.sources.stores import open_stores
from tests.data.sources.packed import content, found, read, touch, write_tar, write_zip


@given(
    st.lists(st.text("ab/é ", min_size=1, max_size=120), min_size=1, max_size=6, unique=True),
    st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, "stored", "deflated"]),
    st.integers(0, 3000),
)
def test_members_are_read_where_other_tools_find_them(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], kind: int | str, size: int
) -> None:
    folder = tmp_path_factory.mktemp("archive")
    members = {f"x{i}/n{name.strip('/ ')}.jpg".replace("//", "/"): os.urandom(size + i) for i, name in enumerate(names)}
    if isinstance(kind, int):
        write_tar(folder / "a.tar", members, kind)
    else:
        method = zipfile.ZIP_STORED if kind == "stored" else zipfile.ZIP_DEFLATED
        write_zip(folder / "a.zip", members, method)
    stores = open_stores([str(path) for path in folder.iterdir()])
    scanned = read_members(stores, cache=None)
    assert scanned["source"].tolist() == list(members)
    assert [read(stores, row) for _, row in scanned.iterrows()] == list(members.values())


def test_a_member_of_a_zip_whose_header_is_long(tmp_path: Path) -> None:
    member = zipfile.ZipInfo(f"{'deep/' * 200}a.jpg")
    member.extra = b"\xfe\xca" + (3000).to_bytes(2, "little") + bytes(3000)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(member, content("a"))
        archive.writestr("after.jpg", content("b") * 9)
    stores = open_stores([str(tmp_path / "a.zip")])
    scanned = read_members(stores, cache=None)
    assert [read(stores, row) for _, row in scanned.iterrows()] == [content("a"), content("b") * 9]


def test_links_in_a_tar(tmp_path: Path) -> None:
    """Hard links are the same file again, as `tar` writes files that share their data; symbolic ones lead anywhere."""
    touch(tmp_path, "a1.jpg")
    os.link(tmp_path / "a1.jpg", tmp_path / "b1.jpg")
    (tmp_path / "c1.jpg").symlink_to("/etc/hostname")
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name in ("a1.jpg", "b1.jpg", "c1.jpg"):
            tar.add(tmp_path / name, name)
    stores, located = found(["a1", "b1", "c1"], tmp_path / "x.tar")
    assert [read(stores, row) for _, row in located.frame.iloc[:2].iterrows()] == [content("a1.jpg")] * 2
    assert located.frame["reason"].tolist() == ["", "", "missing"]


def test_member_names_that_lead_out_are_unsafe(tmp_path: Path) -> None:
    write_tar(tmp_path / "evil.tar", {"../../evil.jpg": b"x", "/etc/absolute.jpg": b"y", "fine.jpg": b"z"})
    _, located = found(["evil", "absolute", "fine"], tmp_path / "evil.tar")
    assert located.frame["reason"].tolist() == ["unsafe-path", "unsafe-path", ""]


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_unfinished_downloads_are_refused(tmp_path: Path, kind: str) -> None:
    members = {f"{i}.jpg": os.urandom(2000) for i in range(20)}
    path = tmp_path / f"images.{kind}"
    (write_tar if kind == "tar" else write_zip)(path, members)
    data = path.read_bytes()
    for cut in (len(data) // 2, len(data) // 2 // 512 * 512, 20 * 2560 if kind == "tar" else len(data) - 30):
        path.write_bytes(data[:cut])
        with pytest.raises(UserError, match=r"images\.(tar|zip): .*copy it again"):
            found(["1"], path)


def test_damaged_members_of_a_zip_are_values(tmp_path: Path) -> None:
    write_zip(tmp_path / "a.zip", {"bad.jpg": os.urandom(3000), "good.jpg": b"fine"}, zipfile.ZIP_DEFLATED)
    data = bytearray((tmp_path / "a.zip").read_bytes())
    data[500] ^= 1
    (tmp_path / "a.zip").write_bytes(bytes(data))
    stores, located = found(["bad", "good"], tmp_path / "a.zip")
    bad, good = (read(stores, row) for _, row in located.frame.iterrows())
    assert isinstance(bad, Rejection)
    assert bad.reason == "corrupt"
    assert good == b"fine"


def test_an_archive_that_changes_during_the_build_is_a_failure_of_the_storage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lmk_data.system.storage._LOCAL_PAUSES_SECONDS", (0.001,) * 3)
    write_tar(tmp_path / "a.tar", {"a1.jpg": bytes(9000), "a2.jpg": bytes(9000)})
    stores, located = found(["a1", "a2"], tmp_path / "a.tar")
    (tmp_path / "a.tar").write_bytes((tmp_path / "a.tar").read_bytes()[:10_000])
    assert read(stores, located.frame.iloc[0]) == bytes(9000)
    with pytest.raises(StorageError, match="changed"):
        read(stores, located.frame.iloc[1])
    (tmp_path / "a.tar").unlink()
    with pytest.raises(StorageError, match="No such file"):
        read(stores, located.frame.iloc[0])
