"""The pages of `lmk-shard browse` and the marks that they make, asked without a browser."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="the extra `browse` is not installed")
pytest.importorskip("httpx", reason="the extra `dev` is not installed")

from lmk_data.browse import undo
from lmk_data.browse.records import PictureQuery
from lmk_data.browse.undo import MAX_STEPS, MAX_WINDOWS, Steps
from lmk_data.views.marks import Mark, MarksFile, read_marks
from tests.data.browse.conftest import Judged
from tests.data.browse.serving import ONE, TWO, Pages

EXCLUDE = {"action": "exclude"}
RELABEL = {"action": "relabel", "landmark_id": "83144"}
BRIDGE = "\u2192 Bridge of Sighs"


@pytest.fixture
def marks(tmp_path: Path) -> Path:
    return tmp_path / "marks.csv"


@pytest.fixture
def pages(named_dataset: Path, marks: Path) -> Pages:
    return Pages(named_dataset, marks).enter()


@pytest.fixture
def keys(pages: Pages) -> list[str]:
    """The pictures of the largest class."""
    return [picture.key for picture in pages.catalogue.pictures(PictureQuery(label=0)).items]


class Policed(HTMLParser):
    """What of a page its content security policy does not let a browser do."""

    def __init__(self) -> None:
        super().__init__()
        self.refused: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag in ("style", "iframe", "base") or (tag == "script" and "src" not in given):
            self.refused.append(tag)
        self.refused += [name for name in given if name == "style" or name.startswith("on")]
        sources = [given.get(name) or "/" for name in ("src", "href", "action")]
        self.refused += [source for source in sources if not source.startswith(("/", "#"))]


def test_every_page_shows_names_as_text(pages: Pages, keys: list[str]) -> None:
    pages.post("/marks", marks={keys[0]: RELABEL})
    paths = ["/", "/classes", "/classes?search=BRIDGE&filter=few&sort=name", "/class/0", "/class/1?beside=0"]
    paths += ["/class/0?sort=random&seed=7&split=train&flag=duplicate&mark=none", "/pictures", "/pictures?mark=any"]
    paths += ["/queue/duplicates", "/queue/conflicts", "/queue/rejects", "/queue/conflicts?group=copy-other"]
    paths += [f"/picture/{keys[0]}", f"/picture/{keys[0]}?label=0&at=0", "/picture/copy-other"]
    for path in paths:
        page = pages.get(path)
        for raw in ("<img src=x", "\u202e", "\x1b"):
            assert raw not in page, path
        policed = Policed()
        policed.feed(page)
        assert not policed.refused, f"{path}: the policy refuses {policed.refused}"
    assert "&lt;img src=x" in pages.get("/class/0")
    assert "Bridge of Sighs" in pages.get("/classes?search=sighs")


def test_what_a_run_and_an_inspection_say_is_shown(named_dataset: Path, marks: Path, judged: Judged) -> None:
    pages = Pages(named_dataset, marks, judged.run, judged.quality).enter()
    classes = pages.get("/classes?sort=f1&filter=suspects")
    assert "F1 (val)" in classes
    assert "purity" in classes
    suspects = pages.get("/queue/suspects")
    assert f'data-key="{judged.suspect}" data-mark="" data-proposed="83144"' in suspects
    picture = pages.get(f"/picture/{judged.suspect}?queue=suspects&at=0")
    for part in ("Proposed", "Predictions", "Similarity", "Nearest in its own class", "1 of 1"):
        assert part in picture, part
    assert "predicted as" in pages.get("/queue/confusions")
    assert 'href="/class/0?beside=2">Side by side' in pages.get("/class/0")
    for path in ("/", "/class/0?sort=suspicion&flag=misclassified", "/class/0?beside=2&sort=outlier"):
        pages.get(path)
    pages.get("/queue/outliers")


def test_what_is_not_there_is_said(pages: Pages) -> None:
    for path in ("/class/9", "/class/x", "/picture/nothing", "/jpeg/nothing", "/queue/none", "/nowhere"):
        pages.get(path, 404)
    for path in ("/classes?sort=evil", "/class/0?page=-1", "/class/0?page=99999999999", "/pictures?split=all"):
        pages.get(path, 400)
    assert "lmk-inspect" in pages.get("/queue/suspects", 409)
    assert "lmk-eval" in pages.get("/class/0?flag=misclassified", 409)


def test_a_mark_is_saved_before_it_is_answered_and_can_be_undone_in_steps(
    pages: Pages, keys: list[str], marks: Path
) -> None:
    assert pages.post("/look", shown=keys[:1])["marks"] == {keys[0]: None}
    assert not marks.exists(), "nothing is created before the first mark"
    first = pages.post("/marks", marks={keys[0]: EXCLUDE, keys[1]: RELABEL}, shown=keys[:3])
    assert first["marks"] == {
        keys[0]: {"action": "exclude", "text": "excluded"},
        keys[1]: {"action": "relabel", "text": BRIDGE},
        keys[2]: None,
    }
    assert first["counts"] == "1 excluded, 1 relabelled"
    assert read_marks(str(marks)) == {keys[0]: Mark("exclude"), keys[1]: Mark("relabel", "83144")}
    assert 'data-mark="exclude"' in pages.get("/class/0")
    pages.post("/marks", marks={keys[0]: RELABEL})
    pages.post("/marks", marks={keys[1]: None})
    assert read_marks(str(marks)) == {keys[0]: Mark("relabel", "83144")}
    for left in ({keys[0], keys[1]}, {keys[0], keys[1]}, set()):
        assert "Undone" in pages.post("/undo")["said"]
        assert set(read_marks(str(marks))) == left
    assert "Nothing to undo" in pages.post("/undo")["said"]


def test_undo_puts_back_a_mark_that_a_window_could_not_set(pages: Pages, keys: list[str], marks: Path) -> None:
    foreign = Mark("relabel", "no class of this dataset")
    MarksFile(marks).apply({keys[0]: foreign})
    pages.post("/marks", marks={keys[1]: EXCLUDE})
    pages.post("/marks", marks={keys[0]: EXCLUDE})
    assert "Undone" in pages.post("/undo")["said"]
    assert "Undone" in pages.post("/undo")["said"]
    assert MarksFile(marks).read() == {keys[0]: foreign}


def test_undo_leaves_what_another_window_or_program_marked_since(pages: Pages, keys: list[str], marks: Path) -> None:
    pages.post("/marks", marks=dict.fromkeys(keys[:3], EXCLUDE))
    pages.post("/marks", marks={keys[0]: RELABEL}, window=TWO)
    MarksFile(marks).apply({keys[1]: None})
    undone = pages.post("/undo", shown=keys[:3])
    assert [mark and mark["action"] for mark in undone["marks"].values()] == ["relabel", None, None]
    assert undone["said"] == "Undone: 1 picture."
    assert "2 pictures kept" in undone["problem"]
    assert "Undone" in pages.post("/undo", window=TWO)["said"]
    assert read_marks(str(marks)) == {keys[0]: Mark("exclude")}


def test_a_whole_class_or_group_is_one_step(pages: Pages, keys: list[str], marks: Path) -> None:
    pages.post("/marks", marks={keys[0]: RELABEL})
    said = pages.post("/marks", list={"label": "0", "mark": "none"}, mark=EXCLUDE)["said"]
    assert said == f"{len(keys) - 1} pictures excluded."
    assert read_marks(str(marks)) == {key: Mark("exclude") for key in keys[1:]} | {keys[0]: Mark("relabel", "83144")}
    pages.post("/undo")
    members = pages.catalogue.pictures(PictureQuery(queue="conflicts")).items
    pages.post("/marks", list={"queue": "conflicts", "group": str(members[0].duplicates)}, mark=EXCLUDE)
    assert {"copy-other"} < {picture.key for picture in members}
    assert all(read_marks(str(marks))[picture.key] == Mark("exclude") for picture in members)
    pages.post("/marks", 409, list={"mark": "none"}, mark=EXCLUDE)


def test_notes_of_people_stay_and_the_own_class_is_no_mark(pages: Pages, keys: list[str], marks: Path) -> None:
    marks.write_text(f"key,action,landmark_id,note\n{keys[0]},exclude,,a floor plan\n")
    assert "a floor plan" in pages.get(f"/picture/{keys[0]}")
    pages.post("/marks", marks={keys[0]: RELABEL, keys[1]: {"action": "relabel", "landmark_id": "138982"}})
    assert read_marks(str(marks)) == {keys[0]: Mark("relabel", "83144", "a floor plan")}
    pages.post("/undo")
    assert read_marks(str(marks)) == {keys[0]: Mark("exclude", note="a floor plan")}


def test_what_cannot_be_saved_is_said_and_not_shown_as_marked(pages: Pages, keys: list[str], marks: Path) -> None:
    assert "no picture has the key" in pages.post("/marks", 409, marks={keys[0]: EXCLUDE, "unknown": EXCLUDE})
    nowhere = {"action": "relabel", "landmark_id": "1"}
    assert "no class has the landmark id" in pages.post("/marks", 409, marks={keys[0]: nowhere})
    assert not marks.exists()
    marks.write_text("key,action\nx,burn\n")
    assert "line 2" in pages.post("/marks", 409, marks={keys[0]: EXCLUDE})
    assert "line 2" in pages.get("/", 409)
    marks.unlink()
    assert pages.post("/look", shown=keys[:1])["marks"] == {keys[0]: None}


def test_requests_that_no_page_makes_are_refused(pages: Pages) -> None:
    for content in ({"window": "x"}, {"marks": {"../x": EXCLUDE}}, {"marks": {"k": {"action": "burn"}}}, {"more": 1}):
        pages.post("/marks", 400, **content)
    pages.post("/marks", 413, list={"group": "x" * (2 << 20)})
    assert pages.client.post("/look", data={}, headers={"Origin": "http://127.0.0.1:8000"}).status_code == 415


def test_a_picture_has_links_to_the_ones_beside_it_even_when_its_list_changes(pages: Pages, keys: list[str]) -> None:
    unmarked = f"/picture/{keys[1]}?label=0&mark=none&at=1"
    links = re.compile(r'rel="(prev|next)" href="/picture/([\w-]+)\?')
    assert dict(links.findall(pages.get(unmarked))) == {"prev": keys[0], "next": keys[2]}
    pages.post("/marks", marks={keys[1]: EXCLUDE})
    assert dict(links.findall(pages.get(unmarked))) == {"prev": keys[0], "next": keys[2]}
    last = f"/picture/{keys[-1]}?label=0&at={len(keys) - 1}"
    assert dict(links.findall(pages.get(last))) == {"prev": keys[-2]}


def test_completion_names_classes_in_one_line(pages: Pages) -> None:
    (found,) = pages.client.get("/complete?search=204").json()
    assert found["landmark_id"] == "20409"
    assert "\\u202e" in found["name"]
    assert "\\x1b" in found["name"]
    assert pages.client.get("/complete?search=sigh").json()[0]["landmark_id"] == "83144"


def test_near_duplicates_are_found_on_request(pages: Pages) -> None:
    assert pages.catalogue.facts().duplicates != "near"
    pages.post("/near-duplicates")
    assert "exact and near" in pages.get("/")


def test_steps_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(undo, "MAX_KEYS", 500)
    steps = Steps()
    for number in range(MAX_WINDOWS + 1):
        steps.add(f"{number}", {"a": None}, {"a": Mark("exclude")})
    assert steps.last("0") is None
    for number in range(MAX_STEPS + 5):
        steps.add(ONE, {f"{number}": None}, {f"{number}": Mark("exclude")})
    many = {f"{number}": Mark("exclude") for number in range(500)}
    steps.add(ONE, dict.fromkeys(many), many)
    steps.drop(ONE)
    assert steps.last(ONE) is None, "a large step takes the place of those before it"
    steps.add(ONE, {"a": None}, {"a": None})
    assert steps.last(ONE) is None
