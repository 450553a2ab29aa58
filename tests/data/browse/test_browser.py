"""`lmk-shard browse` as people use it: a real server process, and Chromium without a screen."""

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import pytest

pytest.importorskip("playwright", reason="the extra `dev` is not installed")
pytest.importorskip("uvicorn", reason="the extra `browse` is not installed")

from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, expect, sync_playwright

from lmk_data.cli import main
from lmk_data.views.marks import Mark, read_marks
from tests.data.browse.conftest import Judged

pytestmark = pytest.mark.slow
BRIDGE = "\u2192 Bridge of Sighs"
EXCLUDED = '[data-mark="exclude"]'


class Server:
    """A process of `lmk-shard browse` over a dataset, in a folder that gets the marks."""

    gone: ClassVar[set[str]] = set()  # the addresses of those that were ended

    def __init__(self, dataset: Path, folder: Path, port: int = 0, judged: Judged | None = None) -> None:
        words = [sys.executable, "-m", "lmk_data.cli", "browse", str(dataset), "--no-open", "--quiet"]
        words += ["--port", str(port), "--marks", "marks.csv"]
        words += ["--run", str(judged.run), "--quality", str(judged.quality)] if judged else []
        self.process = subprocess.Popen(words, cwd=folder, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().split()[-1]
        self.root = self.address.split("?")[0].rstrip("/")
        self.port = int(self.root.rsplit(":", 1)[1])
        self.marks = folder / "marks.csv"

    def end(self, by: signal.Signals = signal.SIGINT) -> int:
        """Send a signal and return the exit code."""
        self.gone.add(self.root)
        self.process.send_signal(by)
        code = self.process.wait(20)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def shared_server(named_dataset: Path, judged: Judged, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(named_dataset, tmp_path_factory.mktemp("browse"), judged=judged)
    yield server
    assert server.end() == 0


@pytest.fixture
def server(shared_server: Server) -> Server:
    """A server without marks."""
    shared_server.marks.unlink(missing_ok=True)
    return shared_server


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    """A browser of a person; nothing on its pages may raise an error or be refused by the policy."""
    opened = browser.new_context()
    opened.set_default_timeout(10_000)
    problems: list[str] = []

    def note(message: ConsoleMessage) -> None:
        is_of_ended_server = "net::ERR_" in message.text and message.location["url"].startswith(tuple(Server.gone))
        if not is_of_ended_server:
            problems.append(message.text)

    opened.on("weberror", lambda error: problems.append(str(error.error)))
    opened.on("console", note)
    yield opened
    opened.close()
    assert problems == []


Opened = Callable[..., Page]


@pytest.fixture
def window(context: BrowserContext) -> Opened:
    """A new window that shows a page of a server."""

    def show(server: Server, path: str = "/") -> Page:
        page = context.new_page()
        page.goto(server.address)
        page.wait_for_url(f"{server.root}/")
        if path != "/":
            page.goto(server.root + path)
        page.wait_for_selector("html[data-ready]")
        return page

    return show


def key_of(page: Page, place: int = 0) -> str:
    return page.locator(".tile").nth(place).get_attribute("data-key") or ""


def test_search_open_mark_and_undo_with_the_mouse(server: Server, window: Opened) -> None:
    page = window(server)
    assert "token" not in page.url
    page.get_by_role("searchbox").fill("sighs")
    page.get_by_role("button", name="Search classes").click()
    page.get_by_role("link", name="Bridge of Sighs").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Bridge of Sighs")
    key = key_of(page, 1)
    page.locator(".open").nth(1).click()
    expect(page.locator("article img")).to_have_js_property("naturalWidth", 32)
    page.get_by_role("group", name="Mark pictures").get_by_role("button", name="Exclude").click()
    expect(page.get_by_role("status")).to_have_text("1 picture excluded.")
    assert read_marks(str(server.marks)) == {key: Mark("exclude")}
    page.get_by_role("link", name="List").click()
    expect(page.locator(f'.tile{EXCLUDED}[data-key="{key}"] .mark')).to_have_text("excluded")
    expect(page.locator("#marked")).to_have_text("1 excluded, 0 relabelled")
    page.get_by_role("button", name="Undo").click()
    expect(page.locator(EXCLUDED)).to_have_count(0)
    assert read_marks(str(server.marks)) == {}
    page.locator(".tile").nth(0).get_by_role("checkbox").click()
    page.locator(".tile").nth(3).get_by_role("checkbox").click(modifiers=["Shift"])
    expect(page.locator("#chosen")).to_have_text("4 chosen")
    page.get_by_role("button", name="Mark all 6 pictures").click()
    page.get_by_role("button", name="Exclude all").click()
    expect(page.locator(EXCLUDED)).to_have_count(6)
    page.goto(server.root)
    expect(page.locator("#subset")).to_contain_text("lmk-shard subset")
    expect(page.locator("[data-counts]")).to_have_text("6 excluded, 0 relabelled")


def test_the_keyboard_alone_is_enough(server: Server, window: Opened, judged: Judged) -> None:
    page = window(server, "/classes?sort=name")
    press = page.keyboard.press
    press("/")
    page.keyboard.type("138982")
    press("Enter")
    page.wait_for_url("**search=138982*")
    name = page.get_by_role("link", name='<img src=x onerror="alert(1)">')
    name.focus()
    press("Enter")
    page.wait_for_url("**/class/0")
    keys = [key_of(page, i) for i in range(4)]
    for key in ("ArrowRight", "l", "l", "h"):
        press(key)
    expect(page.locator(".open").nth(1)).to_be_focused()
    press("Shift+ArrowRight")
    expect(page.locator("#chosen")).to_have_text("2 chosen")
    press("r")
    page.keyboard.type("sigh")
    expect(page.get_by_role("option")).to_have_count(1)
    press("Enter")
    expect(page.locator(".tile .mark", has_text=BRIDGE)).to_have_count(2)
    assert read_marks(str(server.marks)) == dict.fromkeys(keys[1:3], Mark("relabel", "83144"))
    press("Escape")
    press("Enter")
    page.wait_for_url(f"**/picture/{keys[2]}*")
    press("ArrowRight")
    page.wait_for_url(f"**/picture/{keys[3]}*")
    press("x")
    expect(page.locator(f"article{EXCLUDED}")).to_be_visible()
    press("Escape")
    page.wait_for_url("**/class/0")
    expect(page.locator(".open").nth(3)).to_be_focused()
    for left in (2, 0):
        press("u")
        expect(page.locator('.tile:not([data-mark=""])')).to_have_count(left)
    press("?")
    expect(page.get_by_role("dialog", name="Keys")).to_be_visible()
    press("Escape")
    press("Tab")
    assert page.evaluate("!document.activeElement.closest('.grid')"), "Tab leaves the grid"
    page.goto(f"{server.root}/queue/suspects")
    press("l")
    press("y")
    expect(page.locator(".tile .mark")).to_have_text(BRIDGE)
    assert read_marks(str(server.marks)) == {judged.suspect: Mark("relabel", "83144")}


def test_two_windows_see_each_other_and_undo_only_their_own(server: Server, window: Opened) -> None:
    first, second = window(server, "/class/0"), window(server, "/class/0")
    first.locator(".tile").nth(0).get_by_role("button", name="Exclude").click()
    expect(first.locator(EXCLUDED)).to_have_count(1)
    expect(second.locator(EXCLUDED)).to_have_count(1)
    key = key_of(first)
    second.locator(".tile").nth(0).get_by_role("button", name="Relabel").click()
    second.get_by_role("combobox").fill("204")
    second.get_by_role("option").first.click()
    expect(second.locator('[data-mark="relabel"]')).to_have_count(1)
    first.keyboard.press("u")
    expect(first.get_by_role("alert")).to_contain_text("1 picture kept: marked again since")
    assert read_marks(str(server.marks)) == {key: Mark("relabel", "20409")}
    second.keyboard.press("u")
    expect(second.locator(EXCLUDED)).to_have_count(1)
    first.evaluate("dispatchEvent(new Event('focus'))")
    expect(first.locator(EXCLUDED)).to_have_count(1)


def test_a_killed_server_loses_nothing_that_was_shown_as_marked(
    named_dataset: Path, tmp_path: Path, window: Opened
) -> None:
    server = Server(named_dataset, tmp_path)
    page = window(server, "/class/0")
    page.keyboard.press("l")
    for _ in range(3):
        page.keyboard.press("x")
        page.keyboard.press("l")
    expect(page.locator(EXCLUDED).first).to_be_visible()
    assert server.end(signal.SIGKILL) == -signal.SIGKILL
    page.keyboard.press("x")
    expect(page.get_by_role("alert")).to_contain_text("Not saved: no answer")
    expect(page.locator('[aria-busy="true"]')).to_have_count(0)
    shown = page.locator(EXCLUDED).evaluate_all("tiles => tiles.map((tile) => tile.dataset.key)")
    assert set(shown) <= set(read_marks(str(server.marks)))
    again = Server(named_dataset, tmp_path, server.port)
    page = window(again, "/class/0")
    expect(page.locator(EXCLUDED)).to_have_count(len(read_marks(str(again.marks))))
    assert again.end(signal.SIGTERM) == 0


def test_the_view_of_the_marks_is_whole_and_can_be_looked_at_again(
    server: Server, named_dataset: Path, tmp_path: Path, window: Opened
) -> None:
    page = window(server, "/queue/conflicts")
    page.get_by_role("button", name="Choose all but the first").click()
    page.get_by_role("group", name="Mark pictures").get_by_role("button", name="Exclude").click()
    expect(page.locator(EXCLUDED)).to_have_count(1)
    (excluded,) = read_marks(str(server.marks))
    view = tmp_path / "view"
    assert main(["subset", str(named_dataset), "--marks", str(server.marks), "--out", str(view), "--quiet"]) == 0
    assert main(["verify", str(view), "--workers", "1", "--quiet"]) == 0
    of_view = Server(view, tmp_path)
    page = window(of_view, "/pictures")
    expect(page.locator(".tile")).to_have_count(23)
    expect(page.locator(f'[data-key="{excluded}"]')).to_have_count(0)
    assert of_view.end() == 0
    assert not of_view.marks.exists(), "looking creates nothing"


def test_phones_and_dark_mode(server: Server, browser: Browser) -> None:
    phone = browser.new_context(
        viewport={"width": 360, "height": 740},
        has_touch=True,
        is_mobile=True,
        color_scheme="dark",
    )
    page = phone.new_page()
    page.goto(server.address)
    page.wait_for_url(f"{server.root}/")
    for path in ("/", "/classes", "/class/0", "/class/0?beside=1", "/queue/duplicates", "/picture/copy-same"):
        page.goto(server.root + path)
        page.wait_for_selector("html[data-ready]")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{path} is wider than the phone"
        nameless = "[...document.querySelectorAll('img:not([alt])')].length"
        assert page.evaluate(nameless) == 0
    button = page.get_by_role("group", name="Mark pictures").get_by_role("button", name="Exclude", exact=True)
    box = button.bounding_box()
    assert box is not None
    assert min(box["width"], box["height"]) >= 44
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(18, 23, 29)"
    button.tap()
    expect(page.locator(f"article{EXCLUDED}")).to_be_visible()
    phone.close()
