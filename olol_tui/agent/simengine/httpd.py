"""HTTP/1.1 for one small server: requests in, whole or chunked replies out.

Callbacks only. A peer that closes is seen at once, also while a reply is on its way:
reading never stops, so the end of the stream arrives as an event.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from .heads import MAX_BODY_BYTES, BadHead, body_length, chunked, closes, parse_head
from .intake import BadBody, Intake

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_HEAD_BYTES = 64 << 10
STREAMED = "/api/blobs/"
"""Under this path bodies have any size and go to the handler piece by piece."""
_LINGER_S = 1.0
"""How long a peer may go on sending a body that was answered before its end."""

_REASONS = {
    100: "Continue",
    200: "OK",
    201: "Created",
    204: "No Content",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    413: "Request Entity Too Large",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    501: "Not Implemented",
    503: "Service Unavailable",
}
JSON = "application/json; charset=utf-8"
NDJSON = "application/x-ndjson"
SSE = "text/event-stream"
TEXT = "text/plain; charset=utf-8"


def dumps(value: Any) -> bytes:
    """Compact JSON in UTF-8."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode(
        "utf-8", "surrogatepass"
    )


class Exchange:
    """One request and its reply."""

    __slots__ = (
        "_connection",
        "_on_gone",
        "body",
        "body_sink",
        "finished",
        "gone",
        "headers",
        "method",
        "path",
        "streaming",
    )

    def __init__(
        self,
        connection: Connection,
        method: str,
        path: str,
        headers: dict[str, str],
        body: bytes,
    ) -> None:
        self._connection = connection
        self._on_gone: Callable[[], None] | None = None
        self.body_sink: Callable[[bytes, bool], None] | None = None
        """Of a streamed body: gets each piece, and whether it was the last."""
        self.method = method
        self.path = path
        self.headers = headers
        self.body = body
        self.gone = False
        """The peer closed before the reply was complete."""
        self.streaming = False
        self.finished = False

    def when_gone(self, callback: Callable[[], None]) -> None:
        """Calls back once if the peer closes before the reply is complete."""
        self._on_gone = callback

    def hold_body(self, seconds: float) -> None:
        """Takes no more of a streamed body for a while: the peer has to wait."""
        self._connection.hold_reading(seconds)

    def lost(self) -> None:
        """The connection is gone; called by it."""
        if not self.finished:
            self.gone = self.finished = True
            if self._on_gone is not None:
                self._on_gone()

    def reply_json(self, status: int, value: Any) -> None:
        self.reply(status, dumps(value), JSON)

    def reply(self, status: int, body: bytes, content_type: str, extra: str = "") -> None:
        """The whole reply. Nothing happens when the peer is gone."""
        if self.finished:
            return
        self.finished = True
        if self._connection.owes_body:  # what still comes of it is dropped
            extra += "Connection: close\r\n"
        head = (
            f"HTTP/1.1 {status} {_REASONS.get(status, '')}\r\n"
            f"Content-Type: {content_type}\r\nContent-Length: {len(body)}\r\n{extra}\r\n"
        )
        raw = head.encode()
        self._connection.write(raw if self.method == "HEAD" else raw + body)
        self._connection.exchange_done()

    def start(self, content_type: str) -> None:
        """Starts a chunked reply with status 200."""
        self.streaming = True
        self._connection.write(
            f"HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\n"
            "Transfer-Encoding: chunked\r\n\r\n".encode()
        )

    def chunk(self, data: bytes) -> None:
        if not self.finished:
            self._connection.write(b"%x\r\n%b\r\n" % (len(data), data))

    def end(self, data: bytes = b"") -> None:
        """The last chunk and the end of the reply."""
        if self.finished:
            return
        self.finished = True
        last = b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data) if data else b"0\r\n\r\n"
        self._connection.write(last)
        self._connection.exchange_done()

    def cut(self, partial_of: bytes = b"") -> None:
        """Breaks the connection in the middle of the reply, after what was sent so far.

        Args:
            partial_of: a whole reply of which half is sent first, when none was started.
        """
        if self.finished:
            return
        self.finished = True
        if partial_of:
            self._connection.write(
                f"HTTP/1.1 200 OK\r\nContent-Type: {JSON}\r\n"
                f"Content-Length: {len(partial_of)}\r\n\r\n".encode()
                + partial_of[: len(partial_of) // 2]
            )
        self._connection.close()

    def reset(self) -> None:
        """Resets the connection (RST), as a port does that nobody listens on."""
        self.finished = True
        self._connection.reset()


class Connection(asyncio.Protocol):
    """One client connection; serves its requests one after the other."""

    def __init__(self, handler: Callable[[Exchange], None]) -> None:
        self._handler = handler
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._exchange: Exchange | None = None
        self._intake: Intake | None = None
        self._lingers = False
        self._keep_alive = True
        self._parsing = False
        self._continued = False

    # -- asyncio.Protocol ------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        raw = transport.get_extra_info("socket")
        if raw is not None:  # asyncio does so too, but not on every version and loop
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:
        if self._lingers:
            return
        if self._intake is not None:
            self._take_in(data)
            return
        self._buffer += data
        if len(self._buffer) > MAX_HEAD_BYTES + MAX_BODY_BYTES:
            if self._exchange is None:
                self._refuse(413, "request body too large")
            else:  # pipelined behind a reply that is still on its way
                self.reset()
            return
        self._parse()

    def eof_received(self) -> None:
        # As Go's server: a peer that ends its side has left, nothing more is sent to it.
        if self._transport is not None:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._buffer.clear()
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.lost()

    # -- for Exchange ----------------------------------------------------------------

    @property
    def owes_body(self) -> bool:
        """The peer has not sent all of a streamed body yet."""
        return self._intake is not None and not self._intake.complete

    def write(self, data: bytes) -> None:
        # Replies are bounded by the length of a text, so a slow reader costs little.
        if self._transport is not None:
            self._transport.write(data)

    def exchange_done(self) -> None:
        self._exchange = None
        if self.owes_body:
            self._linger()
        elif not self._keep_alive:
            self.close()
        elif not self._parsing:
            self._parse()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def reset(self) -> None:
        if self._transport is not None:
            raw = self._transport.get_extra_info("socket")
            if raw is not None:
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._transport.abort()

    def hold_reading(self, seconds: float) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()
            asyncio.get_running_loop().call_later(seconds, self._read_on)

    def _read_on(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def _linger(self) -> None:
        """The reply is out, the body is not all in: closing now could destroy the reply."""
        self._lingers = True
        if self._transport is not None:
            self._transport.write_eof()
            asyncio.get_running_loop().call_later(_LINGER_S, self.reset)

    # -- parsing ---------------------------------------------------------------------

    def _take_in(self, data: bytes) -> None:
        intake, exchange = self._intake, self._exchange
        assert intake is not None
        if exchange is None or exchange.body_sink is None:
            return
        pieces: list[bytes] = []
        try:
            rest = intake.feed(data, pieces.append)
        except BadBody as bad:
            self._keep_alive = False
            exchange.reply(400, dumps({"error": str(bad)}), JSON)
            return
        sink = exchange.body_sink
        if intake.complete:
            self._intake = None
            self._buffer += rest
            sink(b"".join(pieces), True)
        else:
            for piece in pieces:
                sink(piece, False)

    def _refuse(self, status: int, message: str) -> None:
        self._keep_alive = False
        exchange = Exchange(self, "GET", "", {}, b"")
        self._exchange = exchange
        exchange.reply(status, dumps({"error": message}), JSON, "Connection: close\r\n")
        self._buffer.clear()

    def _parse(self) -> None:
        self._parsing = True
        try:
            while self._exchange is None and self._transport is not None:
                exchange = self._next()
                if exchange is None:
                    return
                self._exchange = exchange
                self._handler(exchange)
                if self._intake is not None:
                    begun = bytes(self._buffer)
                    self._buffer.clear()
                    self._take_in(begun)
        except BadHead as bad:
            self._refuse(bad.status, str(bad))
        finally:
            self._parsing = False

    def _next(self) -> Exchange | None:
        """The next whole request in the buffer, None when it is not all there yet."""
        if not self._keep_alive:
            return None
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > MAX_HEAD_BYTES:
                raise BadHead(431, "request header too large")
            return None
        method, target, version, headers = parse_head(bytes(self._buffer[:end]))
        body_at = end + 4
        if method == "POST" and target.startswith(STREAMED):
            self._keep_alive = not closes(version, headers)
            del self._buffer[:body_at]
            self._intake = Intake(body_length(headers))
            if headers.get("expect", "").lower() == "100-continue":
                self.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            return Exchange(self, method, unquote(target), headers, b"")
        length = body_length(headers)
        if length is None:
            body, after = chunked(self._buffer, body_at)
        else:
            if length > MAX_BODY_BYTES:
                raise BadHead(413, "request body too large")
            after = body_at + length
            body = bytes(self._buffer[body_at:after]) if len(self._buffer) >= after else None
        if body is None:
            if headers.get("expect", "").lower() == "100-continue" and not self._continued:
                self._continued = True
                self.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            return None
        self._continued = False
        del self._buffer[:after]
        self._keep_alive = not closes(version, headers)
        path = unquote(target.split("?", 1)[0])
        return Exchange(self, method, path, headers, body)
