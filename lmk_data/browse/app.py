"""The application of `lmk-shard browse`: which address gives which page, picture or file, and what errors look like."""

from collections.abc import Callable
from functools import cache
from importlib import resources
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from lmk_data.browse.catalogue import Catalogue
from lmk_data.browse.marking import MAX_BODY_BYTES, Marking
from lmk_data.browse.pages import AddressError, render, search_text
from lmk_data.browse.screens import Screens, found
from lmk_data.errors import LmkError, UserError
from lmk_data.system.terminal import printable

_FILES = {"browse.css": "text/css", "browse.js": "text/javascript", "icon.svg": "image/svg+xml"}
_FOR_GOOD = "private, max-age=31536000, immutable"  # the address of a picture has the hash of its dataset
_COMPLETIONS = 12
Endpoint = Callable[[Request], Any]


def make_app(catalogue: Catalogue, version: str) -> Starlette:
    """Return the application over a catalogue; `Guard` has to stand before it.

    `version` tells datasets apart in the addresses of pictures, which browsers keep.
    """
    screens, marking = Screens(catalogue, version), Marking(catalogue)

    def jpeg(request: Request) -> Response:
        data = found(catalogue.jpeg, request.path_params["key"])
        return Response(data, media_type="image/jpeg", headers={"Cache-Control": _FOR_GOOD})

    def complete(request: Request) -> Response:
        rows = catalogue.complete(search_text(request.query_params), _COMPLETIONS)
        return JSONResponse(
            [
                {
                    "landmark_id": row.landmark_id,
                    "name": printable(row.name),
                    "note": f"{row.num_samples:,} picture{'s' * (row.num_samples != 1)}",
                }
                for row in rows
            ]
        )

    routes = [
        Route("/", screens.start),
        Route("/classes", screens.classes),
        Route("/class/{label}", screens.one_class),
        Route("/pictures", screens.pictures),
        Route("/queue/{name}", screens.queue),
        Route("/picture/{key}", screens.picture),
        Route("/jpeg/{key}", jpeg),
        Route("/complete", complete),
        Route("/static/{name}", _static),
        Route("/marks", _writing(marking.change), methods=["POST"]),
        Route("/look", _writing(marking.look), methods=["POST"]),
        Route("/undo", _writing(marking.undo), methods=["POST"]),
        Route("/near-duplicates", _writing(marking.find_near_duplicates), methods=["POST"]),
    ]
    handlers: dict[Any, Any] = {HTTPException: _failed, LmkError: _failed}
    app = Starlette(routes=routes, exception_handlers=handlers)
    app.router.redirect_slashes = False
    return app


def _writing(work: Callable[[bytes], dict[str, Any]]) -> Endpoint:
    """Return an endpoint that gives a bounded body of JSON to `work` and answers with what that returns."""

    async def endpoint(request: Request) -> Response:
        if request.headers.get("content-type") != "application/json":
            raise HTTPException(415, "This address takes JSON.")
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > MAX_BODY_BYTES:
                raise HTTPException(413, f"More than {MAX_BODY_BYTES >> 20} MB at once.")
        return JSONResponse(await run_in_threadpool(work, bytes(body)))

    return endpoint


def _static(request: Request) -> Response:
    name = request.path_params["name"]
    if name not in _FILES:
        raise HTTPException(404, "There is no such file.")
    return Response(_file(name), media_type=_FILES[name], headers={"Cache-Control": "no-cache"})


@cache
def _file(name: str) -> bytes:
    return (resources.files("lmk_data.browse") / "static" / name).read_bytes()


def _failed(request: Request, error: Exception) -> Response:
    """Return the answer to what went wrong, in one line that says what to do."""
    if isinstance(error, HTTPException):
        return _error(request, error.status_code, error.detail)
    code = 400 if isinstance(error, AddressError) else 409 if isinstance(error, UserError) else 500
    return _error(request, code, " ".join(str(error).split()))


def _error(request: Request, code: int, reason: str) -> Response:
    if request.method == "POST" or request.url.path.startswith(("/jpeg/", "/static/", "/complete")):
        return PlainTextResponse(printable(reason), status_code=code)
    headings = {404: "Not there", 500: "Damaged"}
    return HTMLResponse(render("error.html", heading=headings.get(code, "Not possible"), reason=reason), code)
