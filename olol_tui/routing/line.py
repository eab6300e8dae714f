"""What waits for one model: two classes in fair order, and those bound to certain engines."""

from __future__ import annotations

from collections.abc import Iterator

from olol_tui.routing.decision import NOBODY, Decision
from olol_tui.routing.lane import Lane
from olol_tui.routing.ticket import Ticket

BATCH_TURN_S = 30.0
"""Batch requests of a model get a slot before interactive ones when they had none for so long:
they make progress however many interactive ones come."""


class Line:
    """Interactive requests first, batch ones when none of those waits or their turn has come."""

    __slots__ = (
        "batch", "bound", "count", "decided_s", "decision", "interactive", "model",
        "nobody_s", "served_s", "turn_s",
    )  # fmt: skip

    def __init__(self, model: str, now_s: float) -> None:
        self.model = model
        self.interactive = Lane()
        self.batch = Lane()
        self.count = 0
        self.bound: list[Ticket] = []
        """Those that not every engine will do for: tried first, in nobody's way."""
        self.decision: Decision | None = None
        """Why the next one waits."""
        self.decided_s = now_s
        self.nobody_s: float | None = None
        """Since when no engine could take anybody; None while one could."""
        self.served_s = now_s
        """Since when it waits that somebody is served."""
        self.turn_s = now_s
        """Since when batch requests wait for a turn."""

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Ticket]:
        """Everybody, in no order that means anything."""
        yield from self.bound
        yield from self.interactive
        yield from self.batch

    def lane(self, ticket: Ticket) -> Lane:
        return self.batch if ticket.terms.batch else self.interactive

    def add(self, ticket: Ticket, now_s: float) -> None:
        if not self.count:
            self.served_s = now_s
        self.count += 1
        if ticket.is_bound:
            self.bound.append(ticket)
            return
        if ticket.terms.batch and not len(self.batch):
            self.turn_s = now_s
        self.lane(ticket).add(ticket)

    def take(self, lane: Lane, ticket: Ticket, cost_s: float) -> None:
        """A ticket of a lane has got a slot."""
        lane.take(ticket, cost_s)
        self.count -= 1

    def remove(self, ticket: Ticket) -> None:
        self.count -= 1
        if ticket.lane is None:
            self.bound.remove(ticket)
        else:
            ticket.lane.remove(ticket)
            ticket.lane = ticket.flow = None

    def next_lane(self, now_s: float) -> Lane | None:
        """From which the next one is taken."""
        if not len(self.batch):
            return self.interactive if len(self.interactive) else None
        if not len(self.interactive) or now_s - self.turn_s >= BATCH_TURN_S:
            return self.batch
        return self.interactive

    def decided(self, decision: Decision, now_s: float) -> None:
        """About whoever is next."""
        self.decision = decision
        self.decided_s = now_s
        if decision.reason != NOBODY:
            self.nobody_s = None
        elif self.nobody_s is None:
            self.nobody_s = now_s

    def served(self, ticket: Ticket, now_s: float) -> None:
        """A ticket has left for its slot."""
        self.served_s = now_s
        if ticket.terms.batch:
            self.turn_s = now_s

    def share(self, flow: str) -> float:
        """Of the slots, what falls to a flow: 0..1."""
        weights = self.interactive.weights() | self.batch.weights()
        return weights.get(flow, 1.0) / max(1.0, sum(weights.values()))

    def position(self, ticket: Ticket, cost_s: float) -> int:
        """1 is next."""
        if ticket.lane is None:
            return self.bound.index(ticket) + 1
        position = len(self.bound) + ticket.lane.position(ticket, cost_s)
        return position + len(self.interactive) if ticket.lane is self.batch else position

    def order(self, cost_s: float) -> Iterator[Ticket]:
        """Everybody, in the order in which they would be served if nobody else came."""
        yield from self.bound
        yield from self.interactive.order(cost_s)
        yield from self.batch.order(cost_s)
