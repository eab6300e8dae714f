"""What the controller asks of each member of the fleet: a node with an agent, or an endpoint."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager
from typing import Protocol

from olol_tui.fleet.engine_client import EngineClient
from olol_tui.fleet.road import Factory
from olol_tui.fleet.snapshot import Engine, Node


class Member(Protocol):
    """Keeps one part of the fleet known. Its `run` never ends and never raises by itself."""

    @property
    def name(self) -> str: ...

    async def run(self) -> None:
        """Connect, follow, reconnect, until cancelled."""
        ...

    def view(self, now_s: float) -> Node:
        """What is known now. Nothing known is forgotten while the link is down."""
        ...

    def replan(self) -> None:
        """The wishes for this node changed."""
        ...

    def engine_client(self, engine: Engine) -> EngineClient:
        """Control connection to an engine that speaks Ollama's API; the caller closes it."""
        ...

    def loading(
        self, engine_id: str, model: str, expected_s: float
    ) -> AbstractContextManager[None]:
        """While open, the snapshot shows that this model is being loaded, and how far it is."""
        ...

    async def refresh(self, engine: Engine) -> None:
        """Learn now what the engine has loaded, instead of at the next beat.

        Raises:
            EngineError: it does not say.
        """
        ...

    async def survey(self) -> None:
        """Learn now what its store holds, instead of at the next look.

        Raises:
            NodeError, EngineError: it does not say.
        """
        ...

    async def restart(self, engine_id: str) -> None:
        """Raises NodeError when the engine is not ours to restart."""
        ...

    def logs(self, engine_id: str, tail: int) -> AsyncIterator[str]: ...

    async def dial(self, address: str, factory: Factory) -> asyncio.Protocol:
        """A stream to an engine of this member, for requests.

        Raises:
            OSError: it cannot be opened.
        """
        ...

    def try_now(self) -> None:
        """Do not wait for the next attempt to reach it."""
        ...

    async def shutdown(self) -> None:
        """Stop engines and agent, where they are ours."""
        ...

    async def release(self) -> None:
        """Leave it to the next controller, with all that runs there."""
        ...

    async def aclose(self) -> None:
        """After `run` has ended: close what is still open."""
        ...
