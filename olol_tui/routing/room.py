"""The waiting room: everything that is queued, its bounds and its deadlines. Pure."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from olol_tui.routing.lane import Lane
from olol_tui.routing.line import Line
from olol_tui.routing.ticket import Ticket

_LEFT_ROOM = 8
"""The last such part of the room is closed to a model that already fills the rest, and the
last two to batch requests: neither shuts others out."""


@dataclass(slots=True)
class WaitingRoom:
    """Lines by model.

    Args:
        max_queued: tickets that may wait.
        max_per_flow: of one flow; None: half of max_queued.
    """

    max_queued: int = 256
    max_per_flow: int | None = None
    queued: int = 0
    batch: int = 0
    """Of the queued ones, those of class batch."""
    paused: frozenset[str] = frozenset()
    """Models whose requests stay where they are."""
    lines: dict[str, Line] = field(default_factory=dict)
    """By model; one that was used stays, empty."""
    _by_flow: dict[str, int] = field(default_factory=dict)
    _deadlines: list[tuple[float, int, Ticket]] = field(default_factory=list)
    """A heap, tickets that have left included until there are too many of them."""
    _hurried: int = 0
    """Of the queued ones, those with a deadline."""
    _count: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    _entries: Iterator[int] = field(default_factory=itertools.count)
    """Of the heap."""

    @property
    def full(self) -> bool:
        return self.queued >= self.max_queued

    def is_full_for(self, model: str, *, batch: bool) -> bool:
        """No place for a further ticket of this model and class."""
        left = self.max_queued - self.queued
        part = self.max_queued // _LEFT_ROOM
        if left <= 0 or not part:
            return left <= 0
        if batch and self.batch >= self.max_queued - 2 * part:
            return True
        return left <= part and self.queued_of(model) >= self.max_queued - part

    def is_full_for_flow(self, flow: str) -> bool:
        limit = self.max_per_flow
        if limit is None:
            limit = math.ceil(self.max_queued / 2)
        return self._by_flow.get(flow, 0) >= limit

    def queued_by(self, flow: str) -> int:
        return self._by_flow.get(flow, 0)

    def queued_of(self, model: str) -> int:
        line = self.lines.get(model)
        return 0 if line is None else line.count

    def waiting(self) -> list[str]:
        """Models that somebody waits for."""
        return [model for model, line in self.lines.items() if line.count]

    def number(self, ticket: Ticket) -> None:
        """Give a new ticket its place in its flow's order."""
        if not ticket.order[1]:
            deadline_s = ticket.terms.deadline_s
            ticket.order = (math.inf if deadline_s is None else deadline_s, next(self._count))

    def line(self, model: str, now_s: float) -> Line:
        found = self.lines.get(model)
        if found is None:
            found = self.lines[model] = Line(model, now_s)
        return found

    def add(self, line: Line, ticket: Ticket, now_s: float) -> None:
        line.add(ticket, now_s)
        ticket.waits = True
        self.queued += 1
        flow, _, batch, deadline_s = ticket.terms
        self.batch += batch
        self._by_flow[flow] = self._by_flow.get(flow, 0) + 1
        if deadline_s is not None:
            self._hurried += 1
            # Not by its place, which a retry shares with the ticket that it replaces: that one may
            # still lie here, and tickets cannot be compared.
            heapq.heappush(self._deadlines, (deadline_s, next(self._entries), ticket))

    def take(self, line: Line, lane: Lane, ticket: Ticket, cost_s: float) -> None:
        """A ticket of a lane has got a slot."""
        line.take(lane, ticket, cost_s)
        self._left(ticket)

    def withdraw(self, line: Line, ticket: Ticket) -> None:
        line.remove(ticket)
        self._left(ticket)

    def drop(self, model: str) -> list[Ticket]:
        """Take out everybody who waits for a model."""
        line = self.lines.pop(model, None)
        if line is None:
            return []
        dropped = list(line)
        for ticket in dropped:
            ticket.lane = ticket.flow = None
            self._left(ticket)
        return dropped

    def overdue(self, now_s: float) -> list[Ticket]:
        """Take out those whose deadline has passed."""
        late: list[Ticket] = []
        heap = self._deadlines
        while heap and (heap[0][0] <= now_s or not heap[0][2].waits):
            ticket = heapq.heappop(heap)[2]
            if ticket.waits:
                self.withdraw(self.lines[ticket.ask.model], ticket)
                late.append(ticket)
        return late

    @property
    def next_deadline_s(self) -> float | None:
        """When `overdue` is due next, or earlier."""
        return self._deadlines[0][0] if self._deadlines else None

    def _left(self, ticket: Ticket) -> None:
        """It does not wait any more."""
        ticket.waits = False
        self.queued -= 1
        flow, _, batch, deadline_s = ticket.terms
        self.batch -= batch
        left = self._by_flow[flow] - 1
        if left:
            self._by_flow[flow] = left
        else:
            del self._by_flow[flow]
        if deadline_s is None:
            return
        self._hurried -= 1
        if len(self._deadlines) > 64 + 2 * self._hurried:
            self._deadlines = [entry for entry in self._deadlines if entry[2].waits]
            heapq.heapify(self._deadlines)
