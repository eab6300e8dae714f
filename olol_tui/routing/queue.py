"""Who waits, who runs, and what to do next.

Pure: takes tickets, a Roster and a clock value, returns steps for the gateway to carry out.
Models do not wait for each other: each has a line of its own, with weighted fair order between
the flows in it (routing.lane) and batch behind interactive (routing.line). A policy decides for
whoever is next; room for a model that is kept out is made by the policy's claims.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from msgspec import structs

from olol_tui.routing.books import Books
from olol_tui.routing.decision import NOBODY, Decision, Occupancy, Policy
from olol_tui.routing.ejection import Ejection
from olol_tui.routing.lane import Lane
from olol_tui.routing.line import BATCH_TURN_S, Line
from olol_tui.routing.outlook import Outlook
from olol_tui.routing.policy import expected
from olol_tui.routing.room import WaitingRoom
from olol_tui.routing.roster import Roster, Seat
from olol_tui.routing.speeds import Speeds
from olol_tui.routing.ticket import Dispatch, Expire, Fail, Load, Step, Ticket

PAUSED = "the model is paused by the operator"
LOOK_AHEAD = 8
"""How many may pass those who wait for a better slot than the free one."""
RECONSIDER_S = 0.1
"""How often it is asked again, when a slot has just been given away, whether a load would pay."""
FORSAKEN_S = 5.0
"""How long a request waits for room elsewhere rather than go where it has failed before."""
_BOUND_TRIED = 16
"""Of the tickets that are bound to certain engines, how many are tried at a time."""
_MAKES_ROOM = "where it is loaded, room is made for a model that waits longer"
_BATCH_WAITS = "a batch request has nothing loaded for it while interactive ones wait"


def always_expected(_: str) -> Policy:
    return expected


@dataclass(slots=True)
class Queue:
    """Who waits, and the books of what runs where."""

    room: WaitingRoom = field(default_factory=WaitingRoom)
    speeds: Speeds = field(default_factory=Speeds)
    ejection: Ejection = field(default_factory=Ejection)
    policy_of: Callable[[str], Policy] = always_expected
    """By canonical model name."""
    books: Books = field(default_factory=Books)
    outlook: Outlook = field(init=False)
    _busy: Occupancy = field(init=False)

    def __post_init__(self) -> None:
        self._busy = self.books.occupancy(self.room.queued_of)
        self.outlook = Outlook(self.room, self._busy, self.speeds)

    # -- what there is

    @property
    def queued(self) -> int:
        return self.room.queued

    @property
    def running(self) -> int:
        return sum(self.books.by_model.values())

    def running_of(self, model: str) -> int:
        return self.books.running_of(model)

    def runs_on(self, engine: str, model: str) -> int:
        return self.books.running.get((engine, model), 0)

    def queued_of(self, model: str) -> int:
        return self.room.queued_of(model)

    def waiting_models(self) -> list[str]:
        return self.room.waiting()

    def reason_to_wait(self, model: str) -> Decision | None:
        """Why the head of a model's queue, and so all behind it, still waits."""
        line = self.room.lines.get(model)
        return line.decision if line is not None and line.count else None

    def loading(self, model: str) -> bool:
        return any(name == model for _, name in self.books.loads)

    def loads(self) -> dict[tuple[str, str], float]:
        """(seat key, model) → when our load of it began."""
        return dict(self.books.loads)

    # -- in and out

    def submit(self, ticket: Ticket, roster: Roster, now_s: float) -> list[Step]:
        """Add a ticket and say what follows from it."""
        model, room, books = ticket.ask.model, self.room, self.books
        line = room.line(model, now_s)
        room.number(ticket)
        books.demand.arrived(model, books.by_model.get(model, 0) + line.count + 1, now_s)
        if not line.count and model not in room.paused:
            decision = self._decide(ticket, roster, 1, 0.0, now_s)
            seat = decision.seat
            if decision.action == "dispatch" and seat is not None:
                if not ticket.is_bound:
                    lane = line.batch if ticket.terms.batch else line.interactive
                    lane.pass_through(ticket, self.outlook.cost_s(model))
                return [self._take(line, ticket, seat, decision, now_s)]
        room.add(line, ticket, now_s)
        return self.pump(model, roster, now_s)

    def pump(self, model: str, roster: Roster, now_s: float, *, freed: bool = False) -> list[Step]:
        """Everything that can happen now for one model's queue, and for those who wait for
        room that became free meanwhile.

        Args:
            freed: only a slot was given back; whether a load would pay was asked lately.
        """
        if not self.room.queued:
            self.books.freed = False
            return []
        steps = self._pump(model, roster, now_s, freed=freed)
        if self.books.freed:
            self.books.freed = False
            for other in self.room.waiting():
                if other != model:
                    steps += self._pump(other, roster, now_s)
        return steps

    def pump_all(self, roster: Roster, now_s: float) -> list[Step]:
        """After a new snapshot: look at every queue again."""
        steps: list[Step] = []
        self.books.freed = False
        for model in self.room.waiting():
            steps += self._pump(model, roster, now_s)
        return steps

    def expire(self, now_s: float) -> list[Step]:
        """Take out those whose deadline has passed."""
        return [Expire(ticket) for ticket in self.room.overdue(now_s)]

    def withdraw(self, ticket: Ticket) -> bool:
        """Take a waiting ticket out; False if it does not wait."""
        if not ticket.waits:
            return False
        model = ticket.ask.model
        line = self.room.lines[model]
        self.room.withdraw(line, ticket)
        if not line.count:
            self.books.claim("", model)
        return True

    def drop_waiting(self, model: str) -> list[Ticket]:
        """Take out everything that waits for a model: its load failed for good."""
        self.books.claim("", model)
        return self.room.drop(model)

    def stuck(self, now_s: float, limit_s: float) -> list[tuple[Ticket, Decision]]:
        """Take out those that have waited so long while no engine could take them at all."""
        found: list[tuple[Ticket, Decision]] = []
        for line in self.room.lines.values():
            nobody = line.nobody_s is not None and now_s - line.nobody_s > limit_s
            for ticket in list(line) if nobody else list(line.bound):
                reason = line.decision if ticket.lane is not None else ticket.decision
                waited = now_s - ticket.enqueued_s > limit_s
                if waited and reason is not None and reason.reason == NOBODY:
                    self.room.withdraw(line, ticket)
                    found.append((ticket, reason))
        return found

    def forsaken(self, now_s: float) -> list[Ticket]:
        """Those that have no place to go, or none for long, but engines that failed them before:
        they may have one of those again if it works."""
        return [
            ticket
            for line in self.room.lines.values()
            for ticket in line.bound
            if ticket.ask.exclude
            and ticket.decision is not None
            and (ticket.decision.reason == NOBODY or now_s - ticket.enqueued_s > FORSAKEN_S)
        ]

    def readmit(self, ticket: Ticket, incarnation: str) -> None:
        """Take a waiting ticket out, to be submitted again: that engine may have it too."""
        self.withdraw(ticket)
        ask = ticket.ask
        ticket.ask = structs.replace(ask, exclude=ask.exclude - {incarnation})
        ticket.decision = None

    # -- slots and loads

    def release(self, ticket: Ticket, now_s: float) -> None:
        """Give back the slot of a dispatched ticket."""
        seat, ticket.seat = ticket.seat, None
        if seat is None:
            return
        self.books.release(seat, ticket.ask.model, now_s)
        if self.ejection.watches:
            self.ejection.released(seat.key)
        if ticket.lane is not None and ticket.flow is not None:
            ticket.lane.settle(ticket.flow, now_s - ticket.taken_s - ticket.charged_s)
            ticket.lane = ticket.flow = None

    def load_ended(self, seat_key: str, model: str, now_s: float | None = None) -> None:
        """
        Args:
            now_s: clock, where the load went well.
        """
        self.books.load_ended(seat_key, model, now_s)

    # -- inside

    def _pump(self, model: str, roster: Roster, now_s: float, *, freed: bool = False) -> list[Step]:
        steps: list[Step] = []
        line = self.room.lines.get(model)
        if line is None or not line.count:
            return steps
        if model in self.room.paused:
            line.decided(Decision("wait", reason=PAUSED), now_s)
            self.books.claim("", model)
            return steps
        claim = self._pump_bound(line, roster, now_s, steps) if line.bound else ""
        while (lane := line.next_lane(now_s)) is not None:
            if freed and now_s - line.decided_s < RECONSIDER_S and self._is_busy(model, roster):
                break
            if not self._serve(line, lane, roster, now_s, steps):
                break
        if line.next_lane(now_s) is None:
            self.books.claim(claim, model)
        return steps

    def _serve(
        self, line: Line, lane: Lane, roster: Roster, now_s: float, steps: list[Step]
    ) -> bool:
        """One step for whoever is next in a lane; False when nothing can be done now."""
        # Batch requests wait behind the interactive ones, so those do not count them.
        ahead = line.count if lane is line.batch else line.count - len(line.batch)
        for ticket in self._next(lane):
            if ticket.order[0] <= now_s:
                self.room.withdraw(line, ticket)
                steps.append(Expire(ticket))
                return True
            decision = self._decide(ticket, roster, ahead, now_s - line.served_s, now_s)
            ticket.decision = decision = self._restrain(ticket, line, decision, now_s)
            line.decided(decision, now_s)
            seat = decision.seat
            if decision.action == "dispatch" and seat is not None:
                self.room.take(line, lane, ticket, self.outlook.cost_s(ticket.ask.model))
                steps.append(self._take(line, ticket, seat, decision, now_s))
                return True
            if decision.action == "load" and seat is not None:
                steps.append(self._load(ticket, seat, decision, now_s))
                return True
            if decision.action == "fail":
                self.room.withdraw(line, ticket)
                steps.append(Fail(ticket, decision))
                return True
            if not decision.picky:
                self.books.claim(decision.claim, ticket.ask.model)
                return False
        self.books.claim("", line.model)
        return False

    def _next(self, lane: Lane) -> Iterator[Ticket]:
        """Whoever is next, and those who may pass when a slot is free but not good enough."""
        head = lane.head()
        yield head
        order = lane.order(self.outlook.cost_s(head.ask.model))
        yield from itertools.islice(order, 1, LOOK_AHEAD)

    def _pump_bound(self, line: Line, roster: Roster, now_s: float, steps: list[Step]) -> str:
        """Each for itself: what keeps one of them does not keep the next. Returns the seat that
        makes room for one of them, or ""."""
        claim = ""
        for ticket in line.bound[:_BOUND_TRIED]:
            if ticket.order[0] <= now_s:
                self.room.withdraw(line, ticket)
                steps.append(Expire(ticket))
                continue
            waited_s = now_s - ticket.enqueued_s
            decision = self._decide(ticket, roster, 1, waited_s, now_s)
            ticket.decision = decision
            seat = decision.seat
            if decision.action == "load" and seat is not None:
                steps.append(self._load(ticket, seat, decision, now_s))
            elif decision.action == "dispatch" and seat is not None:
                self.room.withdraw(line, ticket)
                steps.append(self._take(line, ticket, seat, decision, now_s))
            elif decision.action == "fail":
                self.room.withdraw(line, ticket)
                steps.append(Fail(ticket, decision))
            else:
                claim = claim or decision.claim
                # Whoever was not tried this time is the next time.
                line.bound.remove(ticket)
                line.bound.append(ticket)
        return claim

    def _decide(
        self, ticket: Ticket, roster: Roster, waiting: int, waited_s: float, now_s: float
    ) -> Decision:
        ask, note = ticket.ask, ""
        seats = roster.seats(ask.model, ask.distributed)
        if self.ejection.watches:
            seats, note = self.ejection.guard(seats, ask.exclude, now_s)
        if ticket.only or ticket.away:
            seats = tuple(_steer(seat, ticket) for seat in seats)
        decision = self.policy_of(ask.model)(
            ask,
            seats,
            roster,
            self._busy,
            self.speeds,
            waiting=waiting,
            waited_s=waited_s,
            now_s=now_s,
        )
        if note and decision.seat is not None:
            decision = structs.replace(decision, reason=f"{decision.reason} ({note})")
        elif decision.reason == NOBODY and any(seat.room in self.books.claims for seat in seats):
            # That ends by itself: it is a queue, and not an outage.
            decision = structs.replace(decision, reason=_MAKES_ROOM)
        return decision

    def _restrain(self, ticket: Ticket, line: Line, decision: Decision, now_s: float) -> Decision:
        """Batch requests have nothing loaded for them while interactive ones wait for anything,
        unless they have waited for too long."""
        if not ticket.terms.batch or (decision.action != "load" and not decision.claim):
            return decision
        if self.room.queued == self.room.batch or now_s - line.served_s >= BATCH_TURN_S:
            return decision
        return structs.replace(decision, action="wait", seat=None, claim="", reason=_BATCH_WAITS)

    def _load(self, ticket: Ticket, seat: Seat, decision: Decision, now_s: float) -> Load:
        self.books.load_began(seat, ticket.ask.model, decision, now_s)
        ticket.load_began_s = now_s
        ticket.load_reason = decision.reason
        return Load(seat, ticket.ask.model, ticket.ask.num_ctx, decision)

    def _take(
        self, line: Line, ticket: Ticket, seat: Seat, decision: Decision, now_s: float
    ) -> Dispatch:
        self.books.take(ticket, seat, now_s)
        if self.ejection.watches:
            self.ejection.taken(seat.key, now_s)
        line.served(ticket, now_s)
        if ticket.load_reason:
            reason = f"{decision.reason}, after {ticket.load_reason}"
            decision = structs.replace(decision, reason=reason)
        ticket.seat = seat
        ticket.decision = decision
        ticket.taken_s = now_s
        return Dispatch(ticket, seat, decision)

    def _is_busy(self, model: str, roster: Roster) -> bool:
        """Every seat where it is loaded is full, as far as is known without deciding."""
        if self.ejection.watches:
            return False
        running = self.books.running
        return not any(
            seat.warm and not seat.refused and running.get((seat.key, model), 0) < seat.slots
            for seat in roster.seats(model)
        )


def _steer(seat: Seat, ticket: Ticket) -> Seat:
    """The seat as a ticket sees it that the operator has sent somewhere."""
    if seat.refused:
        return seat
    if ticket.only and ticket.only not in (seat.engine, seat.key, seat.node):
        return replace(seat, refused=f"the operator sent it to {ticket.only}")
    if ticket.away and ticket.away in (seat.engine, seat.key, seat.node):
        return replace(seat, refused="the operator sent it away from there")
    return seat
