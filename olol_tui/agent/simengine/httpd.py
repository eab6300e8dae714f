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

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_HEAD_BYTES = 64 << 10
MAX_BODY_BYTES = 64 << 20

_REASONS = {
    100: "Continue",
    200: "OK",
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


class BadHead(Exception):
    """The peer does not speak HTTP as we do; answered with `status`, then closed."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


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

    def write(self, data: bytes) -> None:
        # Replies are bounded by the length of a text, so a slow reader costs little.
        if self._transport is not None:
            self._transport.write(data)

    def exchange_done(self) -> None:
        self._exchange = None
        if not self._keep_alive:
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

    # -- parsing ---------------------------------------------------------------------

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
        method, target, version, headers = _parse_head(bytes(self._buffer[:end]))
        body_at = end + 4
        if "transfer-encoding" in headers:
            if headers["transfer-encoding"].lower() != "chunked" or "content-length" in headers:
                raise BadHead(501, "unsupported transfer encoding")
            body, after = _chunked(self._buffer, body_at)
        else:
            length = headers.get("content-length", "0")
            if not (length.isascii() and length.isdigit()):
                raise BadHead(400, "invalid Content-Length")
            if int(length) > MAX_BODY_BYTES:
                raise BadHead(413, "request body too large")
            after = body_at + int(length)
            body = bytes(self._buffer[body_at:after]) if len(self._buffer) >= after else None
        if body is None:
            if headers.get("expect", "").lower() == "100-continue" and not self._continued:
                self._continued = True
                self.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            return None
        self._continued = False
        del self._buffer[:after]
        connection = headers.get("connection", "").lower()
        self._keep_alive = connection != "close" and (
            version == "HTTP/1.1" or connection == "keep-alive"
        )
        path = unquote(target.split("?", 1)[0])
        return Exchange(self, method, path, headers, body)


def _parse_head(raw: bytes) -> tuple[str, str, str, dict[str, str]]:
    lines = raw.decode("latin-1").split("\r\n")
    parts = lines[0].split(" ")
    if len(parts) != 3 or not parts[1].startswith("/") or not parts[2].startswith("HTTP/1."):
        raise BadHead(400, "malformed request line")
    headers: dict[str, str] = {}
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        if not colon or not name or name != name.strip():
            raise BadHead(400, "malformed header")
        headers[name.lower()] = value.strip()
    return parts[0], parts[1], parts[2], headers


def _chunked(buffer: bytearray, at: int) -> tuple[bytes | None, int]:
    """The body and where it ends; None while chunks are missing."""
    body = bytearray()
    while True:
        line_end = buffer.find(b"\r\n", at)
        if line_end < 0:
            return None, 0
        size_text = bytes(buffer[at:line_end]).split(b";", 1)[0].strip()
        try:
            size = int(size_text, 16)
        except ValueError:
            raise BadHead(400, "malformed chunk") from None
        if size < 0 or len(body) + size > MAX_BODY_BYTES:
            raise BadHead(413, "request body too large")
        at = line_end + 2
        if size == 0:
            while True:  # trailers end with an empty line
                line_end = buffer.find(b"\r\n", at)
                if line_end < 0:
                    return None, 0
                if line_end == at:
                    return bytes(body), at + 2
                at = line_end + 2
        if len(buffer) < at + size + 2:
            return None, 0
        body += buffer[at : at + size]
        at += size + 2
