"""A small web page that shows what a camera sees: the newest image with its people, as Motion JPEG.

`/` is the page, `/stream` the images one after the other, `/image.jpg` the newest one, `/people.json` its people.
"""

from __future__ import annotations

import ipaddress
import json
import socket
import sys
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any

from pipeline.command import UserError

_PAGE = Path(__file__).with_suffix(".html")
_BOUNDARY = "image"
_SECONDS_OF_SILENCE = 10.0  # after which a stream without news looks whether its reader is still there


class LivePage:
    """The page; use it in a `with` statement.

    Args:
      host: address to listen on. A loopback address (127.0.0.1) is for this machine alone.
      port: 0: any that is free.

    Attributes:
      url: where it is.

    Raises:
      UserError: the port is taken, or the address is not this machine's.
    """

    def __init__(self, host: str, port: int) -> None:
        self._news = threading.Condition()
        self._jpeg, self._people, self._number, self._ended = b"", b"{}", 0, False
        page = self

        class Handler(_Handler):
            live = page

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

            def handle_error(self, request: Any, client_address: Any) -> None:
                if not isinstance(sys.exception(), ConnectionError):  # a reader that went away is no fault
                    super().handle_error(request, client_address)

        try:
            self._server = Server((host, port), Handler)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise UserError(f"--host={host} --port={port}: cannot listen there ({reason}); give another port") from None
        self.only_this_machine = _is_loopback(self._server.server_address[0])
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self._server.server_address[1]}/"
        self._thread = threading.Thread(target=self._server.serve_forever, name="live page", daemon=True)

    def __enter__(self) -> LivePage:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        with self._news:
            self._ended = True
            self._news.notify_all()
        self._server.shutdown()
        self._server.server_close()

    def show(self, jpeg: bytes, people: dict[str, Any]) -> None:
        """Replaces the image, and what `/people.json` says of it."""
        with self._news:
            self._jpeg, self._people, self._number = jpeg, json.dumps(people).encode(), self._number + 1
            self._news.notify_all()

    def newest(self, after: int = 0, seconds: float = _SECONDS_OF_SILENCE) -> tuple[int, bytes, bytes] | None:
        """The number, from 1, of the newest image, the image and its people, once the number is above `after`.

        None: nothing came within `seconds`, or nothing more will come.
        """
        with self._news:
            self._news.wait_for(lambda: self._ended or self._number > after, seconds)
            return (self._number, self._jpeg, self._people) if self._number > after and not self._ended else None


def _is_loopback(address: Any) -> bool:
    return ipaddress.ip_address(str(address)).is_loopback


class _Handler(BaseHTTPRequestHandler):
    live: LivePage

    def do_GET(self) -> None:
        # A page of somebody else's whose name leads here would carry that name: it must not see the camera.
        name = (self.headers.get("Host") or "").rpartition(":")[0] or self.headers.get("Host") or ""
        if self.live.only_this_machine and name not in ("localhost", "[::1]") and not name.startswith("127."):
            self.send_error(HTTPStatus.FORBIDDEN, "this page is for its own machine")
            return
        path = self.path.partition("?")[0]
        if path == "/":
            self._send("text/html; charset=utf-8", _PAGE.read_bytes())
        elif path == "/stream":
            self._stream()
        elif path in ("/image.jpg", "/people.json"):
            newest = self.live.newest()
            if newest is None:
                self.send_error(HTTPStatus.SERVICE_UNAVAILABLE, "no image has come")
            else:
                kind, content = ("image/jpeg", newest[1]) if path == "/image.jpg" else ("application/json", newest[2])
                self._send(kind, content)
        else:
            self.send_error(HTTPStatus.NOT_FOUND)

    def _send(self, kind: str, content: bytes) -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(content)

    def _stream(self) -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", f"multipart/x-mixed-replace; boundary={_BOUNDARY}")
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        number = 0
        while (newest := self.live.newest(number)) is not None:
            number, jpeg, _ = newest
            self.wfile.write(f"--{_BOUNDARY}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n".encode())
            self.wfile.write(jpeg + b"\r\n")

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a line for each request would hide what the command says."""
