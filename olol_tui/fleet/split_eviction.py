"""Idle models make room for a split: what a plan counts on is carried out here."""

from __future__ import annotations

from olol_tui.errors import PlacementError
from olol_tui.fleet.desk import Desk
from olol_tui.fleet.operations import Report
from olol_tui.fleet.residency import Residency
from olol_tui.fleet.runners import Runners
from olol_tui.fleet.snapshot import RUNNERS
from olol_tui.fleet.split_planning import Victim

IDLE_TIMEOUT_S = 120.0
"""For requests that a model began while its memory was being planned for."""


class Eviction:
    """One per controller."""

    def __init__(self, desk: Desk, runners: Runners) -> None:
        self._desk = desk
        self._runners = runners
        self._residency = Residency(desk)

    async def evict(self, report: Report, victim: Victim) -> None:
        """Unload an idle model. What a client began in the meantime ends first.

        Raises:
            PlacementError: it does not become idle.
        """
        where = f"{victim.node}/{victim.device.label}"
        report.say(f"unloading {victim.model} from {where}")
        engine = victim.engine

        def idle() -> bool | None:
            return True if victim.model not in self._desk.busy(engine.id) else None

        with self._desk.wishes.paused([engine.id]):
            try:
                await self._desk.until(idle, IDLE_TIMEOUT_S)
            except TimeoutError:
                raise PlacementError(
                    f"{victim.model} on {where} does not become idle to make room"
                ) from None
            if engine.kind in RUNNERS:
                await self._runners.stop(report, engine)
            else:
                await self._residency.unload(report, engine.id, victim.model)
