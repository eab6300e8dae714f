"""Where a request is in its line and how long that takes, from measured rates of service. Pure."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

from olol_tui.routing.decision import Occupancy
from olol_tui.routing.room import WaitingRoom
from olol_tui.routing.roster import Roster, Seat
from olol_tui.routing.speeds import Speeds
from olol_tui.routing.ticket import Ticket

CERTAIN_FACTOR = 4.0
"""A wait is only certain to be too long when it would be at so many times the measured speed."""
CERTAIN_SAMPLES = 3
"""And when at least so many replies were measured."""
_RETRY_MAX_S = 600


class Place(NamedTuple):
    """Where a ticket is in its line."""

    position: int
    """1 is next."""
    wait_s: float | None
    """Expected; None when nobody can know."""


class Outlook:
    """Looks at a queue, changes nothing."""

    __slots__ = ("_busy", "_room", "_speeds")

    def __init__(self, room: WaitingRoom, busy: Occupancy, speeds: Speeds) -> None:
        self._room = room
        self._busy = busy
        self._speeds = speeds

    def cost_s(self, model: str) -> float:
        """Slot time that a request of the model is expected to take."""
        service_s = self._speeds.of("", model).service_s
        return service_s if service_s > 1e-3 else 1e-3

    def place(self, ticket: Ticket, roster: Roster, now_s: float) -> Place:
        """Where a waiting ticket is."""
        model = ticket.ask.model
        position = self._room.lines[model].position(ticket, self.cost_s(model))
        return Place(position, self.wait_s(model, position, roster, now_s))

    def places(
        self, model: str, limit: int, roster: Roster, now_s: float
    ) -> Iterator[tuple[Ticket, Place]]:
        """The next ones in a model's line, with their places."""
        line = self._room.lines.get(model)
        if line is None or not len(line):
            return
        first_s = self.wait_s(model, 1, roster, now_s)
        per_s = self.rate(model, roster.seats(model))
        order = line.order(self.cost_s(model))
        for position, ticket in enumerate(itertools.islice(order, limit), 1):
            wait_s = None if first_s is None else first_s + (position - 1) / per_s
            yield ticket, Place(position, wait_s)

    def hopeless_s(self, ticket: Ticket, roster: Roster, now_s: float) -> float | None:
        """The expected wait of a new ticket that is certain to miss its deadline, else None."""
        model, (flow, _, _, deadline_s) = ticket.ask.model, ticket.terms
        if deadline_s is None or self._speeds.of("", model).samples < CERTAIN_SAMPLES:
            return None
        line = self._room.lines.get(model)
        # Of the others nobody knows whether they stay: only its own flow's count. And what runs
        # may all end now.
        ahead = 0 if line is None else line.lane(ticket).ahead(flow, deadline_s)
        seats = roster.seats(model)
        slots = sum(seat.slots for seat in seats if seat.warm and not seat.refused)
        wait_s = self.wait_s(model, ahead + 1 - slots, roster, now_s)
        if wait_s is None or wait_s / CERTAIN_FACTOR <= deadline_s - now_s:
            return None
        return wait_s

    def room_after_s(self, roster: Roster, model: str = "", flow: str = "") -> int:
        """When a place is expected to be free in a full queue; whole seconds, as the header
        `Retry-After` has it.

        Args:
            model: with `flow`, for the bound of one flow: only its own share brings it on.
        """
        room = self._room
        if model:
            per_s = self.rate(model, roster.seats(model))
            line = room.lines.get(model)
            per_s *= 1.0 if line is None else line.share(flow)
        else:
            waiting = (name for name in room.waiting() if name not in room.paused)
            per_s = sum(self.rate(name, roster.seats(name)) for name in waiting)
        return _RETRY_MAX_S if per_s <= 0 else max(1, min(_RETRY_MAX_S, math.ceil(1 / per_s)))

    def rate(self, model: str, seats: tuple[Seat, ...]) -> float:
        """Requests a second that the seats with the model, loaded or loading, serve."""
        total = 0.0
        for seat in seats:
            if self.has(seat, model) and not seat.refused:
                total += seat.slots / max(1e-3, self._speeds.of(seat.key, model).service_s)
        return total

    def wait_s(self, model: str, position: int, roster: Roster, now_s: float) -> float | None:
        """Expected wait of whoever is at a position; None when nobody can know: the model is
        paused, or loaded nowhere and no load of it has begun."""
        busy, seats = self._busy, roster.seats(model)
        per_s = self.rate(model, seats)
        if not per_s or model in self._room.paused:
            return None
        slots = 0
        load_left_s = math.inf
        for seat in seats:
            if seat.refused or not self.has(seat, model):
                continue
            if seat.warm:
                load_left_s = 0.0
                slots += max(0, seat.slots - busy.running.get((seat.key, model), 0))
            else:
                began_s = busy.loads.get((seat.key, model), now_s)
                left_s = self._speeds.load_s(seat.node, seat.size_bytes) - (now_s - began_s)
                load_left_s = min(load_left_s, max(0.0, left_s))
                slots += seat.slots
        return load_left_s + max(0, position - slots) / per_s

    def has(self, seat: Seat, model: str) -> bool:
        """The model is there, or on its way."""
        return seat.warm or seat.loading or (seat.key, model) in self._busy.loads
