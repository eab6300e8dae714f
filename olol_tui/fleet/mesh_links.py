"""How far nodes are from each other, as they measure it themselves."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable

from olol_tui.errors import OlolError
from olol_tui.fleet.crew import Crew
from olol_tui.fleet.link_book import LinkBook
from olol_tui.placement.split import Links

log = logging.getLogger("olol.fleet.mesh")

FRESH_S = 300.0
HEADS_ASKED = 8
"""Each measures to every other node: more heads would tell little."""


class MeshLinks:
    """Round trips by (from, to), measured when they are asked for and good for a while."""

    def __init__(self, crew: Crew, book: LinkBook) -> None:
        self._crew = crew
        self._book = book
        self._measured_s: dict[tuple[str, str], float] = {}

    async def between(self, heads: Iterable[str], workers: Iterable[str]) -> Links:
        """Those that could be measured; nodes that do not reach each other are left out."""
        others = list(workers)
        await asyncio.gather(*(self._measure(head, others) for head in sorted(heads)[:HEADS_ASKED]))
        now_s = time.monotonic()
        fresh = [pair for pair, at_s in self._measured_s.items() if now_s - at_s < FRESH_S]
        return self._book.links(fresh)

    async def _measure(self, head: str, workers: Iterable[str]) -> None:
        now_s = time.monotonic()
        others = [worker for worker in workers if worker != head]
        stale = [
            worker
            for worker in others
            if now_s - self._measured_s.get((head, worker), -FRESH_S) >= FRESH_S
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
                self._measured_s[head, worker] = now_s
                self._book.note(head, worker, rtt_s=trip_s)
