"""Waits until a node's engines have changed, and until nobody computes on those that must go.

Whoever changes engines keeps new work away from them meanwhile (`Wishes.paused`).
"""

from __future__ import annotations

from collections.abc import Collection

from olol_tui.errors import EngineError
from olol_tui.fleet.desk import Desk
from olol_tui.fleet.operations import Report

SETTLE_S = 120.0
"""For old engines to end and new ones to answer."""


def pids_of(desk: Desk, engine_ids: Collection[str]) -> dict[str, int | None]:
    """Taken before the change: an engine that stays by name must have another process after."""
    found = {one: desk.engine(one) for one in engine_ids}
    return {one: engine.pid for one, engine in found.items() if engine is not None}


async def settled(
    desk: Desk,
    report: Report,
    node: str,
    *,
    going: Collection[str],
    coming: Collection[str],
    pids: dict[str, int | None],
) -> None:
    """Return when the engines in `going` have ended and those in `coming` answer.

    Args:
        pids: of the engines that are in both, before.

    Raises:
        EngineError: one of them failed, or it takes too long.
    """

    def check() -> bool | None:
        leaving = [one for one in going if one not in coming and _lives(desk, one)]
        if leaving:
            report.say(f"stops {', '.join(leaving)}")
            return None
        for one in coming:
            engine = desk.engine(one)
            if engine is not None and engine.state == "failed":
                raise EngineError(f"{one} failed: {engine.error}")
            is_old = engine is not None and one in pids and engine.pid == pids[one]
            if engine is None or engine.state != "ready" or is_old:
                report.say(f"starts {one}")
                return None
        return True

    try:
        await desk.until(check, SETTLE_S)
    except TimeoutError:
        raise EngineError(
            f"the engines of {node} have not changed within {SETTLE_S:.0f} s",
            hint="The wish is kept; it is carried out when the node answers.",
        ) from None


def _lives(desk: Desk, engine_id: str) -> bool:
    engine = desk.engine(engine_id)
    return engine is not None and engine.state != "stopped"
