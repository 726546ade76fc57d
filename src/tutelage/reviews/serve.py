"""The review page served to this machine alone, so that verdicts are saved as they are given.

What guards it: the server listens on 127.0.0.1; the address holds a secret, compared in constant time; the Host header
must be that address (a foreign site that had its name resolve here is refused), and so must Origin where it is sent.
There are two addresses, the page and its verdicts, and no path is ever made from a request: what can be read is the
page, what can be written is one file.
"""

from __future__ import annotations

import json
import secrets
import sys
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tutelage.data.pseudo.verdicts import Verdicts, parse_verdicts
from tutelage.types import InputError

ADDRESS = "127.0.0.1"
LARGEST_BODY = 64 * 2**20
"""Bytes of verdicts that are taken; ten thousand reviewed images are some 20 MB."""

SECONDS = 30
"""After which a silent connection is closed."""

HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "frame-ancestors 'none'",  # the rest stands in the page
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}


class ReviewServer(ThreadingHTTPServer):
    """Serves one page and takes its verdicts."""

    daemon_threads = True

    def __init__(self, page: Callable[[], str], save: Callable[[Verdicts, str], str], port: int = 0) -> None:
        """Listens, but answers only once `serve_forever` runs.

        Args:
            page: makes the page as it is now.
            save: keeps verdicts, given what the page has seen of those that are there (its header If-Match, so that
                two pages do not undo each other); returns what it has seen now. `InputError` where they do not fit.
            port: 0 takes a free one.

        Raises:
            InputError: the port is taken or not allowed.
        """
        self.page = page
        self.save = save
        self.token = secrets.token_urlsafe(24)
        self.turn = threading.Lock()  # one request reads or writes verdicts at a time
        try:
            super().__init__((ADDRESS, port), _Handler)
        except (OSError, OverflowError) as error:
            raise InputError(
                f"--port {port}: cannot be listened on ({error}). Choose another, or leave it out."
            ) from None

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that went away is no error; others are printed."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    @property
    def host(self) -> str:
        """What the Host header must say."""
        return f"{ADDRESS}:{self.server_address[1]}"

    @property
    def url(self) -> str:
        """Address of the page, the secret within."""
        return f"http://{self.host}/{self.token}/"


class RefusedError(Exception):
    """A request that is not answered."""

    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class _Handler(BaseHTTPRequestHandler):
    """Answers GET of the page and POST of verdicts; the base class refuses other methods."""

    server: ReviewServer
    timeout = SECONDS
    server_version = "tutelage"
    sys_version = ""

    def do_GET(self) -> None:
        """The page."""
        self._answer(self._page, "")

    def do_POST(self) -> None:
        """Takes verdicts."""
        self._answer(self._take, "verdicts")

    def _answer(self, act: Callable[[], tuple[str, str]], name: str) -> None:
        status = HTTPStatus.OK
        try:
            self._require_own_page(name)
            kind, text = act()
        except RefusedError as refused:
            status, kind, text = refused.status, "text/plain", str(refused)
        except InputError as error:
            status, kind, text = HTTPStatus.BAD_REQUEST, "text/plain", str(error)
        body = text.encode()
        self.send_response(status)
        for header, value in {
            **HEADERS,
            "Content-Type": f"{kind}; charset=utf-8",
            "Content-Length": str(len(body)),
        }.items():
            self.send_header(header, value)
        self.end_headers()
        self.wfile.write(body)

    def _require_own_page(self, name: str) -> None:
        """Refuses requests that do not come from our page, or are for another address than `name` beside it."""
        if self.headers.get_all("Host") != [self.server.host]:
            raise RefusedError(HTTPStatus.FORBIDDEN, "another host is meant")
        if any(origin != f"http://{self.server.host}" for origin in self.headers.get_all("Origin", [])):
            raise RefusedError(HTTPStatus.FORBIDDEN, "another site asks")
        if not secrets.compare_digest(self.path.encode(), f"/{self.server.token}/{name}".encode()):
            raise RefusedError(HTTPStatus.NOT_FOUND, "nothing is here")

    def _page(self) -> tuple[str, str]:
        with self.server.turn:
            return "text/html", self.server.page()

    def _take(self) -> tuple[str, str]:
        try:
            plain: Any = json.loads(self._body())
        except (ValueError, RecursionError):
            raise RefusedError(HTTPStatus.BAD_REQUEST, "the verdicts are not valid JSON") from None
        with self.server.turn:
            seen = self.server.save(parse_verdicts(plain, "the page's verdicts"), self.headers.get("If-Match", ""))
        return "text/plain", seen

    def _body(self) -> bytes:
        """What was sent.

        Raises:
            RefusedError: no JSON, without a length, or too much.
        """
        if self.headers.get_content_type() != "application/json":
            raise RefusedError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "verdicts are sent as application/json")
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()):
            raise RefusedError(HTTPStatus.LENGTH_REQUIRED, "the length of the verdicts is needed")
        if len(length) > 12 or int(length) > LARGEST_BODY:
            raise RefusedError(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"at most {LARGEST_BODY} bytes of verdicts are taken"
            )
        return self.rfile.read(int(length))

    def log_message(self, format: str, *arguments: Any) -> None:
        """Says nothing: the address, and with it the secret, would stand in the terminal at each request."""
