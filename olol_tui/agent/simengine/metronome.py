"""Many repeating beats on one timer of the event loop.

A decode step is due for every running request some tens of times a second. One heap of
plain tuples and one loop timer cost a fraction of a timer object per step, and nothing
at all when no request runs.
"""

from __future__ import annotations

import asyncio
import heapq
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    Step = Callable[[], float | None]
    """Does one beat; returns seconds to the next one, None to end."""


class Beat:
    """A running sequence of steps; `stop()` ends it."""

    __slots__ = ("_step",)

    def __init__(self, step: Step) -> None:
        self._step: Step | None = step

    def stop(self) -> None:
        self._step = None

    def fire(self) -> float | None:
        return None if self._step is None else self._step()


class Metronome:
    """Calls steps when they are due; steps that are late catch up without drifting."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._due: list[tuple[float, int, Beat]] = []
        self._count = 0
        self._timer: asyncio.TimerHandle | None = None
        self._armed_at = 0.0

    def start(self, step: Step, delay_s: float) -> Beat:
        """Calls `step` after `delay_s` and then as often as it asks for."""
        beat = Beat(step)
        self._push(self._loop.time() + delay_s, beat)
        self._arm()
        return beat

    def _push(self, at: float, beat: Beat) -> None:
        self._count += 1  # breaks ties: beats cannot be compared
        heapq.heappush(self._due, (at, self._count, beat))

    def _arm(self) -> None:
        if not self._due:
            return
        at = self._due[0][0]
        if self._timer is not None:
            if self._armed_at <= at:
                return
            self._timer.cancel()
        self._armed_at = at
        self._timer = self._loop.call_at(at, self._tick)

    def _tick(self) -> None:
        self._timer = None
        now = self._loop.time()
        due = self._due
        while due and due[0][0] <= now:
            at, _, beat = heapq.heappop(due)
            delay_s = beat.fire()
            if delay_s is not None:
                # Counted from when it was due, so that the mean rate is exact; but after
                # a stall of the process no burst of more than a second is caught up.
                self._push(max(at + delay_s, now - 1.0), beat)
        self._arm()
