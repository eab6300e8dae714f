"""Control calls over SSH: an httpx transport whose connections are dialled on the node."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, cast

import httpcore

from olol_tui.ssh.channels import Dial
from olol_tui.unixhttp import AsyncioStream, StreamsTransport

_READ_AHEAD_BYTES = 64 * 1024


class DialTransport(StreamsTransport):
    """An httpx transport over a dialer.

    Args:
        dial: the way to the node.
        address: where every request goes, whatever host its URL names. None: the URL's host
            and port, as the node sees them.
    """

    def __init__(self, dial: Dial, address: str | None = None) -> None:
        super().__init__(_DialBackend(dial, address))


class _DialBackend(httpcore.AsyncNetworkBackend):
    def __init__(self, dial: Dial, address: str | None) -> None:
        self._dial = dial
        self._address = address

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's interface
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        address = self._address or f"{host}:{port}"
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(_READ_AHEAD_BYTES, loop)
        protocol = _Opened(reader, loop=loop)
        try:
            async with asyncio.timeout(timeout):
                await self._dial(address, lambda: protocol)
        except TimeoutError as error:
            raise httpcore.ConnectTimeout(f"{address}: no stream within {timeout} s") from error
        except OSError as error:
            raise httpcore.ConnectError(str(error)) from error
        return AsyncioStream(
            reader, asyncio.StreamWriter(protocol.transport, protocol, reader, loop)
        )

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class _Opened(asyncio.StreamReaderProtocol):
    """Keeps the transport for the writer: a dialer returns the protocol only."""

    transport: asyncio.WriteTransport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.WriteTransport, transport)
        super().connection_made(transport)
