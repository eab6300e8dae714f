"""What the replicas of a model are worth to those who want it, and to those who soon will.

A queue tells what a moment needs; what a fleet needs is told by what was asked of it for
minutes. A large model that nobody wants just now lost its engines to bursts that would have
been over before a load, and was missed for the rest of the day. So what leaves an engine is
weighed by its queue and by all who will come before it could be back. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from olol_tui.routing.decision import Occupancy
from olol_tui.routing.roster import Resident, Roster, Seat
from olol_tui.routing.speeds import Speeds

HORIZON_LOADS = 2.0
"""How far ahead those who will want a model are counted: in times of the longest load that the
change, or undoing it, takes."""
STAY_LOADS = 3.0
"""A wanted model that is nowhere else stays at least so many times as long as its load took: loads
must not swap two models back and forth."""


def misery(count: float, before_s: float, after_s: float) -> float:
    """Squared seconds that `count` requests wait more, whose waits reach up to these."""
    return count * (after_s * after_s - before_s * before_s) / 3


@dataclass(frozen=True, slots=True)
class Harm:
    """What evicting one model does to those who want it."""

    name: str
    size_bytes: int
    wanted: float
    """Requests: those that wait, and those that will come within the horizon."""
    before_s: float
    """What it takes to serve them while it stays: the wait of the last one."""
    after_s: float

    @property
    def s2(self) -> float:
        return misery(self.wanted, self.before_s, self.after_s)

    def text(self) -> str:
        return f"{self.name} would wait {self.after_s:.1f} s instead of {self.before_s:.1f} s"


@dataclass(slots=True)
class Stakes:
    """For one decision: who wants what, and how much there is of it."""

    roster: Roster
    busy: Occupancy
    speeds: Speeds
    now_s: float
    _replicas: dict[str, int] = field(default_factory=dict)

    def wanted(self, model: str, waiting: float, horizon_s: float) -> float:
        """Requests: those that wait, and those that will come."""
        return waiting + self.busy.demand.rate_per_s(model, self.now_s) * horizon_s

    def replicas(self, model: str) -> int:
        """Of a model, those on their way counted and those that leave not."""
        count = self._replicas.get(model)
        if count is not None:
            return count
        count = self.roster.replicas(model)
        loads, leaving = self.busy.loads, self.busy.leaving
        moves = any(m == model for _, m in loads) or any(m == model for _, m in leaving)
        for seat in self.roster.seats(model) if moves else ():
            place = (seat.key, model)
            if not seat.warm and place in loads:
                count += 1
            elif seat.warm and place in leaving:
                count -= 1
        self._replicas[model] = count
        return count

    def harm(self, one: Resident, seat: Seat, load_s: float) -> Harm:
        """What leaving this seat's device costs those who want a model.

        Args:
            load_s: of the model that it makes room for.
        """
        name = one.name
        file_bytes = self.roster.size_bytes(name, seat.node)
        reload_s = self.speeds.load_s(seat.node, file_bytes)
        horizon_s = HORIZON_LOADS * max(load_s, reload_s)
        queued = self.busy.queued(name)
        wanted = self.wanted(name, queued, horizon_s)
        served_s = self.speeds.of("", name, file_bytes).usual_s / max(1, one.slots)
        replicas = self.replicas(name)

        def wait_s(count: int) -> float:
            """Of the last one, were there so many replicas: what they cannot do meanwhile."""
            return max(queued * served_s / count, wanted * served_s / count - horizon_s)

        before_s = wait_s(max(1, replicas))
        # Without any, everybody who comes until it is back waits for that too.
        after_s = wait_s(replicas - 1) if replicas > 1 else before_s + reload_s
        return Harm(name, one.size_bytes, wanted, before_s, after_s)

    def stays(self, one: Resident, seat: Seat) -> bool:
        """It came only now, is wanted and nowhere else: evicting it would be going round in
        circles."""
        # A runner was loaded where there was room for one, and has a seat of its own since.
        loaded_at = [self.busy.loaded_at.get((key, one.name)) for key in (one.key, seat.room)]
        since_s = max((at_s for at_s in loaded_at if at_s is not None), default=None)
        if since_s is None or self.replicas(one.name) > 1:
            return False
        if not (self.busy.queued(one.name) or self.busy.running.get((one.key, one.name), 0)):
            return False
        took_s = self.speeds.load_s(seat.node, self.roster.size_bytes(one.name, seat.node))
        return self.now_s - since_s < STAY_LOADS * took_s
