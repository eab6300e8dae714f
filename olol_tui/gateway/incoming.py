"""Request bodies while they arrive: gathered, put into a file when they are large, or, of any
size, handed on at the pace of who takes them."""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from typing import NoReturn, cast

from olol_tui.gateway.message import App, BodySink, Handler, Limits, Request
from olol_tui.gateway.spool import MAX_SKELETON_BYTES, SPOOL_BYTES, Spool

log = logging.getLogger("olol.gateway.http")

_MAX_PARTS = 256


class StreamedBody:
    """The part of an HTTP connection that deals with such bodies."""

    __slots__ = ("_arriving", "_began_s", "_held", "_held_s", "_reusable", "deadline")

    transport: asyncio.Transport | None
    active: Request | None
    handler: Handler | None
    deadline: float
    _app: App
    _limits: Limits
    _loop: asyncio.AbstractEventLoop
    _queue: deque[Request]
    _request: Request | None
    _arriving: Request | None
    _reusable: bool
    _held: bool
    _held_s: float
    _began_s: float

    def _refuse(
        self, status: int, message: str, extra: bytes = b"", request: Request | None = None
    ) -> None:
        raise NotImplementedError

    def _serve(self, request: Request) -> None:
        raise NotImplementedError

    def _expect_body(self, request: Request) -> None:
        if self.active is not None or self._queue:
            # Its body would have to wait in memory for the end of another reply.
            self._refuse(400, "a request with a streamed body cannot be pipelined")
            raise ValueError("pipelined")
        self._arriving = request
        # A reply before the end of the body is the last on this connection.
        self._reusable, request.keep_alive = request.keep_alive, False

    def _keep(self, request: Request, data: bytes) -> None:
        """A piece of a body that its handler gets as a whole."""
        parts = request.parts
        if not parts and request.size <= SPOOL_BYTES:
            # As a rule it is all in one piece.
            parts.append(data)
            return
        if request.spool is not None:
            self._spool(request, data)
        elif parts and isinstance(parts[-1], bytearray):
            parts[-1] += data
        elif len(parts) == _MAX_PARTS:
            # A client may send its body byte by byte: an object for each would be 50 times it.
            parts[:] = [bytearray(b"".join(parts)) + data]
        else:
            parts.append(data)
        if request.spool is None and request.size > SPOOL_BYTES and self._may_spool(request):
            request.parts = []
            self._spool(request, *(bytes(part) for part in parts))

    def _may_spool(self, request: Request) -> bool:
        """Whether it is plain JSON for an engine."""
        headers = request.headers
        return (
            request.path in self._app.spooled
            and b"content-encoding" not in headers
            and not headers.get(b"content-type", b"").startswith(b"multipart/")
        )

    def _spool(self, request: Request, *pieces: bytes) -> None:
        try:
            if request.spool is None:
                request.spool = Spool()
            for piece in pieces:
                request.spool.feed(piece)
        except OSError as error:
            self._no_room(error)
        if request.spool.is_bulky:
            limit = MAX_SKELETON_BYTES // 2**20
            self._refuse(413, f"more than {limit} MiB of the request are not in long strings")
            raise ValueError("too much to parse")

    def _complete(self, request: Request) -> None:
        """All of a body is here."""
        parts = request.parts
        if request.spool is None:
            request.body = _joined(parts)
            parts.clear()
            return
        try:
            request.body = request.spool.finish()
        except OSError as error:
            self._no_room(error)

    def _no_room(self, error: OSError) -> NoReturn:
        log.error("a large body cannot be kept", extra={"reason": str(error)})
        self._refuse(507, "no room to keep the request body until an engine takes it")
        raise ValueError("no room")

    def _pass_body(self, request: Request) -> None:
        """Hand on what came of a streamed body, and its end."""
        if self.active is None:
            self._serve(request)
        complete = self._request is not request
        parts, request.parts = request.parts, []
        if complete:
            self._arriving = None
            self.want_body()  # nothing of it, but the end of the connection
        if self.active is not request:
            return
        sink = cast(BodySink, self.handler)
        if parts:
            sink.body_data(_joined(parts))
        if complete and self.active is request:
            sink.body_end()
        elif not self._held:
            self._pause(0)

    def _pause(self, seconds: float) -> None:
        """After a piece: libuv would read megabytes before it looks at another connection."""
        if self.transport is not None:
            self.transport.pause_reading()
            self._loop.call_later(seconds, self._read_on)

    def _read_on(self) -> None:
        if not self._held and self.transport is not None:
            self.transport.resume_reading()

    @property
    def receiving(self) -> bool:
        """A streamed body is on its way: the deadline holds although a request is active."""
        return self._arriving is not None

    def hold_body(self) -> None:
        """Read no more of a streamed body until `want_body`: who takes it is slower."""
        if self._arriving is not None and self.transport is not None:
            self._held = True
            self._held_s = self._loop.time()
            self.transport.pause_reading()
            self.deadline = math.inf

    def want_body(self) -> None:
        if self._held and self.transport is not None:
            self._held = False
            self.transport.resume_reading()
            now = self._loop.time()
            self._began_s += now - self._held_s
            self.deadline = now + self._limits.body_s


def _joined(parts: list[bytes | bytearray]) -> bytes:
    return bytes(parts[0]) if len(parts) == 1 else b"".join(parts)
