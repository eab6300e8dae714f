"""A node's agent and engines over its link: the transport half of the controller's road.

Getting the agent onto the node is a `Provisioner`'s work; `fleet.remote` adds what the
snapshot tells about the road.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Literal, Protocol

import httpx

from olol_tui.ssh.channels import Factory
from olol_tui.ssh.errors import ChannelRefused, LinkDown, SSHError
from olol_tui.ssh.http import DialTransport
from olol_tui.ssh.link import NodeLink


@dataclass(frozen=True, slots=True)
class AgentPlace:
    """Where a node's agent is."""

    socket: str
    """Absolute path on the node."""
    pid: int | None = None


class Provisioner(Protocol):
    """Puts an agent on a node."""

    async def ensure_agent(self, link: NodeLink) -> AgentPlace:
        """Return when an agent of the right version answers; install or replace it if needed.

        The link is up when this is called, and may break at any moment.

        Raises:
            NodeError: which step failed, and why.
        """
        ...


class SshRoad:
    """To an agent on another machine; as in `fleet.road.Road`. Owns the link: `aclose` ends it."""

    def __init__(self, link: NodeLink, provisioner: Provisioner) -> None:
        self.link = link
        self._provisioner = provisioner
        self._place: AgentPlace | None = None

    @property
    def kind(self) -> Literal["local", "ssh"]:
        return "ssh"

    async def ensure_agent(self) -> None:
        self.link.start()
        await self.link.wait_up()
        self._place = await self._provisioner.ensure_agent(self.link)

    def agent_transport(self) -> httpx.AsyncBaseTransport:
        return DialTransport(self._dial_agent, "unix:agent")

    def engine_transport(self) -> httpx.AsyncBaseTransport:
        return self.link.http_transport_tcp()

    async def dial(self, address: str, factory: Factory) -> asyncio.Protocol:
        """For the gateway: a stream to an engine's address on the node; see `NodeLink.dial`."""
        return await self.link.dial(address, factory)

    async def gone(self, timeout_s: float) -> bool:
        if self._place is None:
            return True
        try:
            async with asyncio.timeout(timeout_s):
                await self._until_deaf(f"unix:{self._place.socket}")
                if self._place.pid is not None:
                    # It stops listening before it ends. One session waits for its end.
                    wait = f"while kill -0 {self._place.pid} 2>/dev/null; do sleep 0.1; done"
                    await self.link.run(wait, timeout_s=timeout_s)
        except TimeoutError:
            return False
        except SSHError:
            # The road broke: whether the agent is gone, nobody can say.
            return False
        return True

    async def aclose(self) -> None:
        await self.link.close()

    async def _until_deaf(self, address: str) -> None:
        """A connection to a process ends when it does; then nobody may answer another one."""
        while True:
            try:
                watch = await self.link.dial_control(address, _Watch)
            except ChannelRefused:
                return
            assert isinstance(watch, _Watch)
            await watch.ended.wait()

    async def _dial_agent(self, _: str, factory: Factory) -> asyncio.Protocol:
        """Where the agent is may change with every `ensure_agent`."""
        if self._place is None:
            raise LinkDown(f"{self.link.name}: where its agent listens is not known yet")
        return await self.link.dial_control(f"unix:{self._place.socket}", factory)


class _Watch(asyncio.Protocol):
    """Waits for the other end to go."""

    def __init__(self) -> None:
        self.ended = asyncio.Event()

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended.set()
