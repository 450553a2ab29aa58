"""The requests of the pages that change marks or ask for them, as JSON that is checked against its declaration."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from threading import Lock
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from lmk_data.browse.catalogue import Catalogue
from lmk_data.browse.pages import PICTURES_PER_PAGE, AddressError, picture_query
from lmk_data.browse.screens import counts_text
from lmk_data.browse.undo import Steps
from lmk_data.dataset.format import KEY_PATTERN
from lmk_data.errors import UserError
from lmk_data.system.terminal import printable
from lmk_data.views.marks import Mark

MAX_BODY_BYTES = 1 << 20
_MAX_KEYS = 1_000  # of one page
_Kind = TypeVar("_Kind")
Key = Annotated[str, Meta(pattern=rf"\A{KEY_PATTERN}\Z")]
Window = Annotated[str, Meta(pattern=r"\A[0-9a-f]{32}\Z")]
Parameters = dict[Annotated[str, Meta(max_length=20)], Annotated[str, Meta(max_length=200)]]


class NewMark(Struct, forbid_unknown_fields=True):
    """The mark that pictures get; `landmark_id` is for `relabel`."""

    action: Literal["exclude", "relabel"]
    landmark_id: Annotated[str, Meta(max_length=1_000)] = ""


class Look(Struct, forbid_unknown_fields=True):
    """A window asks for the marks of the pictures that it shows, or undoes its last step."""

    window: Window
    shown: Annotated[list[Key], Meta(max_length=_MAX_KEYS)]


class Change(Struct, forbid_unknown_fields=True):
    """A window sets or clears (None) marks: each of `marks`, or the same `mark` for a whole list of pictures."""

    window: Window
    shown: Annotated[list[Key], Meta(max_length=_MAX_KEYS)]
    marks: Annotated[dict[Key, NewMark | None], Meta(max_length=_MAX_KEYS)] = {}
    list: Parameters | None = None
    mark: NewMark | None = None


class Marking:
    """Changes of marks through a catalogue, and their undoing. Several threads may use it."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._steps = Steps()
        self._lock = Lock()

    def look(self, body: bytes) -> dict[str, Any]:
        """Return the marks of the pictures that a window shows."""
        return self._state(_decoded(body, Look).shown, "")

    def change(self, body: bytes) -> dict[str, Any]:
        """Set or clear marks and return those that the window shows. Raises UserError if nothing was saved."""
        change = _decoded(body, Change)
        if change.list is None:
            marks = {key: _mark(new) for key, new in change.marks.items()}
        else:
            marks = dict.fromkeys(self._keys_of(change.list), _mark(change.mark))
        with self._lock:
            marks = self._with_notes(marks)
            after = self._catalogue.settled(marks)
            before = self._catalogue.mark(after)
            self._steps.add(change.window, before, after)
        return self._state(change.shown, _said(marks, self._name_of))

    def undo(self, body: bytes) -> dict[str, Any]:
        """Undo the last step of a window, except for pictures that were marked again since, by whomever."""
        look = _decoded(body, Look)
        with self._lock:
            step = self._steps.last(look.window)
            if step is None:
                return self._state(look.shown, "Nothing to undo in this window.")
            now = self._catalogue.restore(step.before, step.after)
            self._steps.drop(look.window)
        others = sum(now[key] != mark for key, mark in step.after.items())
        problem = (
            f"{_pictures(others)} kept: marked again since, in another window or by another program." if others else ""
        )
        return self._state(look.shown, f"Undone: {_pictures(len(step.after) - others)}.", problem)

    def find_near_duplicates(self, body: bytes) -> dict[str, Any]:
        """Look for near duplicates among all pictures, which takes seconds or minutes."""
        look = _decoded(body, Look)
        self._catalogue.find_near_duplicates()
        return self._state(look.shown, "Near duplicates are known.")

    def _keys_of(self, parameters: Parameters) -> list[str]:
        """Return the keys of all pages of a list of pictures."""
        query = picture_query(parameters, PICTURES_PER_PAGE)
        if query.label is None and query.queue is None:
            raise UserError("only a class, a group or a queue can be marked as a whole")
        return self._catalogue.keys(replace(query, page=0))

    def _with_notes(self, marks: dict[str, Mark | None]) -> dict[str, Mark | None]:
        """Return new marks with the notes that the pictures' present marks have: somebody wrote them by hand."""
        present = self._catalogue.marks_of(marks)
        return {
            key: replace(mark, note=old.note) if mark is not None and (old := present[key]) is not None else mark
            for key, mark in marks.items()
        }

    def _state(self, shown: list[str], said: str, problem: str = "") -> dict[str, Any]:
        marks = self._catalogue.marks_of(shown)
        return {
            "marks": {key: None if mark is None else self._shown(mark) for key, mark in marks.items()},
            "counts": counts_text(self._catalogue.facts().marked),
            "said": said,
            "problem": problem,
        }

    def _shown(self, mark: Mark) -> dict[str, str]:
        text = "excluded" if mark.action == "exclude" else f"\u2192 {printable(self._name_of(mark.landmark_id))}"
        return {"action": mark.action, "text": text}

    def _name_of(self, landmark_id: str) -> str:
        return self._catalogue.name_of(landmark_id)


def _decoded(body: bytes, kind: type[_Kind]) -> _Kind:
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.DecodeError as error:
        raise AddressError(f"a request that no page of this server makes: {error}") from error


def _mark(new: NewMark | None) -> Mark | None:
    return None if new is None else Mark(new.action, new.landmark_id)


def _said(marks: Mapping[str, Mark | None], name_of: Callable[[str], str]) -> str:
    """Return what was done, for a screen reader and for the line below the pictures."""
    kinds = {(mark.action, mark.landmark_id) if mark is not None else ("clear", "") for mark in marks.values()}
    if len(kinds) != 1:
        return f"Saved: {_pictures(len(marks))}."
    action, landmark_id = kinds.pop()
    if action == "relabel":
        return f"{_pictures(len(marks))} relabelled to {printable(name_of(landmark_id))}."
    return f"{_pictures(len(marks))} {'excluded' if action == 'exclude' else 'cleared'}."


def _pictures(number: int) -> str:
    return f"{number:,} picture{'s' * (number != 1)}"
