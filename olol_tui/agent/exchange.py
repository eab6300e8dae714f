"""One connection to the agent: HTTP/1.1, requests one after the other.

Requests are small (1 MiB) and must arrive within a deadline; replies are JSON or, for
streams, one JSON object a line. A connection can be handed over to another image of the
agent: between two requests, or between two lines of a stream that goes on over an upgrade.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
from typing import Any

import h11

from .errors import AgentError, BadRequest, TooLarge
from .routes import Request, Router, Stream

log = logging.getLogger(__name__)

MAX_BODY_BYTES = 1024 * 1024
HEAD_DEADLINE_S = 5.0
BODY_DEADLINE_S = 30.0
IDLE_S = 120.0

CONTINUED = ("/v1/telemetry/stream",)
"""Streams that go on over an upgrade; others end, cleanly."""
_FLUSH_S = 1.0


class Leaving:
    """Told to all exchanges when another image is to go on with their connections."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.handed: list[tuple[int, str]] = []
        """Descriptors that stay open, with the target of a stream that is to be continued."""

    def hand(self, writer: asyncio.StreamWriter, target: str = "") -> None:
        peer: socket.socket = writer.get_extra_info("socket")
        self.handed.append((os.dup(peer.fileno()), target))


class Exchange:
    """One connection: requests one after the other."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        router: Router,
        leaving: Leaving,
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._router = router
        self._leaving = leaving
        self._http = h11.Connection(h11.SERVER)

    async def run(self, target: str = "") -> None:
        """Serve until the peer leaves, or we do.

        Args:
            target: of a stream whose head an earlier image has sent: go on with it.
        """
        if target:
            await self._continue(target)
            return
        while True:
            try:
                request = await self._read()
            except AgentError as error:
                await self._send_json(error.status, error.body(), close=True)
                return
            except h11.RemoteProtocolError as error:
                bad = BadRequest(f"not HTTP: {error}")
                if self._http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                    await self._send_json(error.error_status_hint, bad.body(), close=True)
                return
            if request is None:
                return
            await self._reply(request)
            # A stream that was handed over is in the middle of its answer, and ends here.
            if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
                return
            self._http.start_next_cycle()

    async def _read(self) -> Request | None:
        """One request; None when the peer closed between requests."""
        trailing, _ = self._http.trailing_data
        if not trailing:
            first = await self._first_bytes()
            if not first:
                return None
            self._http.receive_data(first)
        head = await asyncio.wait_for(self._event(), HEAD_DEADLINE_S)
        if not isinstance(head, h11.Request):
            return None
        body = await asyncio.wait_for(self._body(head), BODY_DEADLINE_S)
        headers = {
            name.decode("ascii"): value.decode("utf-8", "replace") for name, value in head.headers
        }
        return Request(head.method.decode("ascii"), head.target.decode("ascii"), body, headers)

    async def _first_bytes(self) -> bytes:
        """Of the next request; empty when the peer has closed, or the connection was handed on."""
        read = asyncio.ensure_future(self._reader.read(65536))
        leave = asyncio.ensure_future(self._leaving.asked.wait())
        try:
            await asyncio.wait({read, leave}, timeout=IDLE_S, return_when=asyncio.FIRST_COMPLETED)
            if leave.done() and not read.done():
                # What arrives from now on is for the next image. What has arrived just now
                # needs a turn of the loop to get through to us.
                transport = self._writer.transport
                if isinstance(transport, asyncio.Transport):
                    transport.pause_reading()
                await asyncio.sleep(0)
                await asyncio.sleep(0)
            if read.done():
                return read.result()
            if not leave.done():
                raise asyncio.TimeoutError
            self._leaving.hand(self._writer)
            return b""
        finally:
            read.cancel()
            leave.cancel()
            await asyncio.gather(read, leave, return_exceptions=True)

    async def _continue(self, target: str) -> None:
        """Go on with a stream as if we had been asked for it and had sent its head."""
        head = f"GET {target} HTTP/1.1\r\nHost: agent\r\n\r\n"
        self._http.receive_data(head.encode("ascii"))
        request = Request("GET", target, b"")
        while not isinstance(self._http.next_event(), h11.EndOfMessage):
            pass
        answer = await self._router.answer(request)
        if not isinstance(answer, dict):
            await self._send_stream(request, answer, is_continued=True)

    async def _event(self) -> Any:
        while True:
            event = self._http.next_event()
            if event is not h11.NEED_DATA:
                return event
            if self._http.they_are_waiting_for_100_continue:
                go = h11.InformationalResponse(status_code=100, headers=[])
                self._writer.write(self._http.send(go) or b"")
            self._http.receive_data(await self._reader.read(65536))

    async def _body(self, head: h11.Request) -> bytes:
        for name, value in head.headers:
            if name == b"content-length" and int(value) > MAX_BODY_BYTES:
                raise TooLarge(f"the body is larger than {MAX_BODY_BYTES} bytes")
        received = bytearray()
        while True:
            event = await self._event()
            if isinstance(event, h11.Data):
                received += event.data
                if len(received) > MAX_BODY_BYTES:
                    raise TooLarge(f"the body is larger than {MAX_BODY_BYTES} bytes")
            elif isinstance(event, h11.EndOfMessage):
                return bytes(received)
            else:
                raise EOFError("the peer left in the middle of a request")

    async def _reply(self, request: Request) -> None:
        try:
            answer = await self._router.answer(request)
        except AgentError as error:
            await self._send_json(error.status, error.body())
            return
        except Exception as error:  # one bad request must not end the agent
            log.exception("%s %s failed", request.method, request.path)
            await self._send_json(500, AgentError(f"{type(error).__name__}: {error}").body())
            return
        if isinstance(answer, dict):
            await self._send_json(200, answer)
        else:
            await self._send_stream(request, answer)

    async def _send_json(self, status: int, body: dict[str, Any], *, close: bool = False) -> None:
        data = json.dumps(body).encode() + b"\n"
        headers = [("Content-Type", "application/json"), ("Content-Length", str(len(data)))]
        if close:
            headers.append(("Connection", "close"))
        head = self._http.send(h11.Response(status_code=status, headers=headers)) or b""
        rest = self._http.send(h11.Data(data=data)) or b""
        self._writer.write(head + rest + (self._http.send(h11.EndOfMessage()) or b""))
        await self._writer.drain()

    async def _send_stream(
        self, request: Request, stream: Stream, *, is_continued: bool = False
    ) -> None:
        """Lines until the source ends or the peer leaves, whichever is first; or we do."""
        # Listening for the peer to leave may eat a byte of its next request: no reuse.
        headers = [("Content-Type", "application/x-ndjson"), ("Connection", "close")]
        head = self._http.send(h11.Response(status_code=200, headers=headers)) or b""
        if not is_continued:
            self._writer.write(head)
        pump = asyncio.ensure_future(self._pump(stream))
        gone = asyncio.ensure_future(self._reader.read(1))
        leave = asyncio.ensure_future(self._leaving.asked.wait())
        try:
            await asyncio.wait({pump, gone, leave}, return_when=asyncio.FIRST_COMPLETED)
            if gone.done() and not pump.done():
                return
            if not pump.done():
                pump.cancel()
                await asyncio.gather(pump, return_exceptions=True)
                if request.path in CONTINUED and await self._is_written():
                    self._leaving.hand(self._writer, request.target)
                    return
            else:
                pump.result()
            self._writer.write(self._http.send(h11.EndOfMessage()) or b"")
            await self._writer.drain()
        finally:
            for task in (pump, gone, leave):
                task.cancel()
            await asyncio.gather(pump, gone, leave, return_exceptions=True)
            self._writer.close()

    async def _is_written(self) -> bool:
        """Whether all that was sent is out: the next image must begin at a line's start."""
        deadline = asyncio.get_running_loop().time() + _FLUSH_S
        while self._writer.transport.get_write_buffer_size():
            if asyncio.get_running_loop().time() > deadline:
                return False
            await asyncio.sleep(0.01)
        return True

    async def _pump(self, stream: Stream) -> None:
        try:
            async for item in stream:
                data = json.dumps(item).encode() + b"\n"
                self._writer.write(self._http.send(h11.Data(data=data)) or b"")
                await self._writer.drain()
        finally:
            close = getattr(stream, "aclose", None)
            if close is not None:
                await close()
