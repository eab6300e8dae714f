"""The order in which requests of one class wait for the slots of one model.

Weighted fair queueing by start tags: every flow (one API key, or one address where there are
no keys) has a virtual time at which its next request starts. Whoever has the earliest goes
next, and pays for it with the slot time it will take divided by the flow's weight. A flow that
was away comes back at the present, so it neither saves up nor owes. What a request really took
is settled when it gives its slot back. Within a flow the earlier deadline goes first, then
whoever came first.

Each operation costs O(log n) comparisons; what a withdrawal in the middle moves is one memmove.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_left, insort
from collections.abc import Iterator

from olol_tui.routing.decision import Ask
from olol_tui.routing.ticket import Ticket

DEBT_S = 120.0
"""At most so much slot time is charged afterwards for one request that took longer than
expected: its flow must not wait for hours because of it."""
_IDLE_KEPT = 64


class Flow:
    """What waits of one flow, in order, and its virtual time."""

    __slots__ = ("_head", "_line", "finish", "name", "start", "turn", "weight")

    def __init__(self, name: str, weight: float) -> None:
        self.name = name
        self.weight = weight
        self.start = 0.0
        """Virtual time at which its next request starts."""
        self.finish = 0.0
        """Virtual time up to which it has had its share."""
        self.turn = -1
        """Of its valid entry in the lane's heap."""
        self._line: list[Ticket] = []
        self._head = 0

    def __len__(self) -> int:
        return len(self._line) - self._head

    def __iter__(self) -> Iterator[Ticket]:
        return iter(self._line[self._head :])

    @property
    def first(self) -> Ticket:
        return self._line[self._head]

    def add(self, ticket: Ticket) -> None:
        line = self._line
        if not line or line[-1].order <= ticket.order:
            line.append(ticket)
        else:
            insort(line, ticket, lo=self._head, key=_order)

    def pop(self) -> Ticket:
        line, head = self._line, self._head
        ticket = line[head]
        # A slot of the list that is not needed any more must not keep a request's body.
        line[head] = _NOBODY
        head += 1
        if head == len(line):
            line.clear()
            head = 0
        elif head > 32 and head * 2 > len(line):
            del line[:head]
            head = 0
        self._head = head
        return ticket

    def remove(self, ticket: Ticket) -> None:
        del self._line[self._head + self.rank_of(ticket.order)]

    def rank_of(self, order: tuple[float, float]) -> int:
        """How many come before this place in the order."""
        return bisect_left(self._line, order, lo=self._head, key=_order) - self._head


class Lane:
    """One class of one model's queue."""

    __slots__ = ("_active", "_count", "_flows", "_heap", "_turn", "_virtual")

    def __init__(self) -> None:
        self._flows: dict[str, Flow] = {}
        self._heap: list[tuple[float, int, Flow]] = []
        """(start, turn, flow); an entry whose turn is not its flow's any more is void."""
        self._virtual = 0.0
        self._turn = 0
        self._count = 0
        self._active = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Ticket]:
        return (ticket for flow in self._flows.values() for ticket in flow)

    def add(self, ticket: Ticket) -> None:
        flow = self._flow(ticket)
        if not len(flow):
            self._active += 1
            flow.start = max(self._virtual, flow.finish)
            self._push(flow)
        flow.add(ticket)
        self._count += 1

    def head(self) -> Ticket:
        """Who is next. Only of a lane that is not empty."""
        return self._next().first

    def take(self, ticket: Ticket, cost_s: float) -> None:
        """Take out one, as a rule who is next, and charge its flow.

        Args:
            cost_s: slot time that it is expected to take.
        """
        flow = ticket.flow
        assert flow is not None
        if flow.first is ticket:
            flow.pop()
        else:
            flow.remove(ticket)
        self._count -= 1
        self._charge(ticket, flow, flow.start, cost_s)
        if len(flow):
            flow.start = flow.finish
            self._push(flow)
        else:
            self._active -= 1
            flow.turn = -1

    def pass_through(self, ticket: Ticket, cost_s: float) -> None:
        """Charge for a ticket that never had to wait here."""
        flow = self._flow(ticket)
        start = flow.finish
        if start < self._virtual:
            start = self._virtual
        self._charge(ticket, flow, start, cost_s)

    def remove(self, ticket: Ticket) -> None:
        """Take out one that waits, without charge."""
        flow = ticket.flow
        assert flow is not None
        flow.remove(ticket)
        self._count -= 1
        if not len(flow):
            self._active -= 1
            flow.turn = -1

    def settle(self, flow: Flow, difference_s: float) -> None:
        """A request took longer (or, negative, shorter) than it was charged for."""
        change = (difference_s if difference_s < DEBT_S else DEBT_S) / flow.weight
        finish = flow.finish + change
        flow.finish = finish if finish > 0.0 else 0.0
        if len(flow):
            flow.start = max(self._virtual, flow.start + change)
            self._push(flow)

    def position(self, ticket: Ticket, cost_s: float) -> int:
        """How many would be served up to this one, itself included, if nobody else came.

        Args:
            cost_s: slot time that a request is expected to take.
        """
        own = ticket.flow
        assert own is not None
        rank = own.rank_of(ticket.order)
        at = own.start + rank * cost_s / own.weight
        ahead = rank
        for flow in self._flows.values():
            waiting = len(flow)
            if waiting and flow is not own:
                before = (at - flow.start) * flow.weight / cost_s
                whole = math.ceil(before)
                if whole == before and flow.turn < own.turn:
                    # Of two that are due at the same time, who was due for longer.
                    whole += 1
                ahead += min(waiting, max(0, whole))
        return ahead + 1

    def ahead(self, name: str, deadline_s: float) -> int:
        """How many of a flow are due before a deadline, or as early and there before it."""
        flow = self._flows.get(name)
        return 0 if flow is None else flow.rank_of((deadline_s, math.inf))

    def order(self, cost_s: float) -> Iterator[Ticket]:
        """Who would be served one after the other if nobody else came."""
        turn = self._turn
        heap = [(f.start, f.turn, f.name, iter(f)) for f in self._flows.values() if len(f)]
        heapq.heapify(heap)
        while heap:
            start, _, name, line = heap[0]
            ticket = next(line, None)
            if ticket is None:
                heapq.heappop(heap)
                continue
            yield ticket
            turn += 1
            weight = self._flows[name].weight
            heapq.heapreplace(heap, (start + cost_s / weight, turn, name, line))

    def weights(self) -> dict[str, float]:
        """By name, of all flows that have something waiting."""
        return {name: flow.weight for name, flow in self._flows.items() if len(flow)}

    def _flow(self, ticket: Ticket) -> Flow:
        name, weight = ticket.terms.flow, ticket.terms.weight
        flow = self._flows.get(name)
        if flow is None:
            if len(self._flows) > _IDLE_KEPT + 2 * self._active:
                self._forget_idle()
            flow = self._flows[name] = Flow(name, weight)
        elif flow.weight != weight:
            # A key's weight was changed: what it had keeps its price.
            flow.weight = weight
        ticket.flow = flow
        ticket.lane = self
        return flow

    def _forget_idle(self) -> None:
        """Flows with nothing waiting and no debt come back as they are when they are new."""
        self._flows = {
            name: flow
            for name, flow in self._flows.items()
            if len(flow) or flow.finish > self._virtual
        }

    def _charge(self, ticket: Ticket, flow: Flow, start: float, cost_s: float) -> None:
        if start > self._virtual:
            self._virtual = start
        flow.finish = start + cost_s / flow.weight
        ticket.charged_s = cost_s

    def _push(self, flow: Flow) -> None:
        self._turn += 1
        flow.turn = self._turn
        heapq.heappush(self._heap, (flow.start, flow.turn, flow))
        if len(self._heap) > 16 + 2 * self._active:
            self._heap = [entry for entry in self._heap if entry[1] == entry[2].turn]
            heapq.heapify(self._heap)

    def _next(self) -> Flow:
        heap = self._heap
        while heap[0][1] != heap[0][2].turn:
            heapq.heappop(heap)
        return heap[0][2]


def _order(ticket: Ticket) -> tuple[float, int]:
    return ticket.order


_NOBODY = Ticket(Ask(""), None, 0.0)
"""Stands where a ticket was."""
