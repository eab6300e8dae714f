"""Reference routers for the routing benchmark, as policies: the rest of the path is the same.

They do what plain proxies do: each request goes on at once, whatever the engine has to do
for it (load, evict, queue) is the engine's affair.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

from olol_tui.routing.decision import NOBODY, Ask, Decision, Occupancy
from olol_tui.routing.roster import Roster, Seat
from olol_tui.routing.speeds import Speeds

Pick = Callable[[list[Seat], Occupancy], Seat]


class Reference:
    """Binds at once to the seat that `pick` names."""

    def __init__(self, pick: Pick) -> None:
        self._pick = pick

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
        usable = [s for s in seats if not s.refused and s.incarnation not in ask.exclude]
        usable = [s for s in usable if s.fits is not False]
        if not usable:
            return Decision("wait", reason=NOBODY)
        return Decision("dispatch", self._pick(usable, busy), reason="a reference")


_TURN = count()


def _least(seats: list[Seat], busy: Occupancy) -> Seat:
    # Equal ones by turns, as nginx: the first of the list must not get every request.
    start = next(_TURN)
    turned = [seats[(start + i) % len(seats)] for i in range(len(seats))]
    return min(turned, key=lambda s: busy.by_engine.get(s.key, 0))


def _warm(seats: list[Seat], busy: Occupancy) -> Seat:
    return _least([s for s in seats if s.warm] or seats, busy)


def reference(name: str) -> Reference:
    """A fresh one: `round-robin`, `least-connections` or `warm-first`."""
    turn = count()
    picks: dict[str, Pick] = {
        "round-robin": lambda seats, busy: seats[next(turn) % len(seats)],
        "least-connections": _least,
        "warm-first": _warm,
    }
    return Reference(picks[name])


REFERENCES = ("round-robin", "least-connections", "warm-first")
