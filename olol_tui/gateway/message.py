"""What the HTTP server and those who answer its requests share."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Protocol
from urllib.parse import parse_qs

import msgspec

if TYPE_CHECKING:
    from olol_tui.gateway.http import HttpConnection
    from olol_tui.gateway.keys import Key
    from olol_tui.gateway.spool import Spool

REASONS = {int(status): status.phrase for status in HTTPStatus} | {499: "Client Closed Request"}
_STATUS_LINES = {code: f"HTTP/1.1 {code} {phrase}\r\n".encode() for code, phrase in REASONS.items()}
JSON = b"application/json; charset=utf-8"
NDJSON = b"application/x-ndjson"
SSE = b"text/event-stream"
RETRY_AFTER = b"Retry-After: 1\r\n"


def retry_after(seconds: int) -> bytes:
    return b"Retry-After: %d\r\n" % seconds


@dataclass(frozen=True, slots=True)
class Limits:
    """What one client may send. Times in seconds, sizes in bytes."""

    body_bytes: int = 128 * 1024 * 1024
    header_bytes: int = 32 * 1024
    header_s: float = 10.0
    """To send a whole request head, once its first byte came."""
    body_s: float = 60.0
    """Between two pieces of a request body."""
    body_grace_s: float = 15.0
    """A request may take so long, and then a second more for each `body_floor_bytes` it sent."""
    body_floor_bytes: int = 1024
    idle_s: float = 120.0
    """A keep-alive connection without a request."""
    connections: int = 2000


class Handler(Protocol):
    """Whoever answers the active request of a connection."""

    def client_gone(self) -> None: ...

    def client_paused(self) -> None: ...

    def client_resumed(self) -> None: ...


class BodySink(Handler, Protocol):
    """A handler that takes the request's body while it arrives."""

    def body_data(self, data: bytes) -> None: ...

    def body_end(self) -> None: ...


class App(Protocol):
    @property
    def limits(self) -> Limits:
        """As they are now."""
        ...

    @property
    def spooled(self) -> Container[str]:
        """Paths whose bodies are JSON, and go to a file when they are large."""
        ...

    streamed: str
    """Under this path a POST is handled before its body is there: its handler must be a
    BodySink, and its size has no limit."""

    def refusal(
        self, connection: HttpConnection, request: Request
    ) -> tuple[int, str, bytes] | None:
        """Why a request is not let in (status, message, header lines), judged by its head:
        then its body is not read and the connection ends."""
        ...

    def handle(self, connection: HttpConnection, request: Request) -> None: ...

    def refuse(
        self, connection: HttpConnection, status: int, message: str, extra: bytes = b""
    ) -> None: ...

    def opened(self, connection: HttpConnection) -> bool: ...

    def closed(self, connection: HttpConnection) -> None: ...


class Request(msgspec.Struct, eq=False):
    """One parsed request; its body is complete unless it is streamed."""

    method: bytes
    path: str
    query: str
    headers: dict[bytes, bytes]
    body: bytes = b""
    http11: bool = True
    keep_alive: bool = True
    parts: list[bytes | bytearray] = []
    size: int = 0
    spool: Spool | None = None
    """Where a large body is; then `body` is its skeleton."""
    key: Key | None = None
    """The API key that came with it; None while none is asked for."""
    cors: bytes = b""
    """Header lines for whoever asks from a web page that may read the answer."""

    def param(self, name: str, default: str = "") -> str:
        """First value of a query parameter."""
        return parse_qs(self.query).get(name, [default])[0]


def reply_head(
    request: Request, status: int, content_type: bytes, extra: bytes, framing: bytes
) -> bytes:
    """The head of a reply. `content_type` is empty where there is no body to describe."""
    kind = b"Content-Type: %s\r\n" % content_type if content_type else b""
    line = _STATUS_LINES.get(status) or b"HTTP/1.1 %d Unknown\r\n" % status
    return b"%s%s%s%s%s\r\n" % (line, kind, request.cors, extra, framing)


def closing(request: Request) -> bytes:
    """The header line that says that the connection ends with this reply, if it does."""
    return b"" if request.keep_alive else b"Connection: close\r\n"
