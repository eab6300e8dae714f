"""What the controller asks of each member of the fleet: a node with an agent, or an endpoint."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractContextManager
from typing import Protocol

from olol_tui.fleet.engine_client import EngineClient
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

    async def shutdown(self) -> None:
        """Stop engines and agent, where they are ours."""
        ...
