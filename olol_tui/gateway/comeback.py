"""Requests that nobody can take but an engine that has failed them: one that lives gets them
again.

Whoever lost its engine goes elsewhere, and where there is no other place it waits for that
engine. A new process shows in the fleet; an engine that only stumbled, or that nobody manages,
shows in nothing but its answers, so it is asked for one.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from olol_tui.gateway.asking import Lost
from olol_tui.gateway.pulse import greet
from olol_tui.routing.roster import Seat

if TYPE_CHECKING:
    from olol_tui.gateway.gateway import Gateway

log = logging.getLogger("olol.gateway")

ASK_AGAIN_S = 0.5
"""From the end of a question without an answer to the next one."""


class Comebacks:
    """Of one gateway: one question at a time for each engine."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._asking: dict[str, asyncio.Task[None]] = {}
        """By engine address."""

    def look(self) -> None:
        """Ask those engines that somebody waits for in vain."""
        gateway = self._gateway
        for ticket in gateway.queue.forsaken(gateway.now()):
            for seat in gateway.roster.seats(ticket.ask.model, ticket.ask.distributed):
                awaited = seat.incarnation in ticket.ask.exclude and not seat.refused
                if awaited and seat.address and seat.address not in self._asking:
                    task = asyncio.get_running_loop().create_task(self._ask(seat))
                    self._asking[seat.address] = task

    async def _ask(self, seat: Seat) -> None:
        gateway = self._gateway
        try:
            await greet(gateway.pool, seat, gateway.settings.patience.probe_after_s)
        except Lost:
            await asyncio.sleep(ASK_AGAIN_S)
        else:
            self._is_back(seat)
        finally:
            del self._asking[seat.address]
        # By then it may have another address, or nobody may wait for it any more.
        self.look()

    def _is_back(self, seat: Seat) -> None:
        gateway = self._gateway
        waiting = [
            ticket
            for ticket in gateway.queue.forsaken(gateway.now())
            if seat.incarnation in ticket.ask.exclude
        ]
        if waiting:
            log.info("engine answers", extra={"engine": seat.key, "requests": len(waiting)})
        for ticket in waiting:
            gateway.dispatcher.readmit(ticket, seat.incarnation)

    async def close(self) -> None:
        tasks = list(self._asking.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
