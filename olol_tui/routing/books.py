"""The books of what runs, loads and leaves where. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from olol_tui.routing.decision import Decision, Occupancy
from olol_tui.routing.demand import Demand
from olol_tui.routing.prefix import Prefixes
from olol_tui.routing.roster import Seat
from olol_tui.routing.survey import CACHES_PER_SLOT
from olol_tui.routing.ticket import Ticket

_Place = tuple[str, str]
"""(seat key, model)"""


@dataclass(slots=True)
class Books:
    """A slot is taken when a ticket is dispatched and given back by `release`."""

    demand: Demand = field(default_factory=Demand)
    prefixes: Prefixes = field(default_factory=Prefixes)
    running: dict[_Place, int] = field(default_factory=dict)
    by_engine: dict[str, int] = field(default_factory=dict)
    by_model: dict[str, int] = field(default_factory=dict)
    loads: dict[_Place, float] = field(default_factory=dict)
    """When our load of it began."""
    claims: dict[str, str] = field(default_factory=dict)
    """Room of a seat → model that space is made for there."""
    freed: bool = False
    """An engine fell idle or a load has ended: whoever waits for room may have it now."""
    _last_used: dict[_Place, float] = field(default_factory=dict)
    _loaded_at: dict[_Place, float] = field(default_factory=dict)
    _leaving: dict[_Place, str] = field(default_factory=dict)
    _evicted: dict[_Place, list[_Place]] = field(default_factory=dict)
    """What leaves for each load."""

    def occupancy(self, queued_of: Callable[[str], int]) -> Occupancy:
        """A live view of all this for the policies."""
        return Occupancy(
            self.running,
            self.by_engine,
            self.loads,
            self._last_used,
            self._loaded_at,
            self._leaving,
            self.claims,
            queued_of,
            self.demand,
            self.prefixes,
        )

    def running_of(self, model: str) -> int:
        return self.by_model.get(model, 0)

    def take(self, ticket: Ticket, seat: Seat, now_s: float) -> None:
        """A slot of the seat is the ticket's."""
        ask = ticket.ask
        engine, model = seat.key, ask.model
        key = (engine, model)
        running, by_engine, by_model = self.running, self.by_engine, self.by_model
        running[key] = running.get(key, 0) + 1
        by_engine[engine] = by_engine.get(engine, 0) + 1
        by_model[model] = by_model.get(model, 0) + 1
        self._last_used[key] = now_s
        if ask.prefix:
            keeps = CACHES_PER_SLOT * seat.slots
            self.prefixes.served(seat.incarnation, model, ask.prefix, keeps)

    def release(self, seat: Seat, model: str, now_s: float) -> None:
        """The slot is free again."""
        key = (seat.key, model)
        by_engine = self.by_engine
        _decrement(self.running, key)
        _decrement(by_engine, seat.key)
        _decrement(self.by_model, model)
        self._last_used[key] = now_s
        if seat.key not in by_engine or (self.claims and seat.room in self.claims):
            self.freed = True

    def load_began(self, seat: Seat, model: str, decision: Decision, now_s: float) -> None:
        self.loads[seat.key, model] = now_s
        goes = [(one.key, one.name) for one in seat.residents if one.name in decision.evict]
        if goes:
            self._evicted[seat.key, model] = goes
            self._leaving.update(dict.fromkeys(goes, model))

    def load_ended(self, seat_key: str, model: str, now_s: float | None) -> None:
        """
        Args:
            now_s: clock, where the load went well.
        """
        if self.loads.pop((seat_key, model), None) is not None and now_s is not None:
            self._loaded_at[seat_key, model] = now_s
        for place in self._evicted.pop((seat_key, model), ()):
            self._leaving.pop(place, None)
        self.freed = True

    def claim(self, room: str, model: str) -> None:
        """The one room in which space is made for a model, "" for none."""
        if not self.claims and not room:
            return
        for key in [key for key, claimant in self.claims.items() if claimant == model]:
            if key != room:
                del self.claims[key]
                self.freed = True
        if room:
            self.claims.setdefault(room, model)


def _decrement(counts: dict[Any, int], key: Any) -> None:
    count = counts.get(key, 0)
    if count > 1:
        counts[key] = count - 1
    else:
        counts.pop(key, None)
