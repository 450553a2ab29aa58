"""Only the browser that was given the token, and only pages of the server itself, get anything."""

from pathlib import Path
from urllib.parse import quote

import pytest

pytest.importorskip("starlette", reason="the extra `browse` is not installed")
pytest.importorskip("httpx", reason="the extra `dev` is not installed")

from starlette.websockets import WebSocketDisconnect

from lmk_data.views.marks import Mark
from tests.data.browse.serving import HOST, TOKEN, Pages


@pytest.fixture
def pages(named_dataset: Path, tmp_path: Path) -> Pages:
    return Pages(named_dataset, tmp_path / "marks.csv")


@pytest.mark.parametrize("path", ["/", "/classes", "/jpeg/copy-same", "/static/browse.js", "/complete", "/nowhere"])
def test_nothing_is_shown_without_the_token(pages: Pages, path: str) -> None:
    pages.get(path, 403)
    pages.get(f"/?token={TOKEN}x", 403)
    pages.get(path, 403)
    pages.enter().get(path, 404 if path == "/nowhere" else 200)


def test_the_token_becomes_a_cookie_that_scripts_and_other_sites_cannot_use(pages: Pages) -> None:
    response = pages.client.get(f"/?token={TOKEN}")
    assert TOKEN not in response.text
    cookie = response.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert "path=/" in cookie
    assert response.headers["cache-control"] == "no-store"
    pages.get(f"/classes?token={TOKEN}")  # the cookie counts, not the parameter
    pages.client.cookies.clear()
    pages.get(f"/classes?token={TOKEN}", 403)


def test_the_address_that_a_browser_is_given_works_once(pages: Pages) -> None:
    token = pages.guard.token_for_one_entry()
    assert pages.client.head(f"/?token={token}").status_code == 403, "a look ahead does not use it up"
    assert TOKEN in pages.client.get(f"/?token={token}").headers["set-cookie"]
    pages.get("/classes")
    pages.client.cookies.clear()
    pages.get(f"/?token={token}", 403)
    pages.enter().get("/classes")


@pytest.mark.parametrize(
    ("host", "code"),
    [
        ("localhost:9000", 200),  # as behind `ssh -L`
        ("127.0.0.1", 200),
        ("[::1]:8000", 200),
        ("192.168.1.7:8000", 200),
        ("HERE:8000", 200),
        ("evil.example", 403),
        ("127.0.0.1.evil.example:8000", 403),
        ("localhost.evil.example", 403),
        ("[::1", 403),
        ("", 403),
    ],
)
def test_a_name_of_somebody_else_is_refused(pages: Pages, host: str, code: int) -> None:
    pages.enter()
    headers = {"Host": host, "Cookie": f"lmk={TOKEN}"}
    assert pages.client.get("/", headers=headers).status_code == code


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Origin": "http://evil.example"},
        {"Origin": f"http://{HOST}0"},
        {"Origin": "http://localhost:8000"},
        {"Origin": "null"},
        {"Origin": "http://["},
        {"Origin": f"http://{HOST}", "Sec-Fetch-Site": "same-site"},
    ],
)
def test_other_origins_write_nothing(pages: Pages, headers: dict[str, str], tmp_path: Path) -> None:
    pages.enter()
    body = {"window": "0" * 32, "shown": [], "marks": {"copy-same": {"action": "exclude"}}}
    assert pages.client.post("/marks", json=body, headers=headers).status_code == 403
    assert not (tmp_path / "marks.csv").exists()
    headers = {"Origin": f"http://{HOST}", "Sec-Fetch-Site": "same-origin"}
    assert pages.client.post("/marks", json=body, headers=headers).status_code == 200
    assert pages.catalogue.marks_of(["copy-same"]) == {"copy-same": Mark("exclude")}


def test_other_sites_cannot_embed_what_is_shown(pages: Pages) -> None:
    pages.enter()
    for site, mode, code in (
        ("cross-site", "no-cors", 403),
        ("same-site", "cors", 403),
        ("cross-site", "navigate", 200),
        ("none", "navigate", 200),
        ("same-origin", "no-cors", 200),
    ):
        headers = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": mode}
        assert pages.client.get("/jpeg/copy-same", headers=headers).status_code == code


def test_every_answer_has_the_headers(pages: Pages) -> None:
    for path in ("/", f"/?token={TOKEN}", "/classes", "/jpeg/copy-same", "/static/browse.css", "/nowhere", "/class/x"):
        headers = pages.client.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert "no-store" in headers["cache-control"] or path.startswith(("/jpeg", "/static"))


@pytest.mark.parametrize("name", ["../app.py", "..%2Fapp.py", "templates/layout.html", "", "%00", "browse.js/"])
def test_only_files_that_are_named_are_served(pages: Pages, name: str) -> None:
    pages.enter()
    assert pages.client.get(f"/static/{name}").status_code in (404, 405)
    for folder in ("jpeg", "picture"):
        assert pages.client.get(f"/{folder}/{name}").status_code == 404
        assert pages.client.get(f"/{folder}/{quote('../' * 6 + 'etc/passwd', safe='')}").status_code == 404


def test_only_reads_and_the_declared_writes(pages: Pages) -> None:
    pages.enter()
    origin = {"Origin": f"http://{HOST}"}
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS"):
        assert pages.client.request(method, "/classes", headers=origin).status_code == 405
    assert pages.client.get("/marks").status_code == 405
    with pytest.raises(WebSocketDisconnect), pages.client.websocket_connect("/"):
        pass
