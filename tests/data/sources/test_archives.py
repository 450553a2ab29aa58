"""Members of tars and zips, whole and damaged."""

import os
import re
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmk_data.dataset.format import Rejection
from lmk_data.errors import StorageError, UserError
from lmk_data.leftovers import HIDDEN, LEFT_BY_SYSTEMS, LINK_IN_CIRCLE, LINK_TO_NOTHING, NOT_A_FILE, REPLACED
from lmk_data.sources import archives
from lmk_data.sources.class_folders import read_class_folders
from lmk_data.sources.members import read_members
from lmk_data.sources.stores import open_stores
from lmk_data.system.storage import LocalFolder
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
    texts = [re.sub("/+", "/", name.strip("/ ")) for name in names]
    members = {f"x{i}/n{text}.jpg": os.urandom(size + i) for i, text in enumerate(texts)}
    if isinstance(kind, int):
        write_tar(folder / "a.tar", members, kind)
    else:
        method = zipfile.ZIP_STORED if kind == "stored" else zipfile.ZIP_DEFLATED
        write_zip(folder / "a.zip", members, method)
    stores = open_stores([str(path) for path in folder.iterdir()])
    scanned = read_members(stores, cache=None).frame
    assert scanned["source"].tolist() == list(members)
    assert [read(stores, row) for _, row in scanned.iterrows()] == list(members.values())


def test_a_member_of_a_zip_whose_header_is_long(tmp_path: Path) -> None:
    member = zipfile.ZipInfo(f"{'deep/' * 200}a.jpg")
    member.extra = b"\xfe\xca" + (3000).to_bytes(2, "little") + bytes(3000)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(member, content("a"))
        archive.writestr("after.jpg", content("b") * 9)
    stores = open_stores([str(tmp_path / "a.zip")])
    scanned = read_members(stores, cache=None).frame
    assert [read(stores, row) for _, row in scanned.iterrows()] == [content("a"), content("b") * 9]


def test_links_in_a_tar(tmp_path: Path) -> None:
    """Links are followed as in a folder: to files and to folders, within the archive."""
    touch(tmp_path / "x", "cat/1.jpg", "cat/deep/2.jpg", "dog/1.jpg")
    os.link(tmp_path / "x/cat/1.jpg", tmp_path / "x/dog/hard.jpg")
    links = {
        "dog/soft.jpg": "../cat/1.jpg",
        "lion": "cat",
        "chain": "lion/deep",
        "dog/up": "..",
        "out.jpg": "/etc/hosts",
    }
    links |= {"cat/none.jpg": "nothing", "round": "round", "outside": "../../x"}
    for name, target in links.items():
        (tmp_path / "x" / name).symlink_to(target)
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.add(tmp_path / "x", ".")
    stores = open_stores([str(tmp_path / "x.tar")])
    members = read_members(stores, cache=None)
    contents = {str(row["source"]): read(stores, row) for _, row in members.frame.iterrows()}
    one, two = content("cat/1.jpg"), content("cat/deep/2.jpg")
    assert contents == {
        **{"cat/1.jpg": one, "cat/deep/2.jpg": two, "dog/1.jpg": content("dog/1.jpg"), "dog/hard.jpg": one},
        **{"dog/soft.jpg": one, "lion/1.jpg": one, "lion/deep/2.jpg": two, "chain/2.jpg": two},
    }
    rules = {entry.rule: entry.count for entry in members.ignored}
    assert rules == {LINK_TO_NOTHING: 5, LINK_IN_CIRCLE: 1}
    assert members.ignored == read_members(stores, cache=LocalFolder(str(tmp_path / "out"))).ignored
    assert members.ignored == read_members(stores, cache=LocalFolder(str(tmp_path / "out"))).ignored, "from the cache"


def test_links_of_an_archive_that_multiply_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmk_data.sources.links.MAX_FILES", 100)
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for one in "abcdefgh":
            tar.addfile(tarfile.TarInfo(f"{one}/1.jpg"))
            for other in "abcdefgh":
                link = tarfile.TarInfo(f"{one}/to-{other}")
                link.type, link.linkname = tarfile.SYMTYPE, f"../{other}"
                tar.addfile(link)
    with pytest.raises(UserError, match=r"x.tar: its links stand for more than 100 files"):
        read_members(open_stores([str(tmp_path / "x.tar")]), cache=None)


def test_every_member_of_a_tar_is_listed_or_counted(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name, kind in (("a.jpg", tarfile.REGTYPE), ("pipe.jpg", tarfile.FIFOTYPE), ("d", tarfile.DIRTYPE)):
            member = tarfile.TarInfo(name)
            member.type = kind
            tar.addfile(member)
        for name in ("a.jpg", ".hidden/b.jpg", "Thumbs.db", "__MACOSX/._a.jpg"):
            tar.addfile(tarfile.TarInfo(name))
    members = read_members(open_stores([str(tmp_path / "x.tar")]), cache=None)
    assert members.frame["source"].tolist() == ["a.jpg"]
    rules = {entry.rule: entry.count for entry in members.ignored}
    assert rules == {REPLACED: 1, NOT_A_FILE: 1, HIDDEN: 1, LEFT_BY_SYSTEMS: 2}


def test_tars_that_were_joined_are_read_to_the_end(tmp_path: Path) -> None:
    for name in "ab":
        write_tar(tmp_path / f"{name}.tar", {f"{name}.jpg": content(name)})
    first, second = (tmp_path / "a.tar").read_bytes(), (tmp_path / "b.tar").read_bytes()
    (tmp_path / "all.tar").write_bytes(first + second)
    stores = open_stores([str(tmp_path / "all.tar")])
    scanned = read_members(stores, cache=None).frame
    assert [read(stores, row) for _, row in scanned.iterrows()] == [content("a"), content("b")]
    for rest in (b"x" * 600, second[:1000]):
        (tmp_path / "all.tar").write_bytes(first + rest)
        with pytest.raises(UserError, match=r"all.tar: .*copy it again"):
            read_members(open_stores([str(tmp_path / "all.tar")]), cache=None)


def test_zips_that_were_joined_are_refused(tmp_path: Path) -> None:
    for name in "ab":
        write_zip(tmp_path / f"{name}.zip", {f"{name}.jpg": content(name)})
    (tmp_path / "all.zip").write_bytes((tmp_path / "a.zip").read_bytes() + (tmp_path / "b.zip").read_bytes())
    with pytest.raises(UserError, match=r"all.zip: its directory does not list its first members"):
        read_members(open_stores([str(tmp_path / "all.zip")]), cache=None)


@pytest.mark.parametrize(
    ("stored", "system", "name"),
    [
        ("caf\u00e9/1.jpg".encode(), 3, "caf\u00e9/1.jpg"),
        ("\u5bfa/1.jpg".encode(), 0, "\u5bfa/1.jpg"),
        ("caf\u00e9/1.jpg".encode("cp437"), 0, "caf\u00e9/1.jpg"),
        (b"cat\\1.jpg", 0, "cat/1.jpg"),
        (b"cat\\1.jpg", 3, "cat\\1.jpg"),
    ],
)
def test_names_in_zips_that_do_not_say_what_they_are(tmp_path: Path, stored: bytes, system: int, name: str) -> None:
    placeholder = "x" * len(stored)
    member = zipfile.ZipInfo(placeholder)
    member.create_system = system
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(member, content("a"))
    data = (tmp_path / "a.zip").read_bytes().replace(placeholder.encode(), stored)
    (tmp_path / "a.zip").write_bytes(data)
    stores = open_stores([str(tmp_path / "a.zip")])
    (row,) = (row for _, row in read_members(stores, cache=None).frame.iterrows())
    assert row["source"] == name
    assert read(stores, row) == content("a")


def test_links_in_a_zip_are_followed(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("cat/1.jpg", content("a"))
        for name, target in (("kitty", "cat"), ("one.jpg", "cat/1.jpg"), ("none.jpg", "../x")):
            link = zipfile.ZipInfo(name)
            link.create_system, link.external_attr = 3, 0o120777 << 16
            archive.writestr(link, target)
    stores = open_stores([str(tmp_path / "a.zip")])
    members = read_members(stores, cache=None)
    assert members.frame["source"].tolist() == ["cat/1.jpg", "kitty/1.jpg", "one.jpg"]
    assert {read(stores, row) for _, row in members.frame.iterrows()} == {content("a")}
    assert [(entry.rule, entry.example) for entry in members.ignored] == [(LINK_TO_NOTHING, "none.jpg")]


def test_a_link_of_a_zip_whose_target_is_damaged_is_an_error_in_a_line(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        link = zipfile.ZipInfo("kitty")
        link.create_system, link.external_attr, link.compress_type = 3, 0o120777 << 16, zipfile.ZIP_DEFLATED
        archive.writestr(link, "cat" * 100)
    packed = bytearray((tmp_path / "a.zip").read_bytes())
    packed[30 + len("kitty")] ^= 0xFF
    (tmp_path / "a.zip").write_bytes(packed)
    with pytest.raises(UserError, match=r"a\.zip: cannot be read as a zip \(Error -3"):
        read_members(open_stores([str(tmp_path / "a.zip")]), cache=None)


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


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        (20, 1 << 31, "a member lies outside the file"),  # stored bytes
        (42, 1 << 31, "a member lies outside the file"),  # offset
        (42, 10, "members lie over one another"),
        (-22 + 12, 1 << 30, "not a zip|Bad offset|Bad magic|Truncated"),  # bytes of the directory
        (-22 + 12, 3 << 30, "not a zip|Bad offset|Bad magic|Truncated"),
    ],
)
def test_a_zip_that_states_what_is_not_so(tmp_path: Path, field: int, value: int, said: str) -> None:
    write_zip(tmp_path / "a.zip", {f"{i}.jpg": content(str(i)) for i in range(3)})
    data = bytearray((tmp_path / "a.zip").read_bytes())
    start = field % len(data) if field < 0 else data.rindex(b"PK\x01\x02") + field
    data[start : start + 4] = value.to_bytes(4, "little")
    (tmp_path / "a.zip").write_bytes(data)
    with pytest.raises(UserError, match=rf"a\.zip: .*({said}).*copy it again"):
        read_members(open_stores([str(tmp_path / "a.zip")]), cache=None)


def test_a_zip_whose_directory_is_larger_than_any(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_DIRECTORY_BYTES", 1000)
    write_zip(tmp_path / "a.zip", {f"{i}.jpg": b"x" for i in range(30)})
    with pytest.raises(UserError, match=r"a\.zip: .*directory has more than 1,000 bytes"):
        read_members(open_stores([str(tmp_path / "a.zip")]), cache=None)


def test_a_link_of_a_zip_that_unpacks_to_more_than_it_states(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("link.jpg")
    link.create_system, link.external_attr, link.compress_type = 3, 0o120777 << 16, zipfile.ZIP_DEFLATED
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("1.jpg", content("1"))
        archive.writestr(link, bytes(1 << 24))
    data = (tmp_path / "a.zip").read_bytes().replace((1 << 24).to_bytes(4, "little"), (9).to_bytes(4, "little"))
    (tmp_path / "a.zip").write_bytes(data)
    stores = open_stores([str(tmp_path / "a.zip")])
    tracemalloc.start()
    with pytest.raises(UserError, match=r"a\.zip: "):
        read_members(stores, cache=None)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 23


def test_members_of_a_zip_that_unpack_to_more_than_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that say so are not unpacked at all, and others no further than the limit."""
    monkeypatch.setattr(archives, "MAX_IMAGE_BYTES", 1 << 20)
    write_zip(tmp_path / "a.zip", {"a.jpg": bytes(1 << 24), "b.jpg": bytes(1 << 24)}, zipfile.ZIP_DEFLATED)
    data = bytearray((tmp_path / "a.zip").read_bytes())
    start = data.rindex(b"PK\x01\x02") + 24
    data[start : start + 4] = (1000).to_bytes(4, "little")
    (tmp_path / "a.zip").write_bytes(data)
    stores, located = found(["a", "b"], tmp_path / "a.zip")
    tracemalloc.start()
    read_all = [read(stores, row, 1 << 20) for _, row in located.frame.iterrows()]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [one.reason for one in read_all if isinstance(one, Rejection)] == ["too-large", "too-large"]
    assert peak < 1 << 22


def test_what_a_zip_holds_packed_and_unpacked_counts_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_IMAGE_BYTES", 1 << 20)
    members = {"a.jpg": os.urandom(300_000), "b.jpg": os.urandom(400_000)}
    write_zip(tmp_path / "a.zip", members, zipfile.ZIP_DEFLATED)
    stores, located = found(["a", "b"], tmp_path / "a.zip")
    small, large = (read(stores, row) for _, row in located.frame.iterrows())
    assert small == members["a.jpg"]
    assert isinstance(large, Rejection)
    assert large.reason == "too-large"


def test_an_unknown_method_of_a_zip_is_a_value(tmp_path: Path) -> None:
    write_zip(tmp_path / "a.zip", {"a.jpg": content("a")})
    data = bytearray((tmp_path / "a.zip").read_bytes())
    start = data.rindex(b"PK\x01\x02") + 10
    data[start : start + 2] = b"\xff\xff"
    (tmp_path / "a.zip").write_bytes(data)
    stores, located = found(["a"], tmp_path / "a.zip")
    one = read(stores, located.frame.iloc[0])
    assert isinstance(one, Rejection)
    assert one.reason == "unsupported-format"


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


def test_a_tar_of_class_folders_alone(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"cat/1.jpg": b"1", "dog/1.jpg": b"2"})
    stores = open_stores([str(tmp_path / "a.tar")])
    labels, ignored = read_class_folders(stores, read_members(stores, cache=None))
    assert labels.frame["landmark_id"].tolist() == ["cat", "dog"]
    assert ignored == []
