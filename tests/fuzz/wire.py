"""A connection without a network or an event loop: bytes in, what became of them out."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, cast

from olol_tui.gateway.http import HttpConnection
from olol_tui.gateway.message import Limits, Request
from olol_tui.gateway.routes import BLOBS

LIMITS = Limits(body_bytes=4096, header_bytes=2048)


class Clockwork:
    """What the code under test uses of an event loop; timers never fire."""

    def __init__(self) -> None:
        self._soon: deque[tuple[Callable[..., Any], tuple[Any, ...]]] = deque()

    def time(self) -> float:
        return 0.0

    def call_soon(self, callback: Callable[..., Any], *args: Any) -> None:
        self._soon.append((callback, args))

    def call_later(self, delay_s: float, callback: Callable[..., Any], *args: Any) -> None:
        pass

    def run(self) -> None:
        while self._soon:
            callback, args = self._soon.popleft()
            callback(*args)


class Wire:
    """A transport that remembers."""

    def __init__(self) -> None:
        self.written = b""
        self.is_closed = False
        self.is_aborted = False

    def get_extra_info(self, name: str) -> Any:
        return ("127.0.0.1", 1) if name == "peername" else None

    def write(self, data: bytes) -> None:
        if not self.is_closed:
            self.written += data

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        pass

    def close(self) -> None:
        self.is_closed = True

    def abort(self) -> None:
        self.is_closed = self.is_aborted = True

    def is_closing(self) -> bool:
        return self.is_closed

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


class Sink:
    """Takes a streamed body."""

    def __init__(self, connection: HttpConnection, request: Request) -> None:
        self._connection = connection
        self._request = request

    def body_data(self, data: bytes) -> None:
        self._request.body += data

    def body_end(self) -> None:
        self._connection.reply(200, b"")

    def client_gone(self) -> None:
        pass

    def client_paused(self) -> None:
        pass

    def client_resumed(self) -> None:
        pass


class Listener:
    """Implements http.App: everybody is welcome, and every request is answered at once."""

    streamed = BLOBS
    spooled = frozenset[str]()
    limits = LIMITS

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.refused: list[tuple[int, str]] = []

    def opened(self, connection: HttpConnection) -> bool:
        return True

    def closed(self, connection: HttpConnection) -> None:
        pass

    def refusal(self, connection: HttpConnection, request: Request) -> None:
        return None

    def refuse(
        self, connection: HttpConnection, status: int, message: str, extra: bytes = b""
    ) -> None:
        self.refused.append((status, message))
        connection.reply(status, b"")

    def handle(self, connection: HttpConnection, request: Request) -> None:
        self.requests.append(request)
        if request.path.startswith(BLOBS) and request.method == b"POST":
            connection.handler = Sink(connection, request)
        else:
            connection.reply(200, b"")


def listen(pieces: list[bytes]) -> tuple[Listener, Wire]:
    """What a server makes of these pieces of one connection."""
    clockwork, listener, wire = Clockwork(), Listener(), Wire()
    connection = HttpConnection(listener, cast(asyncio.AbstractEventLoop, clockwork))
    connection.connection_made(cast(asyncio.BaseTransport, wire))
    for piece in pieces:
        if wire.is_closed:
            break
        connection.data_received(piece)
        clockwork.run()
    connection.connection_lost(None)
    return listener, wire


def cut(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)] or [b""]
