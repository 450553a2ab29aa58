"""Folders behind URLs: requests that fail, and what is left on this machine."""

import io
import resource
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem

from lmk_data.errors import StorageError, UserError
from lmk_data.sources.archives import Place
from lmk_data.sources.stores import FolderStore
from lmk_data.system.remote import RemoteFolder
from lmk_data.system.storage import Folder, held, leads_elsewhere, open_folder, stored_location

FOLDER = "memory://storage/folder"


def write(folder: Folder) -> None:
    with folder.atomic("a") as file:
        file.write(b"content")


@pytest.fixture
def folder() -> Folder:
    folder = open_folder(FOLDER)
    write(folder)
    return folder


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int], list[str]]:
    """Let the first calls of one of the storage's operations fail; returns the list of its calls."""

    def fail(operation: str, times: int) -> list[str]:
        works, calls = getattr(MemoryFileSystem, operation), []

        def fails(fs: MemoryFileSystem, path: str, *words: object, **options: object) -> object:
            calls.append(str(path))
            if len(calls) <= times:
                raise RuntimeError("slow down")
            return works(fs, path, *words, **options)

        monkeypatch.setattr(MemoryFileSystem, operation, fails)
        return calls

    monkeypatch.setattr("lmk_data.system.remote._PAUSES_SECONDS", (0.001,) * 3)
    return fail


OPERATIONS: dict[str, tuple[str, Callable[[Folder], object]]] = {
    "read": ("cat_file", lambda folder: folder.read("a") == b"content"),
    "read_range": ("cat_file", lambda folder: folder.read_range("a", 3, 2) == b"te"),
    "open": ("open", lambda folder: folder.open("a").read() == b"content"),
    "exists": ("exists", lambda folder: folder.exists("a")),
    "is_file": ("isfile", lambda folder: folder.is_file("a")),
    "size": ("size", lambda folder: folder.size("a") == 7),
    "sizes": ("ls", lambda folder: folder.sizes() == {"a": 7}),
    "walk": ("find", lambda folder: [name for name, _ in folder.walk()] == ["a"]),
    "atomic": ("put_file", lambda folder: write(folder) is None),
    "remove": ("rm_file", lambda folder: folder.remove("a") is None and not folder.exists("a")),
    "remove_tree": ("rm", lambda folder: folder.remove_tree("") is None and not folder.exists("a")),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_request_that_fails_is_sent_again(
    folder: Folder, failing: Callable[[str, int], list[str]], name: str
) -> None:
    operation, works = OPERATIONS[name]
    calls = failing(operation, 3)
    assert works(folder)
    assert len(calls) == 4


def test_requests_are_sent_four_times_at_most(folder: Folder, failing: Callable[[str, int], list[str]]) -> None:
    calls = failing("cat_file", 100)
    with pytest.raises(OSError, match="slow down"):
        folder.read("a")
    assert len(calls) == 4
    with pytest.raises(StorageError, match=f"{FOLDER}/a: RuntimeError: slow down; is the storage there"):
        FolderStore(folder).read("a", Place(-1, -1, -1, 0))
    assert len(calls) == 8


def test_reads_of_an_open_file_are_sent_again_and_fail_as_the_storage_does(
    folder: Folder, failing: Callable[[str, int], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts of an open file are requests of their own, made when they are read."""
    failures: list[int] = []

    def read(file: MemoryFile, size: int = -1) -> bytes:
        if failures:
            raise RuntimeError(f"no connection, {failures.pop()} more times")
        return io.BytesIO.read(file, size)

    failing("open", 0)
    monkeypatch.setattr(MemoryFile, "read", read, raising=False)
    with folder.open("a") as file:
        file.seek(3)
        failures[:] = range(3)
        assert file.read() == b"tent"
        file.seek(1)
        failures[:] = range(100)
        with pytest.raises(OSError, match="no connection") as caught:
            file.read(2)
    assert caught.value.filename == f"{FOLDER}/a"


def test_an_answer_is_no_failure(folder: Folder, failing: Callable[[str, int], list[str]]) -> None:
    calls = failing("cat_file", 0)
    with pytest.raises(FileNotFoundError):
        folder.read("b")
    assert len(calls) == 1


def test_a_full_temporary_disk_is_named(folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large") as caught, folder.atomic("a") as file:
            file.write(bytes(2000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert str(caught.value.filename).startswith(str(tmp_path))
    assert folder.read("a") == b"content"
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_upload_left_is_swept_by_the_next(tmp_path: Path) -> None:
    program = (
        "import os, sys\n"
        "from lmk_data.system.storage import open_folder\n"
        f"with open_folder({FOLDER!r}).atomic('a') as file:\n"
        "    if sys.argv[1] == 'killed':\n        os.kill(os.getpid(), 9)\n"
        "    print(len(os.listdir(os.environ['TMPDIR'])))\n"
    )
    command, environment = [sys.executable, "-c", program], {"TMPDIR": str(tmp_path), "PYTHONPATH": ":".join(sys.path)}
    assert subprocess.run([*command, "killed"], env=environment).returncode == -9
    (tmp_path / "another.txt").touch()
    assert len(list(tmp_path.iterdir())) == 2
    done = subprocess.run([*command, "whole"], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "2\n"  # the upload's own, and what is not ours
    assert [path.name for path in tmp_path.iterdir()] == ["another.txt"]


@pytest.mark.parametrize(
    ("root", "stored", "opened"),
    [
        ("/data/view", "../dataset", "/data/dataset"),
        ("/data/view", ".", "/data/view"),
        ("/data/view", "s3://bucket/dataset", "s3://bucket/dataset"),
        ("s3://bucket/a/view", "../dataset", "s3://bucket/a/dataset"),
        ("memory://a/view", "memory://b", "memory://b"),
        ("/data/view", "file:///data/dataset", "file:///data/dataset"),
    ],
)
def test_a_stored_location_is_relative_or_a_plain_url(root: str, stored: str, opened: str) -> None:
    folder = open_folder(root) if root.startswith("/") or root.startswith("memory") else RemoteFolder(root)
    assert stored_location(stored, folder) == opened


def test_a_file_url_is_a_folder_of_this_machine(tmp_path: Path) -> None:
    folder = open_folder(f"file://{tmp_path}/data/")
    assert folder == open_folder(tmp_path / "data")
    with held(folder, "busy"), pytest.raises(UserError, match="busy"), held(open_folder(tmp_path / "data"), "busy"):
        pass
    assert open_folder("file:///") == open_folder("/")


def test_a_chain_whose_root_has_no_path_lists_whole_names(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "p.zip", "w") as archive:
        archive.writestr("rose/1.jpg", b"picture")
    folder = open_folder(f"zip://::file://{tmp_path}/p.zip")
    assert [name for name, _ in folder.walk()] == ["rose/1.jpg"]
    assert folder.read("rose/1.jpg") == b"picture"
    memory = open_folder("memory://")
    with memory.atomic("of-this-test/1.jpg") as file:
        file.write(b"picture")
    assert "of-this-test/1.jpg" in [name for name, _ in memory.walk()]
    memory.remove_tree("of-this-test")


@pytest.mark.parametrize(
    ("root", "stored", "elsewhere"),
    [
        ("/data/view", "../dataset", False),
        ("/data/view", "http://host/dataset", True),
        ("/data/view", "file:///data/dataset", True),
        ("file:///data/view", "../dataset", False),
        ("file:///data/view", "file:///data/dataset", True),
        ("s3://bucket/view", "s3://bucket/dataset", False),
        ("s3://bucket/view", "s3://bucket2/dataset", True),
        ("http://host/view", "https://host/dataset", True),
        ("http://host/view", "http://user@HOST/dataset", False),
        ("http://host/view", "http://host@other/dataset", True),
        ("http://host:80/view", "http://host:81/dataset", True),
    ],
)
def test_a_url_of_another_host_or_local_root_leads_elsewhere(root: str, stored: str, elsewhere: bool) -> None:
    folder = open_folder(root) if root.startswith("/") else RemoteFolder(root)
    assert leads_elsewhere(stored, folder) == elsewhere


@pytest.mark.parametrize(
    ("root", "stored"),
    [
        ("/data/view", "/etc"),
        ("/data/view", "reference://::http://127.0.0.1/spec.json"),
        ("/data/view", "simplecache::file:///etc"),
        ("/data/view", "zip://x::file:///a.zip"),
        ("/data/view", "reference://x"),
        ("/data/view", "REFERENCE://x"),
        ("/data/view", "ftp://host/x"),
        ("/data/view", "memory://x"),
        ("/data/view", "a\0b"),
        ("/data/view", "../a\x1b[2J"),
        ("s3://bucket/view", "../../other/dataset"),
        ("http://host/view", "../../other.example/dataset"),
    ],
)
def test_nothing_else_that_a_file_names_is_opened(root: str, stored: str) -> None:
    folder = open_folder(root) if root.startswith("/") else RemoteFolder(root)
    with pytest.raises(ValueError, match=r"chain|URL that is none of|absolute|another host"):
        stored_location(stored, folder)
