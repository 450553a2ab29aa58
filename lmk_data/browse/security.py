"""Who may talk to the server of `lmk-shard browse`, and what browsers may do with its answers.

Every other program of this machine can reach a loopback port, and so can every page that is open in a browser: by
links, forms and pictures, and by a name of its own that resolves to 127.0.0.1 (DNS rebinding). `Guard` lets a request
pass if it has the cookie that the printed address gives, names this server as its host, and does not come from a page
of somebody else.
"""

import ipaddress
import secrets
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_POLICY = (
    "default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_READS = ("GET", "HEAD")
# Not a redirect: a browser that came from another site would follow it without the new cookie, which is SameSite.
_ENTERED = (
    '<!doctype html><html lang="en"><title>lmk</title><link rel="icon" href="/static/icon.svg">'
    '<meta http-equiv="refresh" content="0; url=/">'
)
_NO_COOKIE = "Open the address that lmk-shard browse printed in the terminal: this browser has not shown its token yet."


class Guard:
    """An ASGI application around another one, which only requests of this server's own pages reach.

    Args:
        app: the application to guard.
        token: the secret of the printed address, `/?token=...`.
        cookie: the name of the cookie that the token becomes. Ports of one host share their cookies.
        names: host names of this server besides `localhost` and IP addresses, which no rebinding can forge.
    """

    def __init__(self, app: ASGIApp, token: str, cookie: str, names: Iterable[str] = ()) -> None:
        self._app = app
        self._token = token
        self._once: set[str] = set()
        self._cookie = cookie
        self._names = {"localhost", *(name.lower() for name in names)}

    def token_for_one_entry(self) -> str:
        """Return a token that lets one browser in, once: the list of processes shows the address that a browser opens.

        The cookie is the same as that of the printed token.
        """
        token = new_token()
        self._once.add(token)
        return token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request: refuse it, let it in, or pass it on; every answer gets the headers."""
        if scope["type"] != "http":  # no page opens a WebSocket, and the server starts without a lifespan
            await send({"type": f"{scope['type']}.close"})
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(_HEADERS)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        await (self._answer(Request(scope)) or self._app)(scope, receive, send_guarded)

    def _answer(self, request: Request) -> Response | None:
        """Return what the guard itself answers, None for a request that may pass."""
        if not self._is_own_host(request.headers.get("host", "")):
            return _refuse("This server has another name: open the address that lmk-shard browse printed.")
        if request.method in _READS and request.url.path == "/" and "token" in request.query_params:
            return self._enter(request.query_params["token"], is_shown=request.method == "GET")
        if not _is_same(request.cookies.get(self._cookie, ""), self._token):
            return _refuse(_NO_COOKIE)
        if not _comes_from_here(request):
            return _refuse("Only the pages of this server may ask for this.")
        return None

    def _enter(self, token: str, *, is_shown: bool) -> Response:
        """Return the answer to the printed address: a cookie, and a page that goes on without the token."""
        once = {one for one in self._once if is_shown and _is_same(token, one)}
        if not once and not _is_same(token, self._token):
            return _refuse(_NO_COOKIE)
        self._once -= once
        response = HTMLResponse(_ENTERED)
        response.set_cookie(self._cookie, self._token, httponly=True, samesite="strict", path="/")
        return response

    def _is_own_host(self, host: str) -> bool:
        """Return whether a Host header names this server: by an IP address, or by a name that is known."""
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        if name in self._names:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


def new_token() -> str:
    """Return a new random token of 43 characters, 256 bits."""
    return secrets.token_urlsafe(32)


def _comes_from_here(request: Request) -> bool:
    """Return whether a request comes from a page of this server, or is a person who follows a link.

    A write has to name this server as its origin. A browser tells which site asks for a read, and whether the answer
    will be shown as a page or used by another one.
    """
    headers = request.headers
    site = headers.get("sec-fetch-site", "same-origin")
    if request.method in _READS:
        return site in ("same-origin", "none") or headers.get("sec-fetch-mode") == "navigate"
    try:
        origin = urlsplit(headers.get("origin", "")).netloc
    except ValueError:
        return False
    return site == "same-origin" and origin != "" and origin.lower() == headers["host"].lower()


def _is_same(given: str, secret: str) -> bool:
    return secrets.compare_digest(given.encode(), secret.encode())


def _refuse(reason: str) -> Response:
    return PlainTextResponse(f"{reason}\n", status_code=403)
