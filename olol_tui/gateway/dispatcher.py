"""Carries out what the queue decides, and what operators want of what waits in it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from olol_tui.errors import OlolError
from olol_tui.fleet.snapshot import RUNNERS
from olol_tui.gateway.exchange import Exchange
from olol_tui.gateway.message import RETRY_AFTER
from olol_tui.models.names import canonical
from olol_tui.routing.outlook import Place
from olol_tui.routing.ticket import Dispatch, Expire, Load, Step, Ticket

if TYPE_CHECKING:
    from olol_tui.gateway.gateway import Gateway
    from olol_tui.gateway.lifecycle import Lifecycle

STUCK_S = 30.0
"""How long a request waits while no engine could take it at all."""
_PLACES_SHOWN = 512
"""Of the requests that wait, for how many a snapshot tells where they are in their lines."""


class CannotReroute(OlolError):
    title = "The request cannot be sent elsewhere"


class Dispatcher:
    """Between the queue, which is pure, and the exchanges. One per gateway."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._queue = gateway.queue
        self._loop = asyncio.get_running_loop()
        self._expiry: asyncio.TimerHandle | None = None
        self.exchanges: dict[str, Exchange] = {}
        """Every request that is queued or runs, by id."""

    def close(self) -> None:
        for exchange in list(self.exchanges.values()):
            exchange.cancel("the gateway is shutting down")
        if self._expiry is not None:
            self._expiry.cancel()

    # -- in and out

    def admit(self, exchange: Exchange) -> None:
        """A new exchange: know it, and queue it."""
        self.exchanges[exchange.record.id] = exchange
        self.enqueue(exchange)

    def enqueue(self, exchange: Lifecycle) -> None:
        """Queue an exchange's ticket, also again for a retry."""
        gateway, ticket = self._gateway, exchange.ticket
        self._carry_out(self._queue.submit(ticket, gateway.roster, gateway.now()))
        if ticket.waits and ticket.terms.deadline_s is not None:
            self._watch_deadlines()
        gateway.poke()

    def release(self, exchange: Lifecycle) -> None:
        """A slot is free: give it to the next in line."""
        gateway, queue = self._gateway, self._queue
        ticket: Ticket = exchange.ticket
        seat, now = ticket.seat, gateway.now()
        queue.release(ticket, now)
        if seat is not None and seat.engine:
            gateway.fleet.touch(seat.engine, exchange.model, exchange.keep_alive_s)
            if seat.kind not in RUNNERS and (
                exchange.keep_alive_s is not None or ticket.load_began_s is not None
            ):
                gateway.residents.changed(seat.engine)
        if steps := queue.pump(ticket.ask.model, gateway.roster, now, freed=True):
            self._carry_out(steps)

    def pump(self, model: str) -> None:
        """Something about a model has changed."""
        gateway = self._gateway
        self._carry_out(self._queue.pump(model, gateway.roster, gateway.now()))

    def pump_all(self) -> None:
        """The fleet has changed, or some time has passed."""
        gateway = self._gateway
        self._carry_out(self._queue.pump_all(gateway.roster, gateway.now()))

    def set_paused(self, models: tuple[str, ...]) -> None:
        """Which models' requests stay where they are; those of others go on with the next
        pump."""
        self._queue.room.paused = frozenset(models)

    def load_failed(self, model: str, status: int, message: str) -> None:
        """Whoever waits only for this load hears what the engine said."""
        if any(seat.warm and not seat.refused for seat in self._gateway.roster.seats(model)):
            self.pump(model)
            return
        for ticket in self._queue.drop_waiting(model):
            exchange: Exchange = ticket.owner
            exchange.record.cause = "load_failed"
            exchange.refuse(status, message)

    def refuse_stuck(self) -> None:
        """Tell those that no engine could take for too long."""
        gateway = self._gateway
        for ticket, decision in self._queue.stuck(gateway.now(), STUCK_S):
            exchange: Exchange = ticket.owner
            exchange.refuse(503, f"{exchange.model}: {decision.text}", RETRY_AFTER)

    def readmit(self, ticket: Ticket, incarnation: str) -> None:
        """One that waits may have an engine again that failed it before."""
        self._queue.readmit(ticket, incarnation)
        self.enqueue(ticket.owner)

    def _carry_out(self, steps: list[Step]) -> None:
        for step in steps:
            if isinstance(step, Dispatch):
                step.ticket.owner.dispatch(step.seat, step.decision)
            elif isinstance(step, Load):
                self._gateway.loader.start(step, self._gateway.roster)
            elif isinstance(step, Expire):
                self._expired(step.ticket)
            else:
                exchange: Exchange = step.ticket.owner
                exchange.refuse(503, f"{exchange.model}: {step.decision.text}", RETRY_AFTER)

    # -- deadlines

    def _watch_deadlines(self) -> None:
        due_s = self._queue.room.next_deadline_s
        if due_s is None or (self._expiry is not None and self._expiry.when() <= due_s):
            return
        if self._expiry is not None:
            self._expiry.cancel()
        self._expiry = self._loop.call_at(due_s, self._expire)

    def _expire(self) -> None:
        self._expiry = None
        self._carry_out(self._queue.expire(self._gateway.now()))
        self._watch_deadlines()

    def _expired(self, ticket: Ticket) -> None:
        exchange: Exchange = ticket.owner
        waited_s = self._gateway.now() - exchange.record.arrived_s
        reason = ticket.decision or self._queue.reason_to_wait(exchange.model)
        why = "" if reason is None else f": {reason.text}"
        exchange.record.cause = "deadline"
        exchange.refuse(
            504, f"{exchange.model}: its deadline passed after {waited_s:.1f} s in the queue{why}"
        )

    # -- what operators see and do

    def places(self) -> dict[str, Place]:
        """By request id, where the next ones of each model are; their records learn why they
        wait."""
        gateway, queue = self._gateway, self._queue
        models = queue.waiting_models()
        found: dict[str, Place] = {}
        now = gateway.now()
        for model in models:
            limit = max(16, _PLACES_SHOWN // len(models))
            reason = queue.reason_to_wait(model)
            for ticket, place in queue.outlook.places(model, limit, gateway.roster, now):
                exchange: Exchange = ticket.owner
                exchange.record.why = ticket.decision or reason
                found[exchange.record.id] = place
        return found

    def place(self, request_id: str) -> Place | None:
        """Where a request waits; None when it does not."""
        exchange = self.exchanges.get(request_id)
        if exchange is None or not exchange.ticket.waits:
            return None
        gateway = self._gateway
        return self._queue.outlook.place(exchange.ticket, gateway.roster, gateway.now())

    def cancel(self, request_id: str) -> bool:
        """Cancel a queued or running request; False when there is none of that id."""
        exchange = self.exchanges.get(request_id)
        if exchange is None:
            return False
        exchange.cancel("cancelled by the operator")
        return True

    def reroute(self, request_id: str, to: str, away: str) -> None:
        """Send a queued request to an engine or node, away from one, or (both empty) wherever
        the policy likes again.

        Raises:
            CannotReroute: it does not wait, or no engine there has its model.
        """
        exchange = self.exchanges.get(request_id)
        if exchange is None or not exchange.ticket.waits:
            raise CannotReroute(
                f"no request {request_id[:40]!r} waits",
                hint="What runs already stays where it is; it can be cancelled.",
            )
        seats = self._gateway.roster.seats(canonical(exchange.model))
        names = [(seat.engine, seat.key, seat.node) for seat in seats]
        if to and not any(to in one for one in names):
            raise CannotReroute(
                f"{to} has no engine that could run {exchange.model}",
                hint="It could go to: " + (", ".join(sorted({one[2] for one in names})) or "none"),
            )
        if away and all(away in one for one in names):
            raise CannotReroute(f"{exchange.model} is nowhere but on {away}")
        ticket = exchange.ticket
        self._queue.withdraw(ticket)
        ticket.only, ticket.away = to, away
        self.enqueue(exchange)
