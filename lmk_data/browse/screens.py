"""The pages that show a dataset: for each address what it shows of the catalogue, and the links to go on from there."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar, get_args

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from lmk_data.browse.catalogue import Catalogue
from lmk_data.browse.choices import class_choices, class_columns, new_seed, picture_choices
from lmk_data.browse.pages import (
    PICTURES_BESIDE,
    Address,
    class_query,
    group_query,
    list_parameters,
    page_number,
    picture_query,
    position,
    render,
)
from lmk_data.browse.records import (
    ClassRow,
    MarkCounts,
    Page,
    PictureQuery,
    PictureRow,
    Queue,
    QueueName,
)

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")
_ROWS_PER_PAGE = 100


class Screens:
    """The endpoints of all pages over one catalogue."""

    def __init__(self, catalogue: Catalogue, version: str) -> None:
        self._catalogue = catalogue
        self._version = version

    def start(self, request: Request) -> Response:
        """Return the first page: what is open, the queues, and the command that makes a view of the marks."""
        return self._page("start.html", Address("/"), seed=new_seed())

    def classes(self, request: Request) -> Response:
        """Return a page of the table of classes."""
        query = class_query(request.query_params)
        address = _address(request)
        facts = self._catalogue.facts()
        return self._page(
            "classes.html",
            address,
            query=query,
            list=self._catalogue.classes(query),
            rows=class_choices(query, address, facts),
            columns=class_columns(facts),
        )

    def one_class(self, request: Request) -> Response:
        """Return a page of a class, alone or side by side with another one."""
        label = _label(request.path_params["label"])
        address = _address(request)
        beside = request.query_params.get("beside")
        query = picture_query({**request.query_params, "label": str(label)})
        row = self._class_row(label)
        values: dict[str, Any] = {}
        if beside is None:
            values["list"] = found(self._catalogue.pictures, query)
        else:
            query = replace(query, page_size=PICTURES_BESIDE)
            other = replace(query, label=_label(beside))
            values["list"], values["beside_list"] = (
                found(self._catalogue.pictures, query),
                found(self._catalogue.pictures, other),
            )
            values["longer"] = max(values["list"], values["beside_list"], key=lambda page: page.total)
            values["beside_href"] = _hrefs(other)
        return self._page(
            "class.html",
            address,
            marking=True,
            row=row,
            beside=None if beside is None else self._class_row(_label(beside)),
            href=_hrefs(query),
            whole=list_parameters(query),
            narrowed=len(list_parameters(query)) > 1,
            rows=picture_choices(query, address, self._catalogue.facts()),
            **values,
        )

    def pictures(self, request: Request) -> Response:
        """Return a page of pictures of the whole dataset."""
        return self._picture_list("Pictures", picture_query(request.query_params), _address(request))

    def queue(self, request: Request) -> Response:
        """Return a page of a queue: pictures, groups of pictures, or the files that the build left out."""
        name, address = request.path_params["name"], _address(request)
        if name not in get_args(QueueName):
            raise HTTPException(404, f"There is no queue {name}.")
        queue = next(queue for queue in self._catalogue.queue_names() if queue.name == name)
        if queue.unit == "files":
            page = self._catalogue.rejects(page_number(request.query_params), _ROWS_PER_PAGE)
            return self._page("rejects.html", address, title=queue.title, list=page)
        if queue.unit == "groups" and "group" not in request.query_params:
            return self._groups(queue, request)
        query = picture_query({**request.query_params, "queue": name})
        title = queue.title if query.group is None else f"{queue.title}: one group"
        return self._picture_list(title, query, address)

    def picture(self, request: Request) -> Response:
        """Return the page of one picture, with links to those before and after it in the list that it is from."""
        key = request.path_params["key"]
        detail = found(self._catalogue.picture, key)
        picture = detail.picture
        around = _alone(picture)
        if (at := position(request.query_params)) is not None:
            around = self._around(key, picture_query(request.query_params), at)
        return self._page(
            "picture.html",
            _address(request),
            marking=True,
            detail=detail,
            picture=picture,
            own_notes=[f"similarity {near.similarity:.3f}" for near in detail.own_neighbours],
            other_notes=[f"similarity {near.similarity:.3f}" for near in detail.other_neighbours],
            **around,
        )

    def _page(self, template: str, address: Address, **values: object) -> Response:
        facts = self._catalogue.facts()
        shell = {"facts": facts, "queues": self._catalogue.queue_names(), "counts_text": counts_text(facts.marked)}
        return HTMLResponse(render(template, here=address, version=self._version, **shell, **values))

    def _groups(self, queue: Queue, request: Request) -> Response:
        groups = self._catalogue.groups(group_query(queue.name, request.query_params))
        hrefs = {row.group: _hrefs(PictureQuery(queue=queue.name, group=row.group)) for row in groups.items}
        return self._page(
            "groups.html",
            _address(request),
            marking=True,
            title=queue.title,
            queue=queue.name,
            list=groups,
            hrefs=hrefs,
        )

    def _picture_list(self, title: str, query: PictureQuery, address: Address) -> Response:
        return self._page(
            "pictures.html",
            address,
            marking=True,
            title=title,
            list=found(self._catalogue.pictures, query),
            href=_hrefs(query),
            whole=list_parameters(query),
            rows=picture_choices(query, address, self._catalogue.facts()),
        )

    def _class_row(self, label: int) -> ClassRow:
        return found(self._catalogue.class_row, label)

    def _around(self, key: str, query: PictureQuery, at: int) -> dict[str, object]:
        """Return the links from a picture to its neighbours in a list, of which it may be no part any more."""
        page = found(self._catalogue.pictures, replace(query, page=at // query.page_size))
        first = page.page * query.page_size
        places = {picture.key: first + i for i, picture in enumerate(page.items)}
        following = places[key] + 1 if key in places else at
        before = self._item(query, page, places.get(key, at) - 1)
        after = self._item(query, page, following)
        href = _hrefs(replace(query, page=0))
        path, params = _list_address(query)
        return {
            "before": None if before is None else href(before, places.get(key, at) - 1),
            "after": None if after is None else href(after, following),
            "up": Address(path, tuple(params.items())).but(page=page.page or None),
            "place": f"{places[key] + 1:,} of {page.total:,}" if key in places else None,
        }

    def _item(self, query: PictureQuery, page: Page[PictureRow], place: int) -> PictureRow | None:
        """Return the picture at a place of a list, of which one page is known; None outside the list."""
        if not 0 <= place < page.total:
            return None
        number, offset = divmod(place, query.page_size)
        items = (
            page.items if number == page.page else found(self._catalogue.pictures, replace(query, page=number)).items
        )
        return items[offset] if offset < len(items) else None


def found(query: Callable[[Asked], Answer], asked: Asked) -> Answer:
    """Return the answer of a query; the page "not there" if the dataset has no such key, class or group."""
    try:
        return query(asked)
    except KeyError as error:
        raise HTTPException(404, "There is nothing of this name in the dataset.") from error


def counts_text(marked: MarkCounts) -> str:
    """Return how many pictures are marked, in words."""
    if not marked.excluded and not marked.relabelled:
        return "no marks"
    return f"{marked.excluded:,} excluded, {marked.relabelled:,} relabelled"


def _address(request: Request) -> Address:
    return Address(request.url.path, tuple(request.query_params.multi_items()))


def _hrefs(query: PictureQuery) -> Callable[[PictureRow, int], str]:
    """Return the address of each picture of a page, by the picture and its place on the page."""
    params = tuple(list_parameters(query).items())
    first = query.page * query.page_size
    return lambda picture, i: Address(f"/picture/{picture.key}", params).but(at=first + i)


def _list_address(query: PictureQuery) -> tuple[str, dict[str, str]]:
    """Return path and parameters of the page that shows a list."""
    params = list_parameters(query)
    if query.label is not None:
        return f"/class/{params.pop('label')}", params
    if query.queue is not None:
        return f"/queue/{params.pop('queue')}", params
    return "/pictures", params


def _alone(picture: PictureRow) -> dict[str, object]:
    return {"before": None, "after": None, "up": f"/class/{picture.label}", "place": None}


def _label(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 9):
        raise HTTPException(404, "There is no such class.")
    return int(text)
