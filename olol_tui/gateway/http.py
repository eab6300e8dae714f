"""One client connection: HTTP/1.1 in, replies out.

An asyncio.Protocol on httptools: no task, no stream object and no copy per request, which is
what keeps a relayed request near the cost of nginx (see tests/bench/gateway.py). The strict
parser refuses what smuggles (both length headers, duplicate lengths, bare line ends).
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import cast
from urllib.parse import unquote

import httptools

from olol_tui.gateway.incoming import StreamedBody
from olol_tui.gateway.message import (
    JSON,
    NDJSON,
    SSE,
    App,
    Handler,
    Limits,
    Request,
    closing,
    reply_head,
)

__all__ = ["JSON", "NDJSON", "SSE", "Handler", "HttpConnection", "Limits", "Request"]

log = logging.getLogger("olol.gateway.http")

_MAX_PIPELINED = 16
_ONCE = frozenset(
    (b"host", b"origin", b"authorization", b"x-api-key", b"content-type", b"content-encoding")
)
"""Headers of which two would mean something else to whoever takes the other one."""
_LINGER_S = 5.0
_DROP_S = 0.005
"""Between two pieces of a body that is only read to be dropped."""


class HttpConnection(StreamedBody, asyncio.Protocol):
    """Parses requests in order, hands one at a time to the app, frames its reply."""

    __slots__ = (
        "_app", "_chunked", "_head", "_header_bytes", "_headers", "_limits", "_loop", "_parser",
        "_queue", "_refused", "_request", "_streamed", "_url", "active", "handler", "paused",
        "peer", "started", "transport",
    )  # fmt: skip

    def __init__(self, app: App, loop: asyncio.AbstractEventLoop) -> None:
        self._app = app
        self._limits = app.limits
        """As they were when the request that is being read began."""
        self._loop = loop
        self._parser = httptools.HttpRequestParser(self)
        self._queue: deque[Request] = deque()
        self._request: Request | None = None
        self._url = b""
        self._headers: dict[bytes, bytes] = {}
        self._header_bytes = 0
        self._head = b""
        self._chunked = False
        self._refused = False
        self._streamed = app.streamed
        self._arriving: Request | None = None
        """The request whose streamed body is not all here yet."""
        self._reusable = False
        """Whether the connection may go on once that body is here."""
        self._held = False
        self._held_s = 0.0
        self._began_s = 0.0
        """When the request that is being read began; later by what we made it wait."""
        self.transport: asyncio.Transport | None = None
        self.peer = ""
        self.active: Request | None = None
        self.handler: Handler | None = None
        self.started = False
        """True once a byte of the active reply was handed to the transport."""
        self.paused = False
        self.deadline = loop.time() + self._limits.idle_s
        """Loop time after which the sweeper closes a connection that is not being served."""

    # -- transport callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports have the methods but not the base class.
        self.transport = cast(asyncio.Transport, transport)
        peer = transport.get_extra_info("peername")
        self.peer = peer[0] if isinstance(peer, tuple) and peer else "local"
        if not self._app.opened(self):
            self._refuse(503, "too many connections")

    def data_received(self, data: bytes) -> None:
        if self._refused:
            self._pause(_DROP_S)
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._decline_upgrade()
        except httptools.HttpParserError as error:
            if not self._refused:
                self._refuse(400, f"malformed HTTP request: {error}")
            return
        if (arriving := self._request) is not None and arriving.size:
            self._extend(arriving)
            if arriving.spool is not None:
                self._pause(0)
        # Not from inside the parser: it would hide what a handler raises.
        if self._arriving is not None:
            self._pass_body(self._arriving)
        elif self._queue and self.active is None:
            self._serve(self._queue.popleft())

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self._arriving = None
        self._queue.clear()
        handler, self.handler, self.active = self.handler, None, None
        self._app.closed(self)
        if handler is not None:
            handler.client_gone()
        # They hold each other: ten thousand that leave at once would wait for the collector.
        del self._parser

    def pause_writing(self) -> None:
        self.paused = True
        if self.handler is not None:
            self.handler.client_paused()

    def resume_writing(self) -> None:
        self.paused = False
        if self.handler is not None:
            self.handler.client_resumed()

    # -- parser callbacks

    def on_message_begin(self) -> None:
        self._url = b""
        self._headers = {}
        self._header_bytes = 0
        self._limits = limits = self._app.limits
        self._began_s = now_s = self._loop.time()
        self.deadline = now_s + limits.header_s

    def on_url(self, url: bytes) -> None:
        self._url += url
        self._header_bytes += len(url)
        if self._header_bytes > self._limits.header_bytes:
            self._refuse_header()

    def on_header(self, name: bytes, value: bytes) -> None:
        size = self._header_bytes = self._header_bytes + len(name) + len(value)
        if size > self._limits.header_bytes:
            self._refuse_header()
        if self._request is not None:
            return  # A trailer: who asks, and for what, was judged by the head.
        name = name.lower()
        headers = self._headers
        if name in headers and name in _ONCE:
            self._refuse(400, f"more than one {name.decode()} header")
            raise ValueError("ambiguous")
        headers[name] = value

    def _refuse_header(self) -> None:
        self._refuse(431, "request header fields too large")
        raise ValueError("header too large")

    def on_headers_complete(self) -> None:
        parser, headers = self._parser, self._headers
        raw_path, _, query = self._url.decode("latin-1").partition("?")
        if not raw_path.startswith("/"):
            self._refuse(400, "the request target must be a path")
            raise ValueError("bad target")
        keep_alive = parser.should_keep_alive()
        # To be told the version takes longer than all the rest; whose connection stays open
        # although nobody asked for it speaks 1.1.
        http11 = (
            keep_alive and b"connection" not in headers and b"proxy-connection" not in headers
        ) or parser.get_http_version() == "1.1"
        request = Request(
            parser.get_method(),
            unquote(raw_path) if "%" in raw_path else raw_path,
            query,
            headers,
            http11=http11,
            keep_alive=keep_alive,
        )
        if http11 and b"host" not in headers:
            self._refuse(400, "missing required Host header")
            raise ValueError("no host")
        coding = headers.get(b"transfer-encoding")
        if coding is not None and coding.lower() != b"chunked":
            self._refuse(501, "unsupported transfer encoding")
            raise ValueError("transfer encoding")
        refusal = self._app.refusal(self, request)
        if refusal is not None:
            self._refuse(*refusal, request=request)
            raise ValueError("not let in")
        if request.path.startswith(self._streamed) and request.method == b"POST":
            self._expect_body(request)
        else:
            length = headers.get(b"content-length")
            if length is not None and int(length) > self._limits.body_bytes:
                self._refuse_body()
        expect = headers.get(b"expect")
        if expect is not None and expect.lower() == b"100-continue" and self.active is None:
            self._write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._request = request

    def on_body(self, data: bytes) -> None:
        request = self._request
        if request is None:
            return
        size = request.size = request.size + len(data)
        if request is self._arriving:
            request.parts.append(data)
            return
        if size > self._limits.body_bytes:
            self._refuse_body()
        self._keep(request, data)

    def _extend(self, request: Request) -> None:
        """A piece of a body came and more is missing: neither long pauses nor a drip."""
        limits = self._limits
        allowed_s = limits.body_grace_s + request.size / limits.body_floor_bytes
        self.deadline = min(self._loop.time() + limits.body_s, self._began_s + allowed_s)

    def _decline_upgrade(self) -> None:
        """Whoever offers another protocol is answered in this one, and then no more: what follows
        may be either."""
        self._refused = True
        if self._queue:
            self._queue[-1].keep_alive = False
        else:
            self._refuse(400, "upgrade is not supported")

    def _refuse_body(self) -> None:
        limit = self._limits.body_bytes
        self._refuse(413, f"request body is larger than the limit of {limit} bytes")
        raise ValueError("body too large")

    def on_message_complete(self) -> None:
        request, self._request = self._request, None
        if request is None or self._refused:
            return
        if request is self._arriving:
            request.keep_alive = self._reusable
            return
        self._complete(request)
        self._queue.append(request)
        if len(self._queue) > _MAX_PIPELINED:
            self.abort()

    def _serve(self, request: Request) -> None:
        self.active = request
        self.started = False
        self._head = b""
        try:
            self._app.handle(self, request)
        except Exception:
            # A defect of ours must cost this request only, and be seen.
            log.exception("request failed", extra={"path": request.path})
            self.handler = None
            if self.started:
                self.abort()
            else:
                self._app.refuse(self, 500, "internal error")

    # -- replies

    def reply(
        self, status: int, body: bytes, content_type: bytes = JSON, extra: bytes = b""
    ) -> None:
        """The whole reply at once. `extra`: more header lines, each ending in CRLF."""
        request = self.active
        if request is None:
            return
        framing = b"Content-Length: %d\r\n%s" % (len(body), closing(request))
        head = reply_head(request, status, content_type, extra, framing)
        self.started = True
        self._write(head if request.method == b"HEAD" else head + body)
        self._done(request.keep_alive)

    def reply_empty(self, extra: bytes = b"") -> None:
        """204: no body, and no header that describes one."""
        request = self.active
        if request is None:
            return
        self.started = True
        self._write(reply_head(request, 204, b"", extra, closing(request)))
        self._done(request.keep_alive)

    def begin(self, status: int, content_type: bytes, extra: bytes = b"") -> None:
        """Start a reply of unknown length; the head leaves with the first piece of the body."""
        request = self.active
        if request is None:
            return
        self._chunked = request.http11
        framing = b"Transfer-Encoding: chunked\r\n" if self._chunked else b""
        if not (self._chunked and request.keep_alive):
            framing += b"Connection: close\r\n"
        self._head = reply_head(request, status, content_type, extra, framing)

    def send(self, data: bytes, *, hold: bool = False) -> None:
        """One piece of the body of a reply that was begun.

        Args:
            hold: more follows at once: let it leave together with that.
        """
        if not data:
            return
        self.started = True
        head = self._head
        if self._chunked:
            data = b"%s%x\r\n%s\r\n" % (head, len(data), data)
        elif head:
            data = head + data
        if hold:
            self._head = data
        else:
            self._head = b""
            if self.transport is not None:
                self.transport.write(data)

    def end(self) -> None:
        """The reply is complete."""
        request = self.active
        if request is None:
            return
        head, self._head = self._head, b""
        if self._chunked:
            if self.transport is not None:
                self.transport.write(head + b"0\r\n\r\n")
            self._done(request.keep_alive)
        else:
            self._write(head)
            self._done(False)

    def break_off(self, frame: bytes) -> None:
        """End a begun reply as broken: a last frame, then no proper end of the body.

        Args:
            frame: empty where the engine sent one itself.
        """
        if frame:
            self.send(frame)
        elif self._head:
            self._write(self._head)
        self.handler = None
        self.active = None
        if self.transport is not None:
            self.transport.close()

    def abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    def close_soon(self) -> None:
        """Close when idle; the active request may finish first."""
        if self.active is not None:
            self.active.keep_alive = False
        elif self.transport is not None:
            self.transport.close()

    def _done(self, keep_alive: bool) -> None:
        self.active = None
        self.handler = None
        if not keep_alive:
            self._hang_up()
            return
        self.deadline = self._loop.time() + self._limits.idle_s
        if self._queue:
            # Through the loop: a client that pipelines must not recurse us into the ground.
            self._loop.call_soon(self._serve_next)

    def _hang_up(self) -> None:
        transport = self.transport
        if transport is None:
            return
        if (self._refused or self._arriving is not None) and transport.can_write_eof():
            # The client may still be sending: closing now would reset the connection and take
            # our answer with it. What it sends is dropped until it leaves or the time is up.
            self.want_body()
            self._refused = True
            self._arriving = None
            transport.write_eof()
            self.deadline = self._loop.time() + _LINGER_S
        else:
            transport.close()

    def _serve_next(self) -> None:
        if self.active is None and self._queue and self.transport is not None:
            self._serve(self._queue.popleft())

    def _refuse(
        self, status: int, message: str, extra: bytes = b"", request: Request | None = None
    ) -> None:
        """Answer a request that could not be read or is not let in, and close."""
        self._refused = True
        if self.active is None:
            self.active = request or Request(b"GET", "", "", {})
            self.active.keep_alive = False
            self._app.refuse(self, status, message, extra)
        else:
            self.close_soon()

    def _write(self, data: bytes) -> None:
        if self.transport is not None:
            self.transport.write(data)


def serve_factory(app: App, loop: asyncio.AbstractEventLoop) -> Callable[[], HttpConnection]:
    return lambda: HttpConnection(app, loop)
