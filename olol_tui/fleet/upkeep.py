"""What is due once a tick: what is idle goes, what is pinned is there, splits go a step on."""

from __future__ import annotations

import logging

from olol_tui.fleet.desk import Desk
from olol_tui.fleet.pins import PinKeeper
from olol_tui.fleet.placing import Placer
from olol_tui.fleet.splits import Splits

log = logging.getLogger("olol.fleet.upkeep")


class Upkeep:
    """Args: tick_s: time between two rounds; splits are looked at with every call."""

    def __init__(self, desk: Desk, placer: Placer, splits: Splits, *, tick_s: float) -> None:
        self._desk = desk
        self._placer = placer
        self._splits = splits
        self._pins = PinKeeper(desk, placer)
        self._gap_s = tick_s * 0.9
        self._last_s = 0.0

    def hurry(self) -> None:
        """Something is due now."""
        self._last_s = 0.0

    def look(self, now_s: float) -> None:
        """Called before every snapshot."""
        if now_s - self._last_s >= self._gap_s:
            self._last_s = now_s
            self._expire(now_s)
            self._pins.check(now_s)
        self._splits.look(now_s)

    def _expire(self, now_s: float) -> None:
        for engine_id in self._desk.leases.expired(
            (engine for node in self._desk.nodes for engine in node.engines),
            is_busy=lambda engine_id: bool(self._desk.busy(engine_id)),
            is_pinned=lambda engine: any(one.pinned for one in engine.loaded),
            now_s=now_s,
        ):
            log.info("%s was idle for its keep-alive: stopping it", engine_id)
            if (split := self._splits.owner_of(engine_id)) is not None:
                self._splits.withdraw(split)
            else:
                self._placer.runners.withdraw(engine_id)
