"""Serve the pages of `lmk-shard browse`: a socket of this machine, a browser that opens them, and an end by Ctrl-C."""

import ipaddress
import os
import socket
import sys
import webbrowser
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Thread
from urllib.parse import urlsplit

import uvicorn
from starlette.types import ASGIApp

from lmk_data.browse.app import make_app
from lmk_data.browse.catalogue import Catalogue
from lmk_data.browse.records import Facts
from lmk_data.browse.security import Guard, new_token
from lmk_data.dataset.reader import ShardedDataset
from lmk_data.errors import LmkError, UserError
from lmk_data.options import Browse
from lmk_data.system.storage import is_url
from lmk_data.system.terminal import notice
from lmk_data.views.marks import MarksFile

_VERSION_DIGITS = 16
_SECONDS_TO_END = 2  # for answers that are under way when Ctrl-C comes


def browse(options: Browse, started: Callable[[str, str], None]) -> Facts:
    """Serve the pages of a dataset until Ctrl-C; return what was open, with the marks that were made.

    `started` is told the address to open and the file of the marks before the first page is served.

    Raises UserError, DatasetError or StorageError for what cannot be opened, and UserError for an address at which
    this machine cannot listen.
    """
    marks = marks_path(options.marks, options.dataset)
    with (
        listen(options.host, options.port) as listening,
        ShardedDataset.open(options.dataset, base=options.base) as dataset,
    ):
        catalogue = Catalogue.open(dataset, run=options.run, quality=options.quality, marks=MarksFile(marks))
        token, port = new_token(), listening.getsockname()[1]
        app = make_app(catalogue, dataset.shards_content_sha256[:_VERSION_DIGITS])
        guarded = Guard(app, token, f"lmk-browse-{port}", host_names(options.host, listening))
        address = address_of(options.host, listening)
        if not is_loopback(listening):
            notice(
                f"--host {options.host}: other machines can reach these pages, and nothing is encrypted; whoever sees "
                "the address can look and mark"
            )
        if elsewhere := catalogue.facts().marked.elsewhere:
            notice(
                f"{marks}: {elsewhere:,} of its marks are for pictures that this dataset does not have; "
                "is it the right file?"
            )
        warming = Thread(target=_warm, args=(catalogue,))
        warming.start()
        started(f"{address}?token={token}", str(marks))
        if not options.no_open:
            open_browser(f"{address}?token={guarded.token_for_one_entry()}")
        serve(guarded, listening)
        warming.join()
        return catalogue.facts()


def _warm(catalogue: Catalogue) -> None:
    """Read what the first pages need. What cannot be read is said by the page that needs it."""
    with suppress(LmkError):
        catalogue.warm()


def marks_path(marks: str | None, dataset: str) -> Path:
    """Return the file of the marks: the one that was named, else NAME-marks.csv in the current folder.

    Raises UserError for a URL, which cannot be changed safely by several windows.
    """
    if marks is not None and is_url(marks):
        raise UserError(f"--marks {marks}: marks are kept in a file of this machine; copy it here first")
    if marks is not None:
        return Path(marks)
    name = urlsplit(dataset).path if is_url(dataset) else os.path.abspath(dataset)
    return Path(f"{name.rstrip('/').rsplit('/', 1)[-1] or 'dataset'}-marks.csv")


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


def open_browser(address: str) -> Thread | None:
    """Open an address in the browser of this desktop, in a thread that is returned; None if there is no screen."""
    has_screen = sys.platform == "darwin" or any(os.environ.get(n) for n in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"))
    if not has_screen:
        return None
    thread = Thread(target=webbrowser.open, args=(address,), daemon=True)
    thread.start()
    return thread


def serve(app: ASGIApp, listening: socket.socket) -> None:
    """Answer requests at a socket until Ctrl-C or SIGTERM, which end it after the answers that are under way."""
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        lifespan="off",
        ws="none",
        timeout_graceful_shutdown=_SECONDS_TO_END,
    )
    with suppress(KeyboardInterrupt):  # the usual end: every mark is on disk before the browser is told so
        uvicorn.Server(config).run(sockets=[listening])
