"""The server behind the page: loopback only, read only, and only what it was given.

Nothing in a request names a file: layers have numbers and the page's own files are a fixed list.
Requests for another host (a name that a foreign page made point here) are refused, as are those
without the random first part of the address, which other users of the machine do not know.
"""

import json
import logging
import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, urlsplit

from rsfuse.errors import InputError, RsfuseError
from rsfuse.view.layers import Scene, described
from rsfuse.view.tiles import open_scene

HOST = "127.0.0.1"
STATIC = {
    "": ("view.html", "text/html; charset=utf-8"),
    "view.js": ("view.js", "text/javascript; charset=utf-8"),
    "view.css": ("view.css", "text/css; charset=utf-8"),
    "ol.js": ("ol.js", "text/javascript; charset=utf-8"),
    "ol.css": ("ol.css", "text/css; charset=utf-8"),
}
# The map library starts workers of its own from a blob; everything else comes from this server.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; worker-src blob:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
MOST_ADDRESS = 2000  # characters of a request's path
FARTHEST = 1e9  # pixels that a request may speak of

log = logging.getLogger(__name__)


class _Refused(Exception):
    """A request that gets no answer but a status."""

    def __init__(self, status: HTTPStatus) -> None:
        super().__init__(status.phrase)
        self.status = status


class ViewServer:
    """Serves one scene until it is closed.

    Attributes:
        url: Where the page is.
    """

    def __init__(self, scene: Scene, port: int = 0) -> None:
        """Open the files and the port.

        Args:
            scene: What to show.
            port: The port; any free one for 0.

        Raises:
            RsfuseError: A file cannot be read.
            InputError: The port is taken.
        """
        self._pictures, self._shapes = open_scene(scene)
        told = dict(described(scene))
        told["notes"] = [*told["notes"], *self._pictures.notes]
        for number, raster in enumerate(told["rasters"]):
            raster["usable"] = self._pictures.usable(number)
        for vector, shapes in zip(told["vectors"], self._shapes, strict=True):
            vector.update(shapes.described())
        self._told = {**told, "lattice": self._pictures.described()}
        token = secrets.token_urlsafe(12)
        try:
            self._server = ThreadingHTTPServer((HOST, port), _handler(self, token))
        except OSError as error:
            raise InputError(
                f"port {port} cannot be used: {error.strerror}",
                "another program may listen there",
                "choose another with --port, or leave it out",
            ) from error
        self._server.daemon_threads = True
        self.port = int(self._server.server_address[1])
        self.url = f"http://{HOST}:{self.port}/{token}/"

    def serve(self) -> None:
        """Answer requests until `close` or an interrupt."""
        try:
            self._server.serve_forever(poll_interval=0.2)
        finally:
            self._end()

    def start(self) -> "ViewServer":
        """Answer requests in a thread; for use as `with ViewServer(scene).start() as server`."""
        Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def close(self) -> None:
        """Stop and close the files."""
        self._server.shutdown()
        self._end()

    def _end(self) -> None:
        self._server.server_close()
        self._pictures.close()

    def __enter__(self) -> "ViewServer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def answer(self, path: str, query: Mapping[str, float]) -> tuple[bytes, str]:
        """Content and type of what a path behind the token names."""
        if path in STATIC:
            name, kind = STATIC[path]
            return (resources.files("rsfuse") / "view" / "static" / name).read_bytes(), kind
        first, *rest = path.split("/")
        answers: dict[str, Callable[..., tuple[bytes, str]]] = {
            "scene": self._scene,
            "tile": self._tile,
            "features": self._features,
            "place": self._place,
        }
        if first not in answers:
            raise _Refused(HTTPStatus.NOT_FOUND)
        try:
            numbers = [int(part) for part in rest]
            return answers[first](*numbers, **query)
        except (TypeError, ValueError, OverflowError, IndexError) as error:
            raise _Refused(HTTPStatus.BAD_REQUEST) from error

    def _scene(self) -> tuple[bytes, str]:
        return _as_json(self._told)

    def _tile(self, layer: int, level: int, column: int, row: int) -> tuple[bytes, str]:
        pictures = self._pictures
        if not 0 <= layer < len(pictures.layers) or not pictures.usable(layer):
            raise IndexError(layer)
        if not pictures.finest <= level <= pictures.coarsest or max(abs(column), abs(row)) > 1e7:
            raise IndexError(level)
        return pictures.tile(layer, level, column, row), "image/png"

    def _features(
        self, layer: int, *, x0: float, y0: float, x1: float, y1: float, least: float = 0.0
    ) -> tuple[bytes, str]:
        if not 0 <= layer < len(self._shapes):
            raise IndexError(layer)
        return _as_json(self._shapes[layer].within((x0, y0, x1, y1), least))

    def _place(self, *, x: float, y: float) -> tuple[bytes, str]:
        return _as_json(self._pictures.place(x, y))


def _as_json(content: Any) -> tuple[bytes, str]:
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    return text.encode("utf-8"), "application/json"


def _handler(server: ViewServer, token: str) -> type[BaseHTTPRequestHandler]:
    """What answers the requests of one server."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        server_version = "rsfuse"
        sys_version = ""
        timeout = 60

        def do_GET(self) -> None:
            self._respond(body=True)

        def do_HEAD(self) -> None:
            self._respond(body=False)

        def _respond(self, *, body: bool) -> None:
            try:
                content, kind = self._content()
                status = HTTPStatus.OK
            except _Refused as refused:
                status, content, kind = refused.status, b"", "text/plain"
            except RsfuseError as error:
                log.warning("%s: %s", self.path, error)
                status, content, kind = HTTPStatus.INTERNAL_SERVER_ERROR, b"", "text/plain"
            with suppress(ConnectionError):  # a page that has moved on
                self._send(status, content if body else b"", len(content), kind)

        def _send(self, status: HTTPStatus, content: bytes, length: int, kind: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(length))
            self.send_header(
                "Cache-Control", "private, max-age=600" if "image" in kind else "no-store"
            )
            self.send_header("Content-Security-Policy", POLICY)
            self.send_header("X-Content-Type-Options", "nosniff")
            self.send_header("Referrer-Policy", "no-referrer")
            self.send_header("Cross-Origin-Resource-Policy", "same-origin")
            self.end_headers()
            self.wfile.write(content)

        def _content(self) -> tuple[bytes, str]:
            if self.headers.get("Host") not in _names(server.port):
                raise _Refused(HTTPStatus.MISDIRECTED_REQUEST)
            if len(self.path) > MOST_ADDRESS:
                raise _Refused(HTTPStatus.REQUEST_URI_TOO_LONG)
            parts = urlsplit(self.path)
            start = f"/{token}/"
            if not secrets.compare_digest(parts.path[: len(start)].encode(), start.encode()):
                raise _Refused(HTTPStatus.NOT_FOUND)
            try:
                query = {key: float(values[-1]) for key, values in parse_qs(parts.query).items()}
            except ValueError as error:
                raise _Refused(HTTPStatus.BAD_REQUEST) from error
            if not all(abs(value) <= FARTHEST for value in query.values()):
                raise _Refused(HTTPStatus.BAD_REQUEST)
            return server.answer(parts.path[len(start) :], query)

        def log_message(self, format: str, *args: Any) -> None:
            log.debug(format, *args)

    return Handler


def _names(port: int) -> tuple[str, ...]:
    """What a browser on this machine, or at the other end of a tunnel, calls this server."""
    return f"{HOST}:{port}", f"localhost:{port}"
