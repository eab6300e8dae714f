"""Whether an engine that is silent lives at all: asked only then, and once for all who wait.

A reply may be long in coming, so silence alone proves little; but an engine that works answers
what it is within moments, and a frozen one never does.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from olol_tui.fleet.snapshot import RUNNERS
from olol_tui.gateway import upstream
from olol_tui.gateway.asking import Lost, ask
from olol_tui.routing.roster import Seat

MISSES = 2
"""Questions in a row without an answer before it counts as dead."""


@dataclass(slots=True)
class _Beat:
    misses: int = 0
    asked_s: float = 0.0
    task: asyncio.Task[None] | None = None


class Pulse:
    """By engine address."""

    def __init__(self, pool: upstream.UpstreamPool) -> None:
        self._loop = asyncio.get_running_loop()
        self._pool = pool
        self._beats: dict[str, _Beat] = {}

    def is_dead(self, seat: Seat, now_s: float, wait_s: float) -> bool:
        """Called again and again while it is silent; asks when it is time to.

        Args:
            wait_s: for an answer, and between two questions.
        """
        beat = self._beats.get(seat.address)
        if beat is None or now_s - beat.asked_s > 3 * wait_s:
            # What was learned of an earlier silence says nothing about this one.
            if beat is not None and beat.task is not None:
                return False
            beat = self._beats[seat.address] = _Beat()
        if beat.task is None and beat.misses < MISSES and now_s - beat.asked_s >= wait_s:
            beat.asked_s = now_s
            beat.task = self._loop.create_task(self._ask(seat, beat, wait_s))
        return beat.misses >= MISSES

    async def _ask(self, seat: Seat, beat: _Beat, wait_s: float) -> None:
        path = "/health" if seat.kind in RUNNERS else "/api/version"
        try:
            # Any answer will do: a busy engine says so, an old one does not know the path.
            await ask(self._pool, seat.address, "GET", path, timeout_s=wait_s)
            beat.misses = 0
        except Lost:
            beat.misses += 1
        finally:
            beat.task = None

    async def close(self) -> None:
        tasks = [beat.task for beat in self._beats.values() if beat.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
