"""The policies that an operator may prefer to `expected`: plain rules, known from other proxies.

They keep what no rule may break: slots, health, contexts, room. Pure.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from zlib import crc32

from olol_tui.routing.decision import NOBODY, Ask, Decision, Occupancy
from olol_tui.routing.loads import offers
from olol_tui.routing.roster import Roster, Seat
from olol_tui.routing.speeds import Speeds
from olol_tui.routing.survey import survey

Order = Callable[[Ask, Seat, Occupancy], Any]


class Ranked:
    """Takes the first seat of an order, warm or not.

    Args:
        patient: wait for the first seat even when another one has a free slot.
    """

    def __init__(self, title: str, order: Order, *, patient: bool = False) -> None:
        self._title = title
        self._order = order
        self._patient = patient

    def __call__(
        self,
        ask: Ask,
        seats: tuple[Seat, ...],
        roster: Roster,
        busy: Occupancy,
        speeds: Speeds,
        *,
        waiting: int,
        waited_s: float,
        now_s: float,
    ) -> Decision:
        found = survey(ask, seats, busy)
        rejected = tuple(found.rejected)
        usable = [*found.free, *found.full, *found.loading, *found.cold, *found.small]
        if not usable:
            if not rejected:
                return Decision("fail", reason="no engine has the model")
            if all(r.final for r in rejected):
                return Decision("fail", rejected=rejected, reason="every engine that has it failed")
            return Decision("wait", rejected=rejected, reason=NOBODY)
        can_load = {
            offer.seat.key: offer for offer in offers(ask, found, roster, busy, speeds, now_s)
        }
        free = {seat.key for seat in found.free}
        first = None
        for seat in sorted(usable, key=lambda one: self._order(ask, one, busy)):
            first = first or seat
            if seat.key in free:
                reason = f"{seat.where} is next by {self._title}"
                return Decision("dispatch", seat, rejected=rejected, reason=reason)
            offer = can_load.get(seat.key)
            if offer is not None and not offer.drains:
                reason = f"loading {ask.model} on {seat.where}: next by {self._title}"
                return Decision("load", seat, (offer.candidate,), rejected, reason, offer.evict)
            if self._patient:
                break
        assert first is not None
        if first.key in can_load and not free:
            reason = f"waiting for room on {first.where}, next by {self._title}"
            return Decision("wait", None, (), rejected, reason, claim=first.room)
        reason = f"waiting for {first.where}, next by {self._title}"
        return Decision("wait", None, (), rejected, reason, picky=self._patient)


def _emptiest(ask: Ask, seat: Seat, busy: Occupancy) -> Any:
    last_s = busy.last_used.get((seat.key, ask.model), 0.0)
    return (busy.by_engine.get(seat.key, 0) + 1) / seat.share, not seat.warm, last_s


def _longest_ago(ask: Ask, seat: Seat, busy: Occupancy) -> Any:
    return busy.last_used.get((seat.key, ask.model), 0.0), seat.key


def _by_hash(ask: Ask, seat: Seat, busy: Occupancy) -> Any:
    """Rendezvous hashing: an engine that comes or goes moves only its own share of clients."""
    return crc32(f"{ask.client}\0{ask.model}\0{seat.key}".encode())


least_busy = Ranked("fewest requests", _emptiest)
round_robin = Ranked("turn", _longest_ago)
sticky = Ranked("client", _by_hash, patient=True)
