"""Whether a model is loaded somewhere for those who wait, and who makes room for it.

A load is worth what it saves those who wait for this model, less what it costs those who want
what it evicts. Both are sums of squared waits: a minute for one is worse than a second for
sixty. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass

from olol_tui.routing.decision import NOBODY, Ask, Candidate, Decision, Occupancy, Rejection
from olol_tui.routing.roster import Resident, Roster, Seat
from olol_tui.routing.speeds import Speeds
from olol_tui.routing.survey import Survey, prefill_s
from olol_tui.units import format_size

LOAD_TIE = 1.3
"""Times within this factor count as equal: they are estimates."""
LOAD_MARGIN = 1.2
"""A further replica must beat waiting by this factor: loads are estimates and evict others."""
HORIZON_LOADS = 6.0
"""How far ahead those who will want an evicted model are counted, in times of its load."""
STAY_LOADS = 3.0
"""A wanted model stays at least so many times as long as its load took: loads must not swap two
models back and forth."""
PATIENCE_LOADS = 4.0
"""A model that is nowhere waits at most so many load times for others' work: nobody starves."""
CROWDING = 0.15
"""How much of a new replica's worth each request takes away that runs on the device already."""


@dataclass(frozen=True, slots=True)
class Harm:
    """What evicting one model does to those who want it."""

    name: str
    size_bytes: int
    wanted: float
    """Requests: those that wait, and those that will come before it could be back."""
    before_s: float
    """Their longest wait while it stays."""
    after_s: float

    @property
    def s2(self) -> float:
        return misery(self.wanted, self.before_s, self.after_s)

    def text(self) -> str:
        return f"{self.name} would wait {self.after_s:.1f} s instead of {self.before_s:.1f} s"


def misery(count: float, before_s: float, after_s: float) -> float:
    """Squared seconds that `count` requests wait more, whose waits reach up to these."""
    return count * (after_s * after_s - before_s * before_s) / 3


@dataclass(frozen=True, slots=True)
class Offer:
    """One seat that could load the model."""

    candidate: Candidate
    harms: tuple[Harm, ...] = ()
    """Of what must go first."""
    drains: bool = False
    """Some of it runs: what is new there has to wait until it ended."""
    crowd: int = 0
    """Requests of other models that run there."""

    @property
    def seat(self) -> Seat:
        return self.candidate.seat

    @property
    def evict(self) -> tuple[str, ...]:
        """Canonical names of what must go first."""
        return tuple(harm.name for harm in self.harms)

    @property
    def harm_s2(self) -> float:
        """What that costs others."""
        return sum(harm.s2 for harm in self.harms)

    @property
    def ready_s(self) -> float:
        """Until it could serve there."""
        return self.candidate.wait_s + self.candidate.load_s


def offers(
    ask: Ask, found: Survey, roster: Roster, busy: Occupancy, speeds: Speeds, now_s: float
) -> list[Offer]:
    """Every seat with room, or on which room can be made; `found` gets the reasons of others."""
    made: list[Offer] = []
    for seat in (*found.cold, *found.small):
        if seat.fits is False:
            needs, has = format_size(seat.need_bytes), format_size(seat.vram_bytes or 0)
            reason = f"the model needs {needs}, the device has {has}"
            found.rejected.append(Rejection(seat.where, reason))
            continue
        other = _other_load(ask.model, seat, busy)
        if other:
            found.rejected.append(Rejection(seat.where, f"it loads {other} first"))
            continue
        offer = _offer(ask, seat, roster, busy, speeds, now_s)
        if isinstance(offer, Offer):
            made.append(offer)
        else:
            found.rejected.append(Rejection(seat.where, offer))
    return made


def _other_load(model: str, seat: Seat, busy: Occupancy) -> str:
    """Another model that is being loaded into the same memory, or ""."""
    if not busy.loads:
        return ""
    keys = {seat.key, seat.room, *(one.key for one in seat.residents)}
    return next((other for key, other in busy.loads if key in keys and other != model), "")


def _offer(
    ask: Ask, seat: Seat, roster: Roster, busy: Occupancy, speeds: Speeds, now_s: float
) -> Offer | str:
    """What loading there takes, or why it cannot be."""
    load_s = speeds.load_s(seat.node, seat.size_bytes)
    beside = {one.key for one in seat.residents} - {seat.key}
    crowd = sum(busy.by_engine.get(key, 0) for key in (seat.key, *beside))
    prefill = prefill_s(ask, seat, speeds)
    if seat.warm:
        # Resident with less context: it is unloaded by its own reload.
        drains = busy.running.get((seat.key, ask.model), 0) > 0
        wait_s = speeds.of(seat.key, ask.model).service_s if drains else 0.0
        note = f"reload with {ask.num_ctx:,} tokens of context"
        return Offer(Candidate(seat, wait_s, load_s, prefill, note), (), drains, crowd)
    harms = sorted(
        (
            (_harm(one, seat, roster, busy, speeds, now_s), one)
            for one in seat.residents
            if not one.pinned
        ),
        # What never expires goes last of those that nobody wants.
        key=lambda pair: (pair[0].s2, pair[1].expires_at or "~"),
    )
    if seat.free_bytes is None:
        note = "its memory is not known"
        # An Ollama that is short of memory evicts what it likes.
        return Offer(Candidate(seat, 0.0, load_s, prefill, note), (), False, crowd)
    missing = seat.need_bytes - seat.free_bytes if seat.size_bytes else 0
    chosen: list[Harm] = []
    places: dict[str, Resident] = {}
    for harm, one in harms:
        if missing <= sum(harm.size_bytes for harm in chosen):
            break
        if not _stays(one, seat, roster, busy, speeds, now_s):
            chosen.append(harm)
            places[harm.name] = one
    freed = sum(harm.size_bytes for harm in chosen)
    if freed < missing:
        held = f", and a split has {format_size(seat.lent_bytes)}" if seat.lent_bytes else ""
        return f"{format_size(missing - freed)} short: what is loaded there is busy or pinned{held}"
    for harm in reversed(chosen[:-1]):
        # What was taken before a bigger one came may not be needed beside it.
        if freed - harm.size_bytes >= missing:
            chosen.remove(harm)
            freed -= harm.size_bytes
    going = [places[harm.name] for harm in chosen]
    running = [one for one in going if busy.running.get((one.key, one.name), 0)]
    wait_s = max((speeds.of(one.key, one.name).service_s for one in running), default=0.0)
    note = f"evicting {', '.join(one.name for one in going)}" if going else ""
    return Offer(
        Candidate(seat, wait_s, load_s, prefill, note), tuple(chosen), bool(running), crowd
    )


def _stays(
    one: Resident, seat: Seat, roster: Roster, busy: Occupancy, speeds: Speeds, now_s: float
) -> bool:
    """It came only now, and is wanted: evicting it would be going round in circles."""
    # A runner was loaded where there was room for one, and has a seat of its own since.
    loaded_at = [busy.loaded_at.get((key, one.name)) for key in (one.key, seat.room)]
    since_s = max((at_s for at_s in loaded_at if at_s is not None), default=None)
    if since_s is None or not (busy.queued(one.name) or busy.running.get((one.key, one.name), 0)):
        return False
    took_s = speeds.load_s(seat.node, roster.size_bytes(one.name, seat.node))
    return now_s - since_s < STAY_LOADS * took_s


def _harm(
    one: Resident,
    seat: Seat,
    roster: Roster,
    busy: Occupancy,
    speeds: Speeds,
    now_s: float,
) -> Harm:
    """What leaving this seat costs those who want a model."""
    name, size_bytes = one.name, one.size_bytes
    reload_s = speeds.load_s(seat.node, roster.size_bytes(name, seat.node))
    queued = busy.queued(name)
    coming = busy.demand.rate_per_s(name, now_s) * HORIZON_LOADS * reload_s
    service_s = speeds.of(one.key, name).service_s / max(1, one.slots)
    replicas = max(1, roster.replicas(name))
    before_s = queued * service_s / replicas
    if replicas == 1:
        # Everybody who comes until it is back waits for that too.
        return Harm(name, size_bytes, queued + coming, before_s, before_s + reload_s)
    others = replicas - 1
    left = queued + max(0.0, coming - HORIZON_LOADS * reload_s * others / service_s)
    return Harm(name, size_bytes, left, left * service_s / replicas, left * service_s / others)


def load_or_wait(
    ask: Ask,
    found: Survey,
    roster: Roster,
    busy: Occupancy,
    speeds: Speeds,
    *,
    waiting: int,
    waited_s: float,
    now_s: float,
) -> Decision:
    """No free slot: is a load cheaper than the queue?"""
    made = offers(ask, found, roster, busy, speeds, now_s)
    candidates = tuple(offer.candidate for offer in made)
    if not found.full and not found.loading:
        return _load_somewhere(ask, found, made, candidates, waiting=waiting, waited_s=waited_s)
    wait_s = queue_wait_s(ask, found, busy, speeds, waiting, now_s)
    best = _best(made, waiting)
    if best is not None:
        decision = _replica(ask, found, best, candidates, speeds, wait_s, waiting=waiting)
        if decision is not None:
            return decision
    place = ", ".join(seat.where for seat in (found.full or found.loading))
    verb = "a slot on" if found.full else "the load on"
    reason = f"waiting for {verb} {place}, about {wait_s:.1f} s"
    return Decision("wait", None, candidates, tuple(found.rejected), reason)


def _load_somewhere(
    ask: Ask,
    found: Survey,
    made: list[Offer],
    candidates: tuple[Candidate, ...],
    *,
    waiting: int,
    waited_s: float,
) -> Decision:
    """It is resident nowhere: the question is only where it goes, and when."""
    rejected = tuple(found.rejected)
    best = _best(made, waiting)
    if best is None:
        return _nowhere(ask, found, rejected)
    where = best.seat.where
    patience_s = PATIENCE_LOADS * best.candidate.load_s
    pain = misery(waiting, 0.0, waited_s + best.ready_s)
    if best.harm_s2 > pain and waited_s < patience_s:
        harms = "; ".join(harm.text() for harm in best.harms)
        reason = f"waiting at most {patience_s:.0f} s before others make room on {where}: {harms}"
        return Decision("wait", None, candidates, rejected, reason)
    if best.drains:
        reason = f"waiting for room on {where}: nothing new starts there until it is free"
        return Decision("wait", None, candidates, rejected, reason, claim=best.seat.room)
    why = f"asked for {ask.num_ctx:,} tokens of context" if best.seat.warm else "nobody has it warm"
    reason = f"loading {ask.model} on {where}: {why}"
    if best.evict:
        reason += f"; {', '.join(best.evict)} is wanted least there"
    return Decision("load", best.seat, candidates, rejected, reason, best.evict)


def _nowhere(ask: Ask, found: Survey, rejected: tuple[Rejection, ...]) -> Decision:
    spilling = [seat for seat in found.cold if seat.fits is False]
    if spilling and len(spilling) == len(found.cold):
        seat = max(spilling, key=_free)
        reason = f"{ask.model} fits no device; {seat.where} has the most memory"
        return Decision("load", seat, (), rejected, reason)
    crowded = [seat for seat in (*found.cold, *found.small) if seat.fits is not False]
    if crowded:
        # Room comes when what runs there ends: this is a queue, not an outage.
        reason = f"waiting for room on {', '.join(seat.where for seat in crowded)}"
        return Decision("wait", None, (), rejected, reason)
    if not rejected:
        return Decision("fail", None, (), (), "no engine has the model")
    if all(r.final for r in rejected):
        return Decision("fail", None, (), rejected, "every engine that has it failed")
    return Decision("wait", None, (), rejected, NOBODY)


def _replica(
    ask: Ask,
    found: Survey,
    best: Offer,
    candidates: tuple[Candidate, ...],
    speeds: Speeds,
    wait_s: float,
    *,
    waiting: int,
) -> Decision | None:
    """A further replica, where it saves more than it costs."""
    # Before its first reply nobody knows how long this model serves: be slower to believe it.
    doubts = 1.0 if speeds.known(ask.model) else 2.0
    if doubts > 1.0 and (best.evict or best.crowd):
        return None
    cost = best.candidate
    served = sum(seat.slots for seat in found.full) + sum(seat.slots for seat in found.loading)
    service_s = max(1e-3, speeds.of(cost.seat.key, ask.model, cost.seat.size_bytes).service_s)
    # What runs there already shares the device with it.
    slots = max(1, cost.seat.slots) / (1.0 + CROWDING * best.crowd)
    ready_s = best.ready_s
    left = max(0.0, waiting - ready_s * served / service_s - slots)
    then_s = ready_s + left * service_s / (served + slots)
    if wait_s <= LOAD_MARGIN * doubts * ready_s or wait_s <= then_s:
        return None
    if misery(waiting, then_s, wait_s) <= LOAD_MARGIN * best.harm_s2:
        harms = "; ".join(harm.text() for harm in best.harms)
        reason = f"with it {then_s:.1f} s of queue instead of {wait_s:.1f} s, but {harms}"
        found.rejected.append(Rejection(cost.seat.where, reason))
        return None
    rejected = tuple(found.rejected)
    where = cost.seat.where
    if best.drains:
        reason = f"{wait_s:.1f} s of queue > {ready_s:.1f} s until {where} is free and has it"
        return Decision("wait", None, candidates, rejected, reason, claim=best.seat.room)
    idle = "" if best.crowd else "idle "
    reason = f"{wait_s:.1f} s of queue > {cost.load_s:.1f} s load on {idle}{where}"
    return Decision("load", best.seat, candidates, rejected, reason, best.evict)


def _best(made: list[Offer], waiting: int) -> Offer | None:
    """What costs clients least in all; among those about equal, the emptiest device."""
    if not made:
        return None

    def cost(offer: Offer) -> float:
        return misery(waiting, 0.0, offer.ready_s) + offer.harm_s2

    limit = LOAD_TIE * LOAD_TIE * min(cost(offer) for offer in made)
    near = [offer for offer in made if cost(offer) <= limit]
    return min(near, key=lambda o: (o.drains, o.crowd, len(o.evict), -_free(o.seat)))


def queue_wait_s(
    ask: Ask, found: Survey, busy: Occupancy, speeds: Speeds, waiting: int, now_s: float
) -> float:
    """Expected wait of the last in the queue: loads under way bring slots of their own, the
    rest comes at the measured rate of service."""
    remaining_s = []
    for seat in found.loading:
        elapsed_s = now_s - busy.loads.get((seat.key, ask.model), now_s)
        remaining_s.append(max(0.0, speeds.load_s(seat.node, seat.size_bytes) - elapsed_s))
    load_s = min(remaining_s, default=0.0)
    left = waiting - sum(seat.slots for seat in found.loading)
    if left <= 0:
        return load_s
    rate = sum(
        seat.slots / max(1e-3, speeds.of(seat.key, ask.model, seat.size_bytes).service_s)
        for seat in (*found.full, *found.loading)
    )
    return load_s + left / rate if rate else 0.0


def _free(seat: Seat) -> int:
    return seat.free_bytes or 0
