"""Images are found and read wherever they lie: folders, tars, zips, globs, URLs, several at once."""

import hashlib
import http.server
import io
import os
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import fsspec
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmk_data.archives import Member, Place, scan_archive
from lmk_data.errors import StorageError, UserError
from lmk_data.format import Rejection
from lmk_data.images import Located, locate
from lmk_data.labels import read_class_folders
from lmk_data.members import MEMBERS_TABLE, read_members
from lmk_data.storage import LocalFolder
from lmk_data.stores import Store, open_stores


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content(name))


def content(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest() * 40


def write_tar(path: Path, members: dict[str, bytes], kind: int = tarfile.PAX_FORMAT) -> None:
    with tarfile.open(path, "w", format=kind) as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def write_zip(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def found(ids: list[str], *paths: Path | str) -> tuple[list[Store], Located]:
    stores = open_stores([str(path) for path in paths])
    return stores, locate(pd.DataFrame({"id": ids}), stores, lambda: read_members(stores, cache=None))


def read(stores: list[Store], row: "pd.Series[object]") -> bytes | Rejection:
    place = Place(*(int(row[name]) for name in ("offset", "num_bytes", "method", "crc32")))  # type: ignore[call-overload]
    return stores[int(row["store"])].read(str(row["source"]), place)  # type: ignore[call-overload]


@pytest.mark.parametrize("layout", ["{0}/{1}/{2}/{id}.jpg", "{id}.jpg", "some/where/{id}.PNG"])
def test_images_are_found_in_any_layout(tmp_path: Path, layout: str) -> None:
    ids = ["abcd1234", "efgh5678"]
    names = [layout.format(*i, id=i) for i in ids]
    touch(tmp_path / "images", *names)
    (tmp_path / "images" / "self").symlink_to(tmp_path / "images")
    stores, located = found([*ids, "notthere", "../../etc/passwd"], tmp_path / "images")
    images = located.frame.set_index("id")
    for i, name in zip(ids, names, strict=True):
        assert images.loc[i, "source"] == name
        assert read(stores, images.loc[i]) == content(name)
    assert images.loc["../../etc/passwd", "reason"] == "unsafe-path"
    assert images.loc["notthere", "reason"] == "missing" or layout.startswith("{0}"), "a fan-out is not scanned"


@pytest.mark.parametrize("extension", ["", ".png"])
def test_a_path_tells_files_of_one_name_apart(tmp_path: Path, extension: str) -> None:
    """Label tables drop the extension of an id."""
    touch(tmp_path / "images", "cats/1.png", "dogs/1.png", "dogs/2.png")
    stores, located = found([f"{i}{extension}" for i in ("dogs/1", "dogs/2", "cats/1")], tmp_path / "images")
    wanted = [content(name) for name in ("dogs/1.png", "dogs/2.png", "cats/1.png")]
    assert [read(stores, row) for _, row in located.frame.iterrows()] == wanted


def test_linked_images_are_followed(tmp_path: Path) -> None:
    touch(tmp_path / "elsewhere", "a1.jpg", "deep/b2.jpg")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a1.jpg").symlink_to(tmp_path / "elsewhere" / "a1.jpg")
    (tmp_path / "images" / "linked").symlink_to(tmp_path / "elsewhere" / "deep")
    stores, located = found(["a1", "b2"], tmp_path / "images")
    assert [read(stores, row) for _, row in located.frame.iterrows()] == [content("a1.jpg"), content("deep/b2.jpg")]


def test_several_stores_of_every_kind_at_once(tmp_path: Path) -> None:
    members = {f"{i}/x/{i}000.jpg": content(f"{i}000") for i in "abcdef"}
    names = list(members)
    touch(tmp_path / "folder", names[0], "unlisted.jpg")
    write_tar(tmp_path / "images_000.tar", {names[1]: members[names[1]], "d.txt": b"not listed"})
    write_tar(tmp_path / "images_001.tar", {f"./{names[2]}": members[names[2]]}, tarfile.GNU_FORMAT)
    write_zip(tmp_path / "stored.zip", {f"train/{names[3]}": members[names[3]]})
    write_zip(tmp_path / "deflated.zip", {f"train/{names[4]}": members[names[4]]}, zipfile.ZIP_DEFLATED)
    write_tar(tmp_path / "far.tar", {names[5]: members[names[5]]})
    with fsspec.open("memory://bucket/far.tar", "wb") as file:
        file.write((tmp_path / "far.tar").read_bytes())
    paths = [tmp_path / "folder", tmp_path / "images_*.tar", tmp_path / "stored.zip", tmp_path / "deflated.zip"]
    stores, located = found([f"{i}000" for i in "abcdef"], *paths, "memory://bucket/*.tar")
    assert len(stores) == 6
    assert located.num_ignored == 2
    assert located.frame["store"].tolist() == [0, 1, 2, 3, 4, 5]
    first = read(stores, located.frame.iloc[0])
    assert first == content(names[0])
    rest = [read(stores, row) for _, row in located.frame.iloc[1:].iterrows()]
    assert rest == [content(f"{i}000") for i in "bcdef"]


def test_a_folder_of_tars_counts_as_these(tmp_path: Path) -> None:
    write_tar(tmp_path / "images_000.tar", {"a/a1.jpg": b"1"})
    write_tar(tmp_path / "images_001.tar", {"b/b1.jpg": b"2"})
    (tmp_path / "md5.images_000.txt").write_text("of no interest")
    stores, located = found(["b1", "a1"], tmp_path)
    assert [read(stores, row) for _, row in located.frame.iterrows()] == [b"2", b"1"]


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


def test_what_is_written_to_is_no_source(tmp_path: Path) -> None:
    write_tar(tmp_path / "images_0.tar", {"a.jpg": content("a")})
    touch(tmp_path, ".git/x.jpg", "out/shards/b.jpg")
    (store,) = open_stores([str(tmp_path)], LocalFolder(str(tmp_path / "out")))
    assert store.location.endswith("images_0.tar")
    touch(tmp_path, "class/c.jpg", "outer/d.jpg")
    stores = open_stores([str(tmp_path)], LocalFolder(str(tmp_path / "out")))
    assert read_members(stores, cache=None)["source"].tolist() == ["class/c.jpg", "images_0.tar", "outer/d.jpg"]


def test_a_huge_file_behind_a_url_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    fs = fsspec.filesystem("memory")
    fs.pipe({"/huge/c/small.jpg": b"small", "/huge/c/video.jpg": bytes(5000)})
    monkeypatch.setattr("lmk_data.stores.MAX_IMAGE_BYTES", 4000)
    stores = open_stores(["memory://huge"])
    small, video = (read(stores, row) for _, row in read_members(stores, cache=None).iterrows())
    fs.rm("/huge", recursive=True)
    assert small == b"small"
    assert isinstance(video, Rejection)
    assert video.reason == "too-large"


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


def test_class_folders_list_every_file_but_hidden_ones(tmp_path: Path) -> None:
    touch(
        tmp_path, "St. Paul's/1.jpg", "St. Paul's/deep/2.PNG", "Köln/3", "Köln/.hidden", "Köln/Thumbs.db", "beside.txt"
    )
    (tmp_path / "Old").mkdir()
    os.link(tmp_path / "Köln" / "3", os.fsencode(tmp_path) + b"/Old/K\xf6ln.jpg")
    stores = open_stores([str(tmp_path)])
    labels, num_ignored = read_class_folders(stores, read_members(stores, cache=None))
    assert labels.frame.set_index("id")["landmark_id"].to_dict() == {
        "Köln/3": "Köln",
        "St. Paul's/1.jpg": "St. Paul's",
        "St. Paul's/deep/2.PNG": "St. Paul's",
        "Old/K\\xf6ln.jpg": "Old",
    }
    assert labels.frame.set_index("id")["reason"].to_dict()["Old/K\\xf6ln.jpg"] == "unsafe-path"
    assert num_ignored == 1


def test_the_same_path_in_two_stores_of_classes_is_two_images(tmp_path: Path) -> None:
    touch(tmp_path / "one", "Dom/1.jpg")
    touch(tmp_path / "two", "Dom/1.jpg", "Dom/2.jpg")
    stores = open_stores([str(tmp_path / "one"), str(tmp_path / "two")])
    labels, _ = read_class_folders(stores, read_members(stores, cache=None))
    assert sorted(labels.frame["id"]) == ["Dom/1.jpg", "Dom/2.jpg", "two/Dom/1.jpg"]


def test_no_image_at_all_is_an_error(tmp_path: Path) -> None:
    touch(tmp_path / "images", "other.jpg")
    with pytest.raises(UserError, match="no image of the label table was found"):
        found(["abc"], tmp_path / "images")


def test_archives_are_scanned_once_and_again_when_they_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tar(tmp_path / "a.tar", {"a1.jpg": b"1"})
    write_tar(tmp_path / "b.tar", {"b1.jpg": b"2"})
    stores, cache = open_stores([str(tmp_path / "?.tar")]), LocalFolder(str(tmp_path / "out"))
    first = read_members(stores, cache=cache)
    scanned: list[str] = []

    def counting(file: io.BufferedReader, kind: str, location: str) -> Iterator[Member]:
        scanned.append(location)
        return scan_archive(file, kind, location)  # type: ignore[arg-type]

    monkeypatch.setattr("lmk_data.members.scan_archive", counting)
    pd.testing.assert_frame_equal(read_members(stores, cache=cache), first)
    assert not scanned
    write_tar(tmp_path / "b.tar", {"b1.jpg": b"2", "b2.jpg": b"3"})
    assert read_members(stores, cache=cache)["source"].tolist() == ["a1.jpg", "b1.jpg", "b2.jpg"]
    assert scanned == [str(tmp_path / "b.tar")]
    (tmp_path / "out" / MEMBERS_TABLE).write_bytes(b"PAR1 and then nothing")
    assert len(read_members(stores, cache=cache)) == 3


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
    assert len(read_members(stores, cache=None, md5=str(sums))) == 2
    said = capsys.readouterr().err
    assert "images_001.tar: its md5 is" in said
    assert "images_000.tar: its md5" not in said


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


def test_what_is_no_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.tar.gz").write_bytes(b"\x1f\x8b\x08" + bytes(600))
    (tmp_path / "a.csv").write_text("id,landmark_id\n")
    for name, said in (("a.tar.gz", "unpack it once"), ("a.csv", "neither"), ("none", "no such"), ("*.zip", "nothing")):
        with pytest.raises(UserError, match=said):
            open_stores([str(tmp_path / name)])
    with pytest.raises(UserError, match="nosuch"):
        open_stores(["nosuch://bucket/x"])


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
    monkeypatch.setattr("lmk_data.storage._LOCAL_PAUSES_SECONDS", (0.001,) * 3)
    write_tar(tmp_path / "a.tar", {"a1.jpg": bytes(9000), "a2.jpg": bytes(9000)})
    stores, located = found(["a1", "a2"], tmp_path / "a.tar")
    (tmp_path / "a.tar").write_bytes((tmp_path / "a.tar").read_bytes()[:10_000])
    assert read(stores, located.frame.iloc[0]) == bytes(9000)
    with pytest.raises(StorageError, match="changed"):
        read(stores, located.frame.iloc[1])
    (tmp_path / "a.tar").unlink()
    with pytest.raises(StorageError, match="No such file"):
        read(stores, located.frame.iloc[0])


def test_missing_needs_a_folder_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmk_data.storage._LOCAL_PAUSES_SECONDS", (0.001,) * 3)
    touch(tmp_path / "images", "a1.jpg", "b1.jpg")
    stores, located = found(["a1", "b1"], tmp_path / "images")
    (tmp_path / "images" / "a1.jpg").unlink()
    gone = read(stores, located.frame.iloc[0])
    assert isinstance(gone, Rejection)
    assert gone.reason == "missing"
    (tmp_path / "images" / "b1.jpg").unlink()  # as when the disk is not mounted: an empty folder
    with pytest.raises(StorageError, match="is the storage there"):
        read(stores, located.frame.iloc[0])
    (tmp_path / "images").rmdir()
    with pytest.raises(StorageError, match="is the storage there"):
        read(stores, located.frame.iloc[0])


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def web_server(tmp_path: Path) -> Iterator[str]:
    """A plain web server over tmp_path, which knows no listings of its own kind and no ranges."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(tmp_path)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_tree_behind_a_web_server(tmp_path: Path, web_server: str) -> None:
    pytest.importorskip("aiohttp", reason="fsspec reads http with aiohttp")
    touch(tmp_path / "train", "a/b/c/abc123.jpg")
    stores, located = found(["abc123", "abc999"], f"{web_server}/train")
    assert read(stores, located.frame.iloc[0]) == content("a/b/c/abc123.jpg")
    missing = read(stores, located.frame.iloc[1])
    assert isinstance(missing, Rejection)
    assert missing.reason == "missing"
