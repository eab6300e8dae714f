"""A request on its way through the queue, and what the queue has the gateway do with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from olol_tui.routing.decision import Ask, Decision
from olol_tui.routing.roster import Seat

if TYPE_CHECKING:
    from olol_tui.routing.lane import Flow, Lane


class Terms(NamedTuple):
    """On which terms a request waits beside others."""

    flow: str = ""
    """Whose request it is: what waits of one flow has one share of the slots."""
    weight: float = 1.0
    """Of that share."""
    batch: bool = False
    """Takes only what interactive requests leave."""
    deadline_s: float | None = None
    """Clock after which nobody wants it any more."""


PLAIN = Terms()


class Ticket(msgspec.Struct, eq=False):
    """One request on its way through the queue."""

    ask: Ask
    owner: Any
    """Whoever carries out the steps; opaque here."""
    enqueued_s: float
    terms: Terms = PLAIN
    seat: Seat | None = None
    decision: Decision | None = None
    """The latest one about this ticket; of those that wait only the next in line has one."""
    load_began_s: float | None = None
    """When a load was started for it."""
    load_reason: str = ""
    """Why there, and what went for it."""
    only: str = ""
    """Engine or node where the operator sent it."""
    away: str = ""
    """Engine or node that it must not go to, by the operator."""
    order: tuple[float, int] = (0.0, 0)
    """Among its flow's: the earlier deadline first, then who came first. Set by the queue."""
    waits: bool = False
    flow: Flow | None = None
    """Where it is charged; None for one that waits apart from its lane."""
    lane: Lane | None = None
    """Where it waits or was charged."""
    charged_s: float = 0.0
    """Slot time that its flow was charged in advance."""
    taken_s: float = 0.0
    """When it got its slot."""

    @property
    def is_bound(self) -> bool:
        """Not every engine that has the model will do: it waits beside the others, so that it
        does not hold them up."""
        return bool(self.only or self.away or self.ask.exclude)

    def retried(self, ask: Ask, now_s: float) -> Ticket:
        """For another try: it keeps its place before those that came later."""
        return Ticket(
            ask,
            self.owner,
            now_s,
            self.terms,
            only=self.only,
            away=self.away,
            order=self.order,
        )


class Dispatch(msgspec.Struct, frozen=True):
    """Send this request to this seat now; its slot is taken."""

    ticket: Ticket
    seat: Seat
    decision: Decision


class Load(msgspec.Struct, frozen=True):
    """Make the model resident at this seat; report with `load_ended`."""

    seat: Seat
    model: str
    num_ctx: int | None
    decision: Decision


class Fail(msgspec.Struct, frozen=True):
    """No engine will ever serve this one."""

    ticket: Ticket
    decision: Decision


class Expire(msgspec.Struct, frozen=True):
    """Its deadline passed while it waited."""

    ticket: Ticket


Step = Dispatch | Load | Fail | Expire
