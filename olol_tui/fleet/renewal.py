"""Engines that still run from a release that is no longer installed: restarted, one by one.

Only those that run an Ollama that olol-tui installed; each is first left to finish what it
computes, while the others take the new work.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from olol_tui.fleet.desk import Desk
from olol_tui.fleet.drains import Drains
from olol_tui.fleet.maintenance import Maintenance
from olol_tui.fleet.operations import Report
from olol_tui.fleet.snapshot import Engine

if TYPE_CHECKING:
    from olol_tui.provision.facts import Ollama


class Renewal:
    def __init__(self, desk: Desk, drains: Drains, maintenance: Maintenance) -> None:
        self._desk = desk
        self._drains = drains
        self._maintenance = maintenance

    def outdated(self, node: str, installed: Ollama | None) -> list[Engine]:
        """Engines of a node that run another version than the one that is ours there now."""
        if installed is None or not installed.release or not installed.version:
            return []
        return [
            engine
            for found in self._desk.nodes
            if found.name == node
            for engine in found.engines
            if engine.kind == "ollama" and engine.version not in ("", installed.version)
        ]

    async def renew(self, report: Report, engines: list[Engine]) -> str:
        """Restart these, the one after the other has come back; what was done.

        Raises:
            NodeError, EngineError: one does not come back; those after it go on as they are.
        """
        cut = ""
        for number, engine in enumerate(engines, 1):
            place = f"{engine.id} ({number} of {len(engines)})"
            with self._desk.wishes.paused([engine.id]):
                cut += await self._drains.engines(report, [engine.id])
                report.say(f"restarting {place}")
                await self._maintenance.restarted(engine, partial(_tell, report, place))
        names = ", ".join(engine.id for engine in engines)
        return f"restarted for the new Ollama, one by one: {names}{cut}"


def _tell(report: Report, place: str, state: str) -> None:
    report.say(f"restarting {place}: {state}")
