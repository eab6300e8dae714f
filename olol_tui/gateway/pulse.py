"""Whether an engine that is silent lives at all: asked only then, and once for all who wait.

A reply may be long in coming, so silence alone proves little; but an engine that works answers
what it is within moments, and a frozen one never does.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from olol_tui.fleet.snapshot import RUNNERS
from olol_tui.gateway import upstream
from olol_tui.gateway.asking import Lost, ask
from olol_tui.routing.roster import Seat

MISSES = 2
"""Questions in a row without an answer before it counts as dead."""


async def greet(pool: upstream.UpstreamPool, seat: Seat, timeout_s: float) -> None:
    """Ask an engine what it is. Any answer will do: a busy one says so, an old one does not know
    the path.

    Raises:
        Lost: it gave none.
    """
    path = "/health" if seat.kind in RUNNERS else "/api/version"
    await ask(pool, seat.address, "GET", path, timeout_s=timeout_s)


@dataclass(slots=True)
class _Beat:
    unanswered: list[float] = field(default_factory=list)
    """When the last questions were asked, since an answer came."""
    asked_s: float = 0.0
    task: asyncio.Task[None] | None = None


class Pulse:
    """By engine address."""

    def __init__(self, pool: upstream.UpstreamPool) -> None:
        self._loop = asyncio.get_running_loop()
        self._pool = pool
        self._beats: dict[str, _Beat] = {}

    def is_dead(self, seat: Seat, since_s: float, now_s: float, wait_s: float) -> bool:
        """Called again and again while it is silent; asks when it is time to.

        Args:
            since_s: when it fell silent. What an earlier silence told says nothing about this
                one: it may have come to itself between them.
            wait_s: for an answer, and between two questions.
        """
        beat = self._beats.get(seat.address)
        if beat is None:
            beat = self._beats[seat.address] = _Beat()
        if beat.task is None and now_s - beat.asked_s >= wait_s:
            beat.asked_s = now_s
            beat.task = self._loop.create_task(self._ask(seat, beat, wait_s))
        unanswered = beat.unanswered
        return len(unanswered) >= MISSES and unanswered[-MISSES] >= since_s

    async def _ask(self, seat: Seat, beat: _Beat, wait_s: float) -> None:
        try:
            await greet(self._pool, seat, wait_s)
            beat.unanswered.clear()
        except Lost:
            beat.unanswered = [*beat.unanswered, beat.asked_s][-MISSES:]
        finally:
            beat.task = None

    async def close(self) -> None:
        tasks = [beat.task for beat in self._beats.values() if beat.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
