"""The agent's own small HTTP client: short JSON calls to engines on 127.0.0.1."""

from __future__ import annotations

import asyncio
import json
from typing import Any, NamedTuple

import h11

_MAX_REPLY_BYTES = 8 * 1024 * 1024


class Reply(NamedTuple):
    status: int
    body: bytes

    def json(self) -> Any:
        """The decoded body, None when it is not JSON."""
        try:
            return json.loads(self.body)
        except ValueError:
            return None


class CallError(Exception):
    """No complete reply: refused, cut, too slow or not HTTP."""


async def call(
    port: int, path: str, *, method: str = "GET", body: Any = None, timeout_s: float = 5.0
) -> Reply:
    """One request to 127.0.0.1.

    Raises:
        CallError: with one sentence that says why there is no reply.
    """
    try:
        return await asyncio.wait_for(_call(port, path, method, body), timeout_s)
    except asyncio.TimeoutError as error:
        raise CallError(f"no answer from port {port} within {timeout_s:g} s") from error
    except (OSError, EOFError) as error:
        raise CallError(f"port {port}: {error}") from error
    except h11.ProtocolError as error:
        raise CallError(f"port {port} does not speak HTTP: {error}") from error


async def _call(port: int, path: str, method: str, body: Any) -> Reply:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        payload = b"" if body is None else json.dumps(body).encode()
        headers = [("Host", f"127.0.0.1:{port}"), ("Connection", "close")]
        if body is not None:
            headers += [
                ("Content-Type", "application/json"),
                ("Content-Length", str(len(payload))),
            ]
        connection = h11.Connection(h11.CLIENT)
        head = connection.send(h11.Request(method=method, target=path, headers=headers)) or b""
        rest = connection.send(h11.Data(data=payload)) if payload else b""
        writer.write(head + (rest or b"") + (connection.send(h11.EndOfMessage()) or b""))
        await writer.drain()
        status: int | None = None
        received = bytearray()
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                data = await reader.read(65536)
                connection.receive_data(data)
            elif isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                received += event.data
                if len(received) > _MAX_REPLY_BYTES:
                    raise EOFError("the reply is too large")
            elif isinstance(event, (h11.EndOfMessage, h11.ConnectionClosed)):
                if status is None:
                    raise EOFError("closed without a reply")
                return Reply(status, bytes(received))
    finally:
        writer.close()
