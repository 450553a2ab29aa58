"""Web servers that send without end, list without end, say nothing, or say what is not so."""

import base64
import contextlib
import gzip
import http.server
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lmk_data.errors import TooLargeError, UserError
from lmk_data.leftovers import HIDDEN, LEFT_BY_SYSTEMS
from lmk_data.sources.members import read_members
from lmk_data.sources.stores import open_stores
from lmk_data.system import remote, web
from lmk_data.system.remote import RemoteFolder, file_system
from tests.data.sources.packed import write_tar

pytest.importorskip("aiohttp", reason="fsspec reads http with aiohttp")
Answer = Callable[["Handler"], None]
MEBIBYTE = bytes(1 << 20)


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers a path with what the test says of it, or of the path that begins it; else 404."""

    server: "Server"

    def do_GET(self) -> None:
        self.server.asked[self.path] += 1
        answers = [answer for path, answer in self.server.answers.items() if self.path.startswith(path)]
        with contextlib.suppress(OSError):  # the client may have left
            answers[0](self) if answers else self.say(b"", status=404)

    def do_HEAD(self) -> None:
        self.do_GET()

    def say(self, body: bytes, *, status: int = 200, num_bytes: int | None = None, **headers: str) -> None:
        self.send_response(status)
        stated = {"Content-Length": str(len(body) if num_bytes is None else num_bytes), "Content-Type": "text/html"}
        for name, value in {**stated, **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class Server(http.server.ThreadingHTTPServer):
    """A web server of this machine; `asked` counts the requests by path."""

    daemon_threads = True

    def __init__(self, answers: dict[str, Answer]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers, self.asked, self.ended = answers, Counter[str](), threading.Event()
        self.num_sent = 0

    def folder(self) -> RemoteFolder:
        return RemoteFolder(f"http://127.0.0.1:{self.server_port}")


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[dict[str, Answer]], Server]]:
    """Return how to start a server. No connection of another test is used, and pauses are short."""
    from fsspec.implementations.http import HTTPFileSystem

    def forget() -> None:
        HTTPFileSystem.clear_instance_cache()
        file_system.cache_clear()

    forget()
    monkeypatch.setattr(remote, "_PAUSES_SECONDS", (0.001,) * 3)
    servers: list[tuple[Server, threading.Thread]] = []

    def start(answers: dict[str, Answer]) -> Server:
        server = Server(answers)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        servers.append((server, thread))
        return server

    yield start
    for server, thread in servers:
        server.ended.set()
        server.shutdown()
        thread.join()
        server.server_close()
    forget()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "SILENT_SECONDS", 0.1)
    monkeypatch.setattr(remote, "PATIENCE_SECONDS", 0.05)


def endless(handler: Handler) -> None:
    """Send zeros until the client leaves, without a length."""
    handler.send_response(200)
    handler.send_header("Content-Type", "text/html")
    handler.end_headers()
    while handler.command == "GET":
        handler.wfile.write(MEBIBYTE)
        handler.server.num_sent += 1


def silent(handler: Handler) -> None:
    handler.server.ended.wait()


def test_an_answer_without_end_is_read_up_to_the_limit(serve: Any) -> None:
    server = serve({"/a.csv": endless, "/b.csv": lambda h: h.say(b"", num_bytes=1 << 40)})
    for name in ("a.csv", "b.csv"):
        with pytest.raises(TooLargeError) as raised:
            server.folder().read(name, 4 << 20)
        assert raised.value.filename == server.folder().location(name)
        assert server.asked[f"/{name}"] == 1, "it is not asked again"
    assert server.num_sent < 64, "the rest is not read"
    packed = serve({"/c.csv": lambda h: h.say(gzip.compress(bytes(1 << 24)), Content_Encoding="gzip")})
    with pytest.raises(OSError, match=r"larger|Decompress"):
        packed.folder().read("c.csv", 4 << 20)
    assert packed.folder().exists("d") is False


def test_a_file_of_the_limit_is_read(serve: Any) -> None:
    server = serve({"/a": lambda h: h.say(b"1234")})
    assert server.folder().read("a", 4) == b"1234"
    with pytest.raises(TooLargeError):
        server.folder().read("a", 3)


@pytest.mark.usefixtures("impatient")
def test_a_server_that_says_nothing_is_given_up(serve: Any) -> None:
    server = serve({"/a": silent, "/b": lambda h: h.say(b"x", num_bytes=9) or silent(h)})
    with pytest.raises(TimeoutError, match="no answer in time"):
        server.folder().read("a")
    with pytest.raises(OSError, match="no answer in time"):
        server.folder().read("b")
    assert server.asked == {"/a": 1, "/b": 1}


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("ask", [lambda f: f.size("a"), lambda f: f.exists("a"), lambda f: f.is_file("a")])
@pytest.mark.parametrize("answer", [silent, lambda h: h.say(b"", status=503), lambda h: h.say(b"", status=429)])
def test_no_answer_does_not_mean_that_there_is_no_file(serve: Any, ask: Any, answer: Answer) -> None:
    with pytest.raises(OSError, match="no answer") as raised:
        ask(serve({"/a": answer}).folder())
    assert not isinstance(raised.value, FileNotFoundError)


def test_files_that_are_absent(serve: Any) -> None:
    folder = serve({"/secret": lambda h: h.say(b"", status=403), "/there": lambda h: h.say(b"x")}).folder()
    assert [folder.exists(name) for name in ("none", "secret", "there")] == [False, False, True]
    for name in ("none", "secret"):
        with pytest.raises(FileNotFoundError):
            folder.size(name)
    with pytest.raises(FileNotFoundError):
        folder.read("none")


def test_a_file_of_unknown_size(serve: Any) -> None:
    def say(handler: Handler) -> None:
        handler.send_response(200)
        handler.end_headers()
        if handler.command == "GET":
            handler.wfile.write(b"x")

    server = serve({"/a": say})
    assert server.folder().read("a") == b"x"
    with pytest.raises(OSError, match="does not say how large it is"):
        server.folder().size("a")


def test_more_than_was_asked_for_is_not_read(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_BLOCK_BYTES", 1 << 16)

    def say(handler: Handler) -> None:
        if handler.command == "HEAD":
            return handler.say(b"", num_bytes=1 << 40)
        handler.send_response(206)
        handler.end_headers()
        while True:
            handler.wfile.write(MEBIBYTE)

    with serve({"/a": say}).folder().open("a") as file, pytest.raises(TooLargeError):
        file.read(10)


def test_whole_files_where_parts_are_asked_for(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small file is cut here; a large one would come whole for each picture in it."""
    monkeypatch.setattr(web, "MAX_WHOLE_BYTES", 1000)
    server = serve({"/a": lambda h: h.say(b"0123456789" * 100), "/b": lambda h: h.say(bytes(1001))})
    assert server.folder().read_range("a", 12, 3) == b"234"
    assert server.folder().read_range("a", 0, 1000) == b"0123456789" * 100
    with pytest.raises(OSError, match="sends whole files"):
        server.folder().read_range("b", 0, 10)
    assert server.asked["/b"] == 1


def test_an_open_file_of_a_server_that_knows_no_parts(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of `python -m http.server`: the first part brings all of the file, from which the others are cut."""
    monkeypatch.setattr(remote, "_BLOCK_BYTES", 16)
    monkeypatch.setattr(web, "MAX_WHOLE_BYTES", 1000)
    server = serve({"/a": lambda h: h.say(b"0123456789" * 100), "/b": lambda h: h.say(bytes(1001))})
    with server.folder().open("a") as file:
        assert file.seek(-3, os.SEEK_END) == 997
        assert file.read() == b"789"
        asked = server.asked["/a"]
        file.seek(12)
        assert (file.read(40), file.tell()) == (b"2345678901" * 4, 52)
        assert server.asked["/a"] == asked
    with server.folder().open("b") as file, pytest.raises(TooLargeError):
        file.read(3)


def test_an_open_file_is_read_in_parts(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_BLOCK_BYTES", 16)
    content = bytes(range(256)) * 4
    parts: list[tuple[int, int]] = []

    def say(handler: Handler) -> None:
        if handler.command == "HEAD":
            return handler.say(b"", num_bytes=len(content))
        first, last = (int(number) for number in handler.headers["Range"].removeprefix("bytes=").split("-"))
        parts.append((first, last + 1))
        return handler.say(content[first : last + 1], status=206)

    with serve({"/a": say}).folder().open("a") as file:
        file.seek(300)
        assert file.read(10) == content[300:310]
        file.seek(-8, os.SEEK_END)
        assert file.read(100) == content[-8:]
        assert file.read(1) == b""
    assert parts == [(300, 316), (1016, 1024)]


def test_an_open_file_of_unknown_size(serve: Any) -> None:
    def say(handler: Handler) -> None:
        handler.send_response(200)
        handler.end_headers()
        if handler.command == "GET":
            handler.wfile.write(b"0123456789")

    with serve({"/a": say}).folder().open("a") as file:
        assert file.seek(0, os.SEEK_END) == 10
        file.seek(3)
        assert file.read() == b"3456789"


def test_the_tars_of_a_folder_are_asked_for_with_its_password(serve: Any, tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"1.jpg": b"picture"})

    def protected(body: bytes) -> Answer:
        wanted = f"Basic {base64.b64encode(b'me:pw').decode()}"
        return lambda h: h.say(body) if h.headers["Authorization"] == wanted else h.say(b"", status=401)

    tar = (tmp_path / "a.tar").read_bytes()
    server = serve({"/d/a.tar": protected(tar), "/d": protected(b'<a href="a.tar">a.tar</a>')})
    (store,) = open_stores([f"http://me:pw@127.0.0.1:{server.server_port}/d"])
    assert store.location == f"http://127.0.0.1:{server.server_port}/d/a.tar"
    assert read_members([store], cache=None).frame["source"].tolist() == ["1.jpg"]


def test_links_are_compared_as_the_names_that_they_stand_for(serve: Any) -> None:
    links = b'<a href="/d/Notre-Dame%20(Paris)/a.jpg">a</a><a href="/d/Notre-Dame%20(Paris)/caf%E9.jpg">b</a>'
    server = serve(
        {
            "/d/Notre-Dame%20(Paris)/caf%E9.jpg": lambda h: h.say(b"latin"),
            "/d/Notre-Dame%20(Paris)": lambda h: h.say(links),
            "/d": lambda h: h.say(b'<a href="/d/Notre-Dame%20(Paris)/">Notre-Dame</a>'),
        }
    )
    folder = RemoteFolder(f"{server.folder().url}/d")
    assert sorted(name for name, _ in folder.walk()) == [f"Notre-Dame (Paris)/{n}" for n in ("a.jpg", "caf\udce9.jpg")]
    assert folder.read("Notre-Dame (Paris)/caf\udce9.jpg") == b"latin"


def test_redirects_end(serve: Any) -> None:
    server = serve({"/a": lambda h: h.say(b"", status=302, Location=f"/a{sum(h.server.asked.values())}")})
    with pytest.raises(OSError, match="TooManyRedirects"):
        server.folder().read("a")
    assert sum(server.asked.values()) <= 4 * 11


def page(*links: str) -> Answer:
    return lambda handler: handler.say("".join(f'<a href="{link}">x</a>' for link in links).encode())


def test_a_listing_without_end(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "MAX_LISTING_BYTES", 1 << 20)
    server = serve({"/": endless})
    with pytest.raises(TooLargeError):
        server.folder().files()
    assert server.num_sent < 64


def test_folders_without_end(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve({"/": page("a/", "b/")})
    with pytest.raises(UserError, match=r"more than 64 folders deep"):
        list(server.folder().walk())
    assert sum(server.asked.values()) <= remote.MAX_DEPTH + 1
    monkeypatch.setattr(remote, "MAX_FOLDERS", 100)
    wide = serve({"/": page(*(f"{i}/" for i in range(200)))})
    with pytest.raises(UserError, match=r"100 folders"):
        list(wide.folder().walk())
    assert sum(wide.asked.values()) <= 3


def test_patterns_of_a_web_server(serve: Any) -> None:
    server = serve({"/": page("a/", "b.tar", "c.txt")})
    url = server.folder().url
    assert remote.glob_urls(f"{url}/*.tar") == [f"{url}/b.tar"]
    with pytest.raises(UserError, match="without end"):
        remote.glob_urls(f"{url}/**/*.tar")


def test_pages_that_link_to_one_another(serve: Any) -> None:
    links = [
        "?C=N;O=D",
        "#top",
        "/",
        "/train",
        "/train/",
        "./",
        "../",
        "../../x.jpg",
        "https://elsewhere.example/x.jpg",
    ]
    root = page(*links, "./1.jpg", "deep/er/3.jpg", "cat/", ".hidden/", "Thumbs.db")
    server = serve({"/train/cat": page(*links, "/train/cat/2.jpg", "../dog/", "../cat/", "./"), "/train": root})
    folder = RemoteFolder(f"{server.folder().url}/train")
    left_out: list[tuple[str, str]] = []
    assert sorted(folder.walk(left_out)) == [("1.jpg", -1), ("cat/2.jpg", -1), ("deep/er/3.jpg", -1)]
    assert sorted(left_out) == [(".hidden", HIDDEN), ("Thumbs.db", LEFT_BY_SYSTEMS)]
    assert server.asked == {"/train": 1, "/train/cat": 1}
    assert (folder.files(), folder.folders()) == (["1.jpg", "Thumbs.db"], [".hidden", "cat"])
