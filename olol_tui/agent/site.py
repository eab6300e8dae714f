"""What all keepers of an agent share: state on disk, ports, limits, the way to tell others."""

from __future__ import annotations

import asyncio
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Callable

from . import ports, proc
from .engines import Context, EngineKind, Launch
from .records import State
from .spec import Policy, Spec

ANNOUNCE = "olol-agent: "
"""Starts the agent's own lines in an engine's log."""

MARK_STATE = "OLOL_AGENT_STATE"
"""In the environment of every engine: whose it is, also when its record was never written."""
MARK_ENGINE = "OLOL_ENGINE"


class Site:
    """One per agent."""

    def __init__(
        self,
        state: State,
        policy: Policy,
        context: Callable[[], Context],
        changed: Callable[[], None],
    ) -> None:
        self.state = state
        self.policy = policy
        self._context = context
        self.changed = changed
        """To be called whenever the status of an engine changed."""
        self.boot_id = proc.boot_id()
        self._ports: dict[int, str] = {}

    def hold_port(self, identity: str, port: int) -> None:
        """An adopted engine has this port already."""
        self._ports[port] = identity

    def claim_port(self, identity: str, prefer: int, avoid: set[int]) -> int:
        """A free port for an engine, given to no other one even before it listens.

        Raises:
            EngineError: there is none.
        """
        self.free_port(identity)
        port = ports.choose(str(self.state.path), self._ports.keys() | avoid, prefer)
        self._ports[port] = identity
        return port

    def free_port(self, identity: str) -> None:
        for port in [p for p, owner in self._ports.items() if owner == identity]:
            del self._ports[port]

    async def prepare(self, kind: EngineKind, spec: Spec, port: int, plain: bool) -> Launch:
        """The kind's command line, made in a thread: it looks at files and devices.

        Raises:
            EngineError: it cannot be started here.
        """
        loop = asyncio.get_running_loop()
        make = partial(self._launch, kind, spec, port, plain)
        return await loop.run_in_executor(None, make)

    def _launch(self, kind: EngineKind, spec: Spec, port: int, plain: bool) -> Launch:
        return kind.launch(spec, port, self._context(), plain=plain)

    def announce(self, path: Path, argv: tuple[str, ...]) -> None:
        """Mark a start in the engine's log, so that crashes can be told apart."""
        stamp = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        with path.open("a", encoding="utf-8") as file:
            file.write(f"{ANNOUNCE}{stamp} starting {' '.join(argv)[:500]}\n")
