"""Who waits, who runs, and what to do next.

Pure: holds tickets and slot counts, takes a Roster and a clock value, returns steps for the
gateway to carry out. A slot is taken when a ticket is dispatched and given back by `release`.
First come, first served within a model; models do not block each other.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from olol_tui.routing.demand import Demand
from olol_tui.routing.ejection import Ejection
from olol_tui.routing.policy import Ask, Decision, Occupancy, Policy, expected
from olol_tui.routing.prefix import Prefixes
from olol_tui.routing.roster import Roster, Seat
from olol_tui.routing.speeds import Speeds
from olol_tui.routing.survey import CACHES_PER_SLOT


@dataclass(slots=True, eq=False)
class Ticket:
    """One request on its way through the queue."""

    ask: Ask
    owner: Any
    """Whoever carries out the steps; opaque here."""
    enqueued_s: float
    seat: Seat | None = None
    decision: Decision | None = None
    """The latest one about this ticket."""
    load_began_s: float | None = None
    """When a load was started for it."""
    again: bool = False
    """It was running already and lost its engine: it goes before those that were not."""


@dataclass(frozen=True, slots=True)
class Dispatch:
    """Send this request to this seat now; its slot is taken."""

    ticket: Ticket
    seat: Seat
    decision: Decision


@dataclass(frozen=True, slots=True)
class Load:
    """Make the model resident at this seat; report with `load_ended`."""

    seat: Seat
    model: str
    num_ctx: int | None
    decision: Decision


@dataclass(frozen=True, slots=True)
class Fail:
    """No engine will ever serve this one."""

    ticket: Ticket
    decision: Decision


Step = Dispatch | Load | Fail
LOOK_AHEAD = 8
"""How many may pass those who wait for a better slot than the free one."""


def always_expected(_: str) -> Policy:
    return expected


@dataclass(slots=True)
class Queue:
    """Tickets by model, and the books of what runs where."""

    max_queued: int = 256
    speeds: Speeds = field(default_factory=Speeds)
    ejection: Ejection = field(default_factory=Ejection)
    demand: Demand = field(default_factory=Demand)
    prefixes: Prefixes = field(default_factory=Prefixes)
    policy_of: Callable[[str], Policy] = always_expected
    """By canonical model name."""
    queued: int = 0
    _waiting: dict[str, deque[Ticket]] = field(default_factory=dict)
    _running: dict[tuple[str, str], int] = field(default_factory=dict)
    _by_engine: dict[str, int] = field(default_factory=dict)
    _loads: dict[tuple[str, str], float] = field(default_factory=dict)
    _last_used: dict[tuple[str, str], float] = field(default_factory=dict)
    _loaded_at: dict[tuple[str, str], float] = field(default_factory=dict)
    _leaving: dict[tuple[str, str], str] = field(default_factory=dict)
    _claims: dict[str, str] = field(default_factory=dict)
    _freed: bool = False
    """An engine fell idle: whoever waits for room may have it now."""
    _busy: Occupancy = field(init=False)

    def __post_init__(self) -> None:
        self._busy = Occupancy(
            self._running,
            self._by_engine,
            self._loads,
            self._last_used,
            self._loaded_at,
            self._leaving,
            self._claims,
            self.queued_of,
            self.demand,
            self.prefixes,
        )

    @property
    def running(self) -> int:
        return sum(self._running.values())

    def running_of(self, model: str) -> int:
        return sum(n for (_, name), n in self._running.items() if name == model)

    def runs_on(self, engine: str, model: str) -> int:
        return self._running.get((engine, model), 0)

    def queued_of(self, model: str) -> int:
        return len(self._waiting.get(model, ()))

    def waiting_models(self) -> list[str]:
        return list(self._waiting)

    def reason_to_wait(self, model: str) -> Decision | None:
        """Why the head of a model's queue, and so all behind it, still waits."""
        waiting = self._waiting.get(model)
        return waiting[0].decision if waiting else None

    def loading(self, model: str) -> bool:
        return any(name == model for _, name in self._loads)

    @property
    def full(self) -> bool:
        return self.queued >= self.max_queued

    def submit(self, ticket: Ticket, roster: Roster, now_s: float) -> list[Step]:
        """Add a ticket and say what follows from it."""
        model = ticket.ask.model
        waiting = self._waiting.get(model)
        at_once = self.running_of(model) + (0 if waiting is None else len(waiting)) + 1
        self.demand.arrived(model, at_once, now_s)
        if waiting is None:
            decision = self._decide(ticket, roster, 1, now_s)
            if decision.action == "dispatch" and decision.seat is not None:
                return [self._take(ticket, decision.seat, decision, now_s)]
            waiting = self._waiting[model] = deque()
        if ticket.again:
            waiting.appendleft(ticket)
        else:
            waiting.append(ticket)
        self.queued += 1
        return self.pump(model, roster, now_s)

    def pump(self, model: str, roster: Roster, now_s: float) -> list[Step]:
        """Everything that can happen now for one model's queue, and for those who wait for
        room that became free meanwhile."""
        steps = self._pump(model, roster, now_s)
        if self._freed:
            self._freed = False
            for other in [name for name in self._waiting if name != model]:
                steps += self._pump(other, roster, now_s)
        return steps

    def _pump(self, model: str, roster: Roster, now_s: float) -> list[Step]:
        steps: list[Step] = []
        waiting = self._waiting.get(model)
        at, claim = 0, ""
        while waiting and at < min(len(waiting), LOOK_AHEAD):
            ticket = waiting[at]
            decision = self._decide(ticket, roster, len(waiting), now_s)
            ticket.decision = decision
            seat = decision.seat
            if decision.action == "dispatch" and seat is not None:
                del waiting[at]
                self.queued -= 1
                steps.append(self._take(ticket, seat, decision, now_s))
            elif decision.action == "load" and seat is not None:
                self._loads[seat.key, model] = now_s
                for victim in decision.evict:
                    self._leaving[seat.key, victim] = model
                ticket.load_began_s = now_s
                steps.append(Load(seat, model, ticket.ask.num_ctx, decision))
            elif decision.action == "fail":
                del waiting[at]
                self.queued -= 1
                steps.append(Fail(ticket, decision))
            elif decision.picky:
                at += 1
            else:
                claim = decision.claim
                break
        self._claim(claim, model)
        if not waiting:
            self._waiting.pop(model, None)
        return steps

    def _claim(self, seat_key: str, model: str) -> None:
        """The one seat that makes room for a model, "" for none."""
        if not self._claims and not seat_key:
            return
        for key in [key for key, claimant in self._claims.items() if claimant == model]:
            if key != seat_key:
                del self._claims[key]
                self._freed = True
        if seat_key:
            self._claims.setdefault(seat_key, model)

    def pump_all(self, roster: Roster, now_s: float) -> list[Step]:
        """After a new snapshot: look at every queue again."""
        steps: list[Step] = []
        self._freed = False
        for model in list(self._waiting):
            steps += self._pump(model, roster, now_s)
        return steps

    def withdraw(self, ticket: Ticket) -> bool:
        """Take a waiting ticket out; False if it does not wait."""
        waiting = self._waiting.get(ticket.ask.model)
        if waiting is None or ticket not in waiting:
            return False
        waiting.remove(ticket)
        self.queued -= 1
        if not waiting:
            del self._waiting[ticket.ask.model]
            self._claim("", ticket.ask.model)
        return True

    def drop_waiting(self, model: str) -> list[Ticket]:
        """Take out everything that waits for a model: its load failed for good."""
        waiting = self._waiting.pop(model, None)
        if waiting is None:
            return []
        self.queued -= len(waiting)
        self._claim("", model)
        return list(waiting)

    def position(self, ticket: Ticket) -> int:
        """1 is next."""
        return list(self._waiting.get(ticket.ask.model, ())).index(ticket) + 1

    def release(self, ticket: Ticket, now_s: float) -> None:
        """Give back the slot of a dispatched ticket."""
        seat, ticket.seat = ticket.seat, None
        if seat is None:
            return
        key = (seat.key, ticket.ask.model)
        _decrement(self._running, key)
        _decrement(self._by_engine, seat.key)
        self.ejection.released(seat.key)
        self._last_used[key] = now_s
        if seat.key in self._claims or seat.key not in self._by_engine:
            self._freed = True

    def load_ended(self, seat_key: str, model: str, now_s: float | None = None) -> None:
        """
        Args:
            now_s: clock, where the load went well.
        """
        if self._loads.pop((seat_key, model), None) is not None and now_s is not None:
            self._loaded_at[seat_key, model] = now_s
        if self._leaving:
            for place in [p for p, m in self._leaving.items() if p[0] == seat_key and m == model]:
                del self._leaving[place]
        self._freed = True

    def loads(self) -> dict[tuple[str, str], float]:
        """(seat key, model) → when our load of it began."""
        return dict(self._loads)

    def _decide(self, ticket: Ticket, roster: Roster, waiting: int, now_s: float) -> Decision:
        ask = ticket.ask
        seats, note = self.ejection.guard(roster.seats(ask.model), ask.exclude, now_s)
        decision = self.policy_of(ask.model)(
            ask,
            seats,
            roster,
            self._busy,
            self.speeds,
            waiting=waiting,
            waited_s=now_s - ticket.enqueued_s,
            now_s=now_s,
        )
        if note and decision.seat is not None:
            decision = replace(decision, reason=f"{decision.reason} ({note})")
        return decision

    def _take(self, ticket: Ticket, seat: Seat, decision: Decision, now_s: float) -> Dispatch:
        key = (seat.key, ticket.ask.model)
        self._running[key] = self._running.get(key, 0) + 1
        self._by_engine[seat.key] = self._by_engine.get(seat.key, 0) + 1
        self._last_used[key] = now_s
        self.ejection.taken(seat.key, now_s)
        if ticket.ask.prefix:
            keeps = CACHES_PER_SLOT * seat.slots
            self.prefixes.served(seat.incarnation, ticket.ask.model, ticket.ask.prefix, keeps)
        ticket.seat = seat
        ticket.decision = decision
        return Dispatch(ticket, seat, decision)


def _decrement(counts: dict[Any, int], key: Any) -> None:
    left = counts.get(key, 0) - 1
    if left > 0:
        counts[key] = left
    else:
        counts.pop(key, None)
