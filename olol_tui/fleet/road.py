"""How the controller reaches a node: the one thing that differs between local and SSH."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import httpx

from olol_tui.config import NodeConfig
from olol_tui.errors import OlolError
from olol_tui.fleet.snapshot import HostKeyQuestion

Factory = Callable[[], asyncio.Protocol]


@dataclass(frozen=True, slots=True)
class RoadFacts:
    """What a road tells about itself and the other end, for the snapshot."""

    host: str = ""
    """`ops@gpu1.lan:2222`."""
    ssh_command: str = ""
    provisioned: bool | None = None
    survives_reboot: bool | None = None
    question: HostKeyQuestion | None = None


async def open_stream(
    dial: Callable[[str, Factory], Awaitable[asyncio.Protocol]], address: str
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A dialled stream as reader and writer.

    Raises:
        OSError: it cannot be opened.
    """
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(loop=loop)
    protocol = _Opened(reader, loop=loop)
    await dial(address, lambda: protocol)
    return reader, asyncio.StreamWriter(protocol.transport, protocol, reader, loop)


class _Opened(asyncio.StreamReaderProtocol):
    """Remembers its transport, which a dialer does not hand out."""

    transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport


class Road(Protocol):
    """The way to one node. Owned by its node session, which makes one call at a time.

    Transports are new at every call and belong to the caller, who closes them.
    """

    @property
    def kind(self) -> Literal["local", "ssh"]: ...

    @property
    def facts(self) -> RoadFacts: ...

    @property
    def problem(self) -> OlolError | None:
        """Why nothing can travel now; None when it can. This machine has no such problem."""
        ...

    def watch(self, changed: Callable[[], None]) -> None:
        """Call `changed`, on the loop, whenever `problem` or `facts` changed."""
        ...

    def reconfigure(self, config: NodeConfig) -> None:
        """Something else is wanted of the same node; how it is reached stays."""
        ...

    async def lost(self) -> OlolError:
        """Return when there is a problem."""
        ...

    async def ensure_agent(self) -> None:
        """Return when an agent of the right version answers; start or replace it if needed.

        Raises:
            NodeError: it cannot be reached or started, with the reason.
        """
        ...

    def agent_transport(self) -> httpx.AsyncBaseTransport:
        """To the agent's UNIX socket."""
        ...

    def engine_transport(self) -> httpx.AsyncBaseTransport:
        """To an engine's `127.0.0.1:port` on the node."""
        ...

    async def dial(self, address: str, factory: Factory) -> asyncio.Protocol:
        """A stream to an engine's address, for requests.

        Raises:
            OSError: it cannot be opened. Once open, a stream that ends otherwise than by the
                engine's own end of file ends with an exception in `connection_lost`.
        """
        ...

    async def gone(self, timeout_s: float) -> bool:
        """After a shutdown: wait until the agent is gone. False when it still is there."""
        ...

    async def aclose(self) -> None:
        """Leave; streams that are open fail."""
        ...


class NotProvisioned(OlolError):
    """The machine answers and nothing of ours was ever installed there."""

    title = "The node is not provisioned"
