"""Connections to engines: pooled, keep-alive, callbacks instead of streams.

A lost link is always an error, never the end of a reply. Closing a call closes its socket,
which is the one way to cancel work in an engine.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import ssl
from collections.abc import Awaitable, Callable
from typing import Protocol, cast

import httptools

from olol_tui.routing.roster import ROAD_MARK

log = logging.getLogger("olol.gateway.upstream")

_IDLE_PER_ENGINE = 64
MAX_HEAD_BYTES = 64 * 1024


class Receiver(Protocol):
    """Who gets the reply. After `up_end` or `up_lost` nothing more comes."""

    def up_head(self, status: int, content_type: bytes) -> None: ...

    def up_data(self, data: bytes, final: bool) -> None:
        """A piece of the body; `final`: nothing follows but `up_end`, at once."""
        ...

    def up_end(self) -> None: ...

    def up_lost(self, reason: str) -> None: ...


class BodySource(Protocol):
    """Who sends a request's body piece by piece."""

    def up_open(self) -> None:
        """The head is out: pieces may follow by `Call.write`."""
        ...

    def up_full(self) -> None:
        """The engine is slower: write no more until `up_drained`."""
        ...

    def up_drained(self) -> None: ...


Dial = Callable[[str, Callable[[], asyncio.Protocol]], Awaitable[asyncio.Protocol]]
"""(address as of `roster.way_to`, protocol factory) → connected protocol. The road (TCP, UNIX,
SSH channel) is its business."""


async def dial_tcp(address: str, factory: Callable[[], asyncio.Protocol]) -> asyncio.Protocol:
    """`host:port`, or `https://host:port` for an endpoint behind TLS."""
    context: ssl.SSLContext | None = None
    if address.startswith("https://"):
        address = address.removeprefix("https://")
        context = _trust()
    host, _, port = address.rpartition(":")
    loop = asyncio.get_running_loop()
    _, protocol = await loop.create_connection(factory, host.strip("[]"), int(port), ssl=context)
    return protocol


@functools.cache
def _trust() -> ssl.SSLContext:
    """Read once: it takes 20 ms, in which no token of any stream moves."""
    return ssl.create_default_context()


class UpstreamConnection(asyncio.Protocol):
    """One socket to an engine, one call at a time."""

    __slots__ = (
        "_complete", "_content_type", "_head_bytes", "_head_ready", "_in_head", "_keep_alive",
        "_parser", "_parts", "_paused", "_pool", "_status", "address", "answered", "calls",
        "receiver", "source", "transport",
    )  # fmt: skip

    def __init__(self, pool: UpstreamPool, address: str) -> None:
        self._pool = pool
        self.address = address
        self.transport: asyncio.Transport | None = None
        self.receiver: Receiver | None = None
        self.source: BodySource | None = None
        """While the body of the request is not all sent."""
        self.calls = 0
        self.answered = False
        self._paused = False
        self._parser = httptools.HttpResponseParser(self)
        self._reset()

    def _reset(self) -> None:
        self._parts: list[bytes] = []
        self._keep_alive = False
        self._content_type = b""
        self._status = 0
        self._head_bytes = 0
        self._head_ready = False
        self._in_head = True
        self._complete = False
        self.answered = False

    def send(self, payload: bytes, receiver: Receiver) -> None:
        assert self.transport is not None
        self.receiver = receiver
        self.calls += 1
        self.transport.write(payload)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports have the methods but not the base class.
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        receiver = self.receiver
        if receiver is None:
            # An engine speaks only when asked; what comes unasked cannot be trusted.
            self.close()
            return
        self.answered = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._lose(f"malformed reply from the engine: {error}")
            return
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._lose(f"the head of its reply is larger than {MAX_HEAD_BYTES} bytes")
                return
        if self._head_ready:
            self._head_ready = False
            receiver.up_head(self._status, self._content_type)
        # The receiver may have let go of us in a callback: look again before each one.
        if self._parts and self.receiver is receiver:
            parts, self._parts = self._parts, []
            body = parts[0] if len(parts) == 1 else b"".join(parts)
            receiver.up_data(body, self._complete)
        if self._complete and self.receiver is receiver:
            self.receiver = None
            if self._keep_alive and self.source is None:
                if self._paused:
                    # Its client may be slow with the last piece; the next must not wait for it.
                    self.resume()
                self._reset()
                self._pool.release(self)
            else:
                self.close()
            receiver.up_end()

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(name) == 12 and not self._complete and name.lower() == b"content-type":
            self._content_type = value

    def on_headers_complete(self) -> None:
        if self._complete:
            # A second reply to one request: not part of the first, and the engine is confused.
            self._keep_alive = False
            return
        parser = self._parser
        self._status = parser.get_status_code()
        if not 100 <= self._status <= 599:
            raise ValueError(f"the status {self._status}")
        self._head_ready = self._status >= 200
        self._in_head = not self._head_ready
        # Asked now: once the message is complete the parser has forgotten how it was framed.
        self._keep_alive = parser.should_keep_alive()

    def on_body(self, data: bytes) -> None:
        if not self._complete and self._status >= 200:
            self._parts.append(data)

    def on_message_complete(self) -> None:
        self._complete = self._complete or self._status >= 200

    def pause_writing(self) -> None:
        if self.source is not None:
            self.source.up_full()

    def resume_writing(self) -> None:
        if self.source is not None:
            self.source.up_drained()

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self._pool.forget(self)
        self._lose(str(exc) if exc else "the engine closed the connection")

    def _lose(self, reason: str) -> None:
        receiver, self.receiver = self.receiver, None
        self.close()
        if receiver is not None:
            receiver.up_lost(reason)

    def close(self) -> None:
        self.receiver = self.source = None
        if self.transport is not None:
            self.transport.abort()

    def pause(self) -> None:
        if self.transport is not None and not self.transport.is_closing() and not self._paused:
            self._paused = True
            self.transport.pause_reading()

    def resume(self) -> None:
        if self._paused and self.transport is not None and not self.transport.is_closing():
            self._paused = False
            self.transport.resume_reading()


class Call:
    """One request to an engine; `cancel` closes its socket, and nothing more is told of it.

    Once its reply is whole its connection is somebody else's, and nothing here touches it: who
    asked may hear of the end a moment later than the next request takes the connection.
    """

    __slots__ = ("_task", "_turn", "connection", "reused")

    def __init__(self) -> None:
        self.connection: UpstreamConnection | None = None
        self.reused = False
        """True on a pooled connection: the engine may have closed it just before we wrote."""
        self._task: asyncio.Task[None] | None = None
        self._turn = 0
        """Which of its connection's calls this is."""

    @property
    def answered(self) -> bool:
        return self.connection is not None and self.connection.answered

    def send(self, connection: UpstreamConnection, payload: bytes, receiver: Receiver) -> None:
        """On a connection that is free."""
        self.connection = connection
        connection.send(payload, receiver)
        self._turn = connection.calls

    def cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()
        elif (connection := self._own()) is not None:
            connection.close()

    def _own(self) -> UpstreamConnection | None:
        """Its connection, until the reply is whole."""
        connection = self.connection
        if connection is None or connection.receiver is None or connection.calls != self._turn:
            return None
        return connection

    def wants(self, source: BodySource) -> bool:
        """Whether the engine still takes the body that this source sends."""
        return self.connection is not None and self.connection.source is source

    def write(self, data: bytes, *, last: bool = False) -> None:
        """A piece of the body of a request that was opened."""
        connection = self.connection
        if connection is not None and connection.transport is not None:
            if last:
                connection.source = None
            connection.transport.write(data)

    def pause(self) -> None:
        if (connection := self._own()) is not None:
            connection.pause()

    def resume(self) -> None:
        if (connection := self._own()) is not None:
            connection.resume()


class UpstreamPool:
    """Keep-alive connections by address."""

    def __init__(self, dial: Dial = dial_tcp, *, connect_s: float = 2.0) -> None:
        self._dial = dial
        self._connect_s = connect_s
        self._idle: dict[str, list[UpstreamConnection]] = {}
        self._all: set[UpstreamConnection] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def call(
        self, address: str, payload: bytes, receiver: Receiver, *, fresh: bool = False
    ) -> Call:
        """Send a request; the reply goes to the receiver. `fresh`: not on a pooled connection."""
        call = Call()
        idle = self._idle.get(address)
        while idle and not fresh:
            connection = idle.pop()
            if connection.transport is not None and not connection.transport.is_closing():
                call.reused = True
                call.send(connection, payload, receiver)
                return call
        self._begin(call, address, payload, receiver, None)
        return call

    def open(self, address: str, head: bytes, receiver: Receiver, source: BodySource) -> Call:
        """Send a request whose body follows piece by piece.

        Never on a pooled connection: the engine may have closed it, and what was sent of the
        body could not be sent again.
        """
        call = Call()
        self._begin(call, address, head, receiver, source)
        return call

    def _begin(
        self,
        call: Call,
        address: str,
        payload: bytes,
        receiver: Receiver,
        source: BodySource | None,
    ) -> None:
        task = asyncio.get_running_loop().create_task(
            self._connect(call, address, payload, receiver, source)
        )
        call._task = task
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(
        self,
        call: Call,
        address: str,
        payload: bytes,
        receiver: Receiver,
        source: BodySource | None,
    ) -> None:
        made: list[UpstreamConnection] = []

        def factory() -> UpstreamConnection:
            made.append(UpstreamConnection(self, address))
            return made[-1]

        try:
            async with asyncio.timeout(self._connect_s):
                protocol = await self._dial(address, factory)
        except asyncio.CancelledError:
            # The client left in the moment in which the connection came about.
            for connection in made:
                connection.close()
            raise
        except TimeoutError:
            call._task = None
            receiver.up_lost(f"no connection to {address} within {self._connect_s:g} s")
            return
        except OSError as error:
            call._task = None
            receiver.up_lost(f"cannot connect to {address}: {error.strerror or error}")
            return
        assert isinstance(protocol, UpstreamConnection)
        self._all.add(protocol)
        call._task = None
        call.connection = protocol
        if protocol.transport is None:
            receiver.up_lost(f"{address} closed the connection at once")
            return
        call.send(protocol, payload, receiver)
        if source is not None:
            protocol.source = source
            source.up_open()

    def release(self, connection: UpstreamConnection) -> None:
        idle = self._idle.get(connection.address)
        if idle is None:
            idle = self._idle[connection.address] = []
        if len(idle) < _IDLE_PER_ENGINE:
            idle.append(connection)
        else:
            connection.close()

    def forget(self, connection: UpstreamConnection) -> None:
        self._all.discard(connection)
        idle = self._idle.get(connection.address)
        if idle is not None and connection in idle:
            idle.remove(connection)

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for connection in list(self._all):
            connection.close()
        self._idle.clear()


def head(method: str, address: str, path: str, length: int | None, content_type: str = "") -> bytes:
    """Request head for an engine. Host is the loopback address: Ollama answers others with 403.

    Args:
        length: of the body; None: it follows in chunks.
    """
    start = _head_start(method, address, path, content_type)
    if length is None:
        return start + b"Transfer-Encoding: chunked\r\n\r\n"
    return b"%sContent-Length: %d\r\n\r\n" % (start, length)


@functools.lru_cache(maxsize=256)
def _head_start(method: str, address: str, path: str, content_type: str) -> bytes:
    host = address.rpartition(ROAD_MARK)[2].removeprefix("https://")
    lines = f"{method} {path} HTTP/1.1\r\nHost: {host}\r\n"
    if content_type:
        lines += f"Content-Type: {content_type}\r\n"
    return lines.encode("latin-1")
