"""Engines that break in scripted ways, and a client that sees every byte."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from olol_tui.gateway.gateway import Gateway

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class ScriptedEngine:
    """Answers `/api/version`, and every other request by its script."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self._open: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self.requests = 0
        self.address = ""
        self.frozen = False
        """It does not even say what it is."""
        self._server: asyncio.Server | None = None

    async def listen(self) -> None:
        """Again at the same address, if it has listened before."""
        port = int(self.address.rpartition(":")[2] or 0)
        self._server = await asyncio.start_server(self.serve, "127.0.0.1", port)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def stop_listening(self) -> None:
        if self._server is not None:
            self._server.close()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open[task] = writer
        try:
            while not writer.is_closing():
                await self._answer(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the gateway has left
        finally:
            del self._open[task]
            writer.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if head.startswith(b"GET"):
            if self.frozen:
                await is_silent(reader, writer)
                return
            body = b'{"version":"0.12.0"}'
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
            return
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        await reader.readexactly(length)
        self.requests += 1
        await self._script(reader, writer)

    async def close(self) -> None:
        self.stop_listening()
        for writer in self._open.values():
            writer.transport.abort()
        await asyncio.gather(*self._open)
        if self._server is not None:
            await self._server.wait_closed()


@contextlib.asynccontextmanager
async def scripted_engine(script: Script) -> AsyncIterator[ScriptedEngine]:
    engine = ScriptedEngine(script)
    await engine.listen()
    try:
        yield engine
    finally:
        await engine.close()


def says(raw: bytes) -> Script:
    """Sends these bytes, whatever they are, and closes."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(raw)
        await writer.drain()
        writer.write_eof()
        await reader.read()

    return script


async def resets(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Not a word, and the connection is gone."""
    writer.transport.abort()


async def is_silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Until the other side leaves."""
    await reader.read()
    writer.transport.abort()


async def trickles(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A head without end, a byte at a time."""
    writer.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    while True:
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.05)


def post(path: str, body: dict[str, Any], *headers: str) -> bytes:
    raw = json.dumps(body).encode()
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(raw)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + raw


async def every_byte(
    gateway: Gateway, path: str, body: dict[str, Any], *headers: str, timeout_s: float = 60
) -> tuple[bytes, bool]:
    """(what came, whether it ended as a whole stream): with the last chunk.

    A reply of a known length is no stream, and its end is waited for no longer than that.
    """
    host, port = gateway.address.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    got = b""
    try:
        writer.write(post(path, body, *headers))
        async with asyncio.timeout(timeout_s):
            while piece := await reader.read(65536):
                got += piece
                if got.endswith(_LAST_CHUNK) or _is_all(got):
                    break
    finally:
        writer.close()
    return got, got.endswith(_LAST_CHUNK)


_LAST_CHUNK = b"\r\n0\r\n\r\n"


def _is_all(got: bytes) -> bool:
    head, _, rest = got.partition(b"\r\n\r\n")
    length = re.search(rb"\r\ncontent-length: *(\d+)", head, re.IGNORECASE)
    return length is not None and len(rest) >= int(length[1])
