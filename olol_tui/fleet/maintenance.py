"""Restarts of engines and refreshes of what they hold: small work around the placer's."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from olol_tui.errors import EngineError, PlacementError
from olol_tui.fleet.desk import Desk
from olol_tui.fleet.operations import Report
from olol_tui.fleet.snapshot import Engine

log = logging.getLogger("olol.fleet.maintenance")

RESTART_TIMEOUT_S = 120.0


class Maintenance:
    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._tasks: asyncio.TaskGroup | None = None
        self._refreshing: dict[str, bool] = {}
        """Engine id → whether it is to be asked once more after the present answer."""

    def open(self, tasks: asyncio.TaskGroup) -> None:
        self._tasks = tasks

    def refresh_soon(self, engine: Engine) -> None:
        """Ask the engine what it holds; several wishes at once are one question."""
        if engine.id in self._refreshing:
            self._refreshing[engine.id] = True
        elif self._tasks is not None:
            self._refreshing[engine.id] = False
            self._tasks.create_task(self._refresh(engine), name=f"refresh {engine.id}")

    async def _refresh(self, engine: Engine) -> None:
        try:
            while True:
                try:
                    await self._desk.member(engine.node).refresh(engine)
                except EngineError as error:
                    # Its agent reports a dead engine by itself.
                    log.debug("%s: %s", engine.id, error)
                if not self._refreshing[engine.id]:
                    return
                self._refreshing[engine.id] = False
        finally:
            del self._refreshing[engine.id]

    def restart(self, engine_id: str) -> str:
        """Restart an engine; returns the operation's id.

        Raises:
            PlacementError: there is no such engine.
            NodeError: (as the operation's failure) the node does not answer.
        """
        engine = self._desk.engine(engine_id)
        if engine is None:
            known = ", ".join(e.id for node in self._desk.nodes for e in node.engines)
            raise PlacementError(f"there is no engine {engine_id}", hint=f"Engines: {known}")
        if engine.kind == "endpoint":
            raise PlacementError(
                f"{engine.node} is run by somebody else: it is used and never managed",
                hint="Restart it where it runs.",
            )
        before = engine

        async def work(report: Report) -> str:
            ready = await self.restarted(before, report.say)
            return f"ready, pid {ready.pid}"

        return self._desk.book.start(f"restart {engine_id}", work, key=f"restart {engine_id}")

    async def restarted(self, before: Engine, say: Callable[[str], None]) -> Engine:
        """Restart an engine now; as it is once it answers again.

        Args:
            say: told how far it is.

        Raises:
            NodeError: the node does not answer.
            EngineError: the engine does not come back.
        """
        await self._desk.member(before.node).restart(before.id)

        def check() -> Engine | None:
            now = self._desk.engine(before.id)
            if now is None:
                raise EngineError(f"{before.id} is gone")
            if now.pid == before.pid:
                return None  # The agent has not told of the restart yet.
            if now.state == "failed":
                raise EngineError(f"{before.id} failed: {now.error}")
            say(now.state)
            return now if now.state == "ready" else None

        try:
            return await self._desk.until(check, RESTART_TIMEOUT_S)
        except TimeoutError:
            raise EngineError(
                f"{before.id} was not ready within {RESTART_TIMEOUT_S:.0f} s"
            ) from None
