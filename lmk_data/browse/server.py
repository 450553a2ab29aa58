"""Serve the pages of `lmk-shard browse`: a socket of this machine, a browser that opens them, and an end by Ctrl-C."""

import ipaddress
import os
import socket
import sys
import webbrowser
from collections.abc import Callable
from threading import Thread

import uvicorn
from starlette.types import ASGIApp

from lmk_data.errors import UserError

_SECONDS_TO_END = 2  # for answers that are under way when Ctrl-C comes


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens at an address of this machine; port 0 takes a free one.

    Raises UserError if the address is not of this machine, or the port is taken.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise UserError(f"--host {host}: not a name or address of this machine; leave it out for 127.0.0.1") from error
    listening = socket.socket(family, kind, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen()
    except OSError as error:
        listening.close()
        reason = error.strerror or error
        raise UserError(
            f"cannot listen at {host} port {port}: {reason}; give another --port, or leave it out for a free one"
        ) from error
    return listening


def is_loopback(listening: socket.socket) -> bool:
    """Return whether only programs of this machine can reach a socket."""
    return ipaddress.ip_address(listening.getsockname()[0].split("%")[0]).is_loopback


def host_names(host: str, listening: socket.socket) -> list[str]:
    """Return the names under which people may open the pages, besides `localhost` and IP addresses."""
    return [host] if is_loopback(listening) else [host, socket.gethostname(), socket.getfqdn()]


def address_of(host: str, listening: socket.socket) -> str:
    """Return the address of the first page, `http://HOST:PORT/`, as another program of the network can open it."""
    bound, port = listening.getsockname()[:2]
    name = socket.gethostname() if ipaddress.ip_address(bound.split("%")[0]).is_unspecified else host
    return f"http://{f'[{name}]' if ':' in name else name}:{port}/"


def open_browser(address: str) -> None:
    """Open an address in the browser of this desktop, if there is one. It starts beside this program."""
    has_display = sys.platform == "darwin" or any(os.environ.get(n) for n in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"))
    if has_display:
        Thread(target=webbrowser.open, args=(address,), daemon=True).start()


def serve(app: ASGIApp, listening: socket.socket, started: Callable[[], None]) -> None:
    """Answer requests until Ctrl-C or SIGTERM, which end it after the answers that are under way.

    Args:
        app: the application.
        listening: the socket, which is closed at the end.
        started: called before the first answer; connections wait meanwhile.
    """
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        lifespan="off",
        ws="none",
        timeout_graceful_shutdown=_SECONDS_TO_END,
    )
    started()
    try:
        uvicorn.Server(config).run(sockets=[listening])
    except KeyboardInterrupt:
        pass  # the usual end: every mark is on disk before the browser is told so
    finally:
        listening.close()
