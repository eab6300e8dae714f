"""How far nodes are from each other, as they measure it themselves."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable

from olol_tui.errors import OlolError
from olol_tui.fleet.crew import Crew
from olol_tui.placement.split import Link

log = logging.getLogger("olol.fleet.mesh")

FRESH_S = 300.0
HEADS_ASKED = 8
"""Each measures to every other node: more heads would tell little."""


class MeshLinks:
    """Round trips by (from, to), measured when they are asked for and kept for a while."""

    def __init__(self, crew: Crew) -> None:
        self._crew = crew
        self._known: dict[tuple[str, str], tuple[Link, float]] = {}

    async def between(
        self, heads: Iterable[str], workers: Iterable[str]
    ) -> dict[tuple[str, str], Link]:
        """Those that could be measured; nodes that do not reach each other are left out."""
        others = list(workers)
        await asyncio.gather(*(self._measure(head, others) for head in sorted(heads)[:HEADS_ASKED]))
        now_s = time.monotonic()
        return {pair: link for pair, (link, at_s) in self._known.items() if now_s - at_s < FRESH_S}

    async def _measure(self, head: str, workers: Iterable[str]) -> None:
        now_s = time.monotonic()
        others = [worker for worker in workers if worker != head]
        stale = [
            worker
            for worker in others
            if now_s - self._known.get((head, worker), (None, -FRESH_S))[1] >= FRESH_S
        ]
        targets: dict[str, tuple[str, int]] = {}
        for worker in stale:
            try:
                address = await self._crew.remote_road(worker).address()
            except OlolError:
                continue  # this machine, or one that is not connected now
            host = self._crew.config.nodes[worker].mesh_host or address.host
            targets[worker] = (host, address.port)
        if not targets:
            return
        try:
            trips = await self._crew.session(head).round_trips(list(targets.values()))
        except OlolError as error:
            log.info("%s measures nothing: %s", head, error)
            return
        for worker, trip_s in zip(targets, trips, strict=False):
            if trip_s is not None:
                self._known[head, worker] = Link(rtt_s=trip_s), now_s
