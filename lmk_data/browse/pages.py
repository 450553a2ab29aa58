"""The pages of `lmk-shard browse`: what an address asks for, and the templates that show it, every text escaped."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, get_args
from urllib.parse import quote, urlencode

import jinja2
from starlette.datastructures import QueryParams

from lmk_data.browse.records import (
    ClassFilter,
    ClassQuery,
    ClassSort,
    Flag,
    GroupQuery,
    MarkFilter,
    Page,
    PictureQuery,
    PictureSort,
    QueueName,
)
from lmk_data.dataset.format import SPLITS
from lmk_data.errors import UserError
from lmk_data.system.terminal import printable

PICTURES_PER_PAGE, PICTURES_BESIDE = 200, 60
_MAX_NUMBER = 2**31 - 1
_MAX_SEARCH = 200  # characters
_LIST = ("label", "queue", "group", "split", "flag", "mark", "sort", "seed")  # what makes a list of pictures


class AddressError(UserError):
    """An address asks for something that no page of this server does."""


@dataclass(frozen=True)
class Address:
    """The path and the parameters of a page, from which the links of that page are made."""

    path: str
    params: tuple[tuple[str, str], ...] = ()

    def but(self, **changes: object) -> str:
        """Return this address with parameters set, or removed by None; without `page`, it begins at the first."""
        kept = [(name, value) for name, value in self.params if name not in changes and name != "page"]
        return self._join(kept + [(name, str(value)) for name, value in changes.items() if value is not None])

    def toggled(self, name: str, value: str) -> str:
        """Return this address with one value of a repeated parameter added, or removed if it is there."""
        kept = [pair for pair in self.params if pair != (name, value) and pair[0] != "page"]
        return self._join(kept if (name, value) in self.params else [*kept, (name, value)])

    def has(self, name: str, value: str) -> bool:
        """Return whether a parameter has this value."""
        return (name, value) in self.params

    def get(self, name: str) -> str | None:
        """Return the value of a parameter, None if it is not there."""
        return dict(self.params).get(name)

    def _join(self, params: list[tuple[str, str]]) -> str:
        return self.path + (f"?{urlencode(params)}" if params else "")


def class_query(params: QueryParams) -> ClassQuery:
    """Return which classes an address asks for. Raises AddressError for what it cannot mean."""
    sort: ClassSort = _choice(params, "sort", ClassSort) or "size"
    filters: list[ClassFilter] = [_one_of("filter", value, ClassFilter) for value in params.getlist("filter")]
    return ClassQuery(
        search=search_text(params),
        sort=sort,
        descending=params.get("order", "up" if sort in ("label", "name") else "down") != "up",
        filters=tuple(dict.fromkeys(filters)),
        page=_number(params, "page"),
    )


def picture_query(params: Mapping[str, str], page_size: int = PICTURES_PER_PAGE) -> PictureQuery:
    """Return which pictures an address asks for. Raises AddressError for what it cannot mean."""
    return PictureQuery(
        label=_number(params, "label") if "label" in params else None,
        queue=_choice(params, "queue", QueueName),
        group=params.get("group"),
        split=_choice(params, "split", Literal["train", "val", "test"]),
        flag=_choice(params, "flag", Flag),
        mark=_choice(params, "mark", MarkFilter),
        sort=_choice(params, "sort", PictureSort),
        seed=_number(params, "seed"),
        page=_number(params, "page"),
        page_size=page_size,
    )


def group_query(queue: QueueName, params: QueryParams) -> GroupQuery:
    """Return which groups of a queue an address asks for. Raises AddressError for what it cannot mean."""
    return GroupQuery(queue, page=_number(params, "page"))


def list_parameters(query: PictureQuery) -> dict[str, str]:
    """Return the parameters of a list of pictures, without its page: `picture_query` reads them back."""
    values = {name: getattr(query, name) for name in _LIST}
    return {name: str(value) for name, value in values.items() if value is not None and (name, value) != ("seed", 0)}


def position(params: QueryParams) -> int | None:
    """Return the place in a list from which a picture was opened, None for a picture that stands alone."""
    return _number(params, "at") if "at" in params else None


def search_text(params: QueryParams) -> str:
    """Return what is searched for, cut to 200 characters."""
    return params.get("search", "")[:_MAX_SEARCH]


def page_number(params: QueryParams) -> int:
    """Return which page of a list an address asks for, from 0."""
    return _number(params, "page")


def render(name: str, **values: object) -> str:
    """Return the page that a template makes of these values."""
    return _environment().get_template(name).render(**values)


def _choice(params: Mapping[str, str], name: str, kind: Any) -> Any:
    """Return a parameter that is one of the values of a Literal, None if it is not there."""
    value = params.get(name)
    return None if value in (None, "") else _one_of(name, value, kind)


def _one_of(name: str, value: str | None, kind: Any) -> Any:
    choices = get_args(kind)
    if value not in choices:
        raise AddressError(f"{name}={str(value)[:80]}: is none of {', '.join(choices)}")
    return value


def _number(params: Mapping[str, str], name: str) -> int:
    text = params.get(name, "0")
    if not (text.isascii() and text.isdecimal() and len(text) <= 10 and int(text) <= _MAX_NUMBER):
        raise AddressError(f"{name}={text[:80]}: is no number from 0 to {_MAX_NUMBER}")
    return int(text)


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("lmk_data.browse"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(
        printable=printable,  # jinja2 escapes markup, this the characters that reorder or hide text
        count=lambda number: f"{number:,}",
        share=lambda number: f"{number:.1%}".replace("%", " %"),
        kilobytes=lambda number: f"{number / 1e3:,.1f} kB",
        quoted=lambda text: quote(text, safe=""),
        last_page=_last_page,
    )
    environment.globals.update(SPLITS=SPLITS)
    return environment


def _last_page(page: Page[Any]) -> int:
    """Return the number of the last page of a list, from 0."""
    return max(0, -(-page.total // page.page_size) - 1)
