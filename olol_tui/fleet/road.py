"""How the controller reaches a node: the one thing that differs between local and SSH."""

from __future__ import annotations

from typing import Literal, Protocol

import httpx


class Road(Protocol):
    """The way to one node. Owned by its node session, which makes one call at a time.

    Transports are new at every call and belong to the caller, who closes them.
    """

    @property
    def kind(self) -> Literal["local", "ssh"]: ...

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

    async def gone(self, timeout_s: float) -> bool:
        """After a shutdown: wait until the agent is gone. False when it still is there."""
        ...
