"""Whether a model is loaded somewhere for those who wait, and who makes room for it.

A load is worth what it saves those who wait for this model, less what it costs those who want
what it evicts, now and soon (routing.stakes). Both are sums of squared waits: a minute for one
is worse than a second for sixty. Where room is free nobody pays for it. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass

from olol_tui.routing.decision import NOBODY, Ask, Candidate, Decision, Occupancy, Rejection
from olol_tui.routing.roster import Resident, Roster, Seat
from olol_tui.routing.speeds import Speeds
from olol_tui.routing.stakes import HORIZON_LOADS, Harm, Stakes, misery
from olol_tui.routing.survey import Survey, prefill_s
from olol_tui.units import format_size

LOAD_TIE = 1.3
"""Times within this factor count as equal: they are estimates."""
LOAD_MARGIN = 1.2
"""A further replica must beat waiting by this factor: loads are estimates and evict others."""
FREE_MARGIN = 0.6
"""Into free memory it is loaded sooner, when serving all who wait and will come takes so much of
its time: nobody pays for it, and whoever comes next finds it there."""
PATIENCE_LOADS = 4.0
"""A model that is nowhere waits at most so many load times for others' work: nobody starves."""
CROWDING = 0.15
"""How much of a new replica's worth each request takes away that runs on the device already."""


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
    stakes = Stakes(roster, busy, speeds, now_s)
    for seat in (*found.cold, *found.small):
        if seat.fits is False:
            needs, has = format_size(seat.need_bytes), format_size(seat.vram_bytes or 0)
            how = "" if seat.is_guess else " by its header"
            reason = f"the model needs {needs}{how}, the device has {has}"
            found.rejected.append(Rejection(seat.where, reason))
            continue
        other = _other_load(ask.model, seat, busy)
        if other:
            found.rejected.append(Rejection(seat.where, f"it loads {other} first"))
            continue
        offer = _offer(ask, seat, stakes)
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


def _offer(ask: Ask, seat: Seat, stakes: Stakes) -> Offer | str:
    """What loading there takes, or why it cannot be."""
    busy, speeds = stakes.busy, stakes.speeds
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
        ((stakes.harm(one, seat, load_s), one) for one in seat.residents if not one.pinned),
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
        if not stakes.stays(one, seat):
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
        return _load_somewhere(
            ask, found, made, candidates, speeds, waiting=waiting, waited_s=waited_s
        )
    wait_s = queue_wait_s(ask, found, busy, speeds, waiting, now_s)
    best = _best(made, waiting)
    if best is not None:
        wanted = busy.demand.rate_per_s(ask.model, now_s)
        decision = _replica(
            ask, found, best, candidates, speeds, wait_s, waiting=waiting, wanted_per_s=wanted
        )
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
    speeds: Speeds,
    *,
    waiting: int,
    waited_s: float,
) -> Decision:
    """It is resident nowhere: the question is only where it goes, and when."""
    rejected = tuple(found.rejected)
    best = _best(made, waiting)
    if best is None:
        return _nowhere(ask, found, rejected)
    where, seat = best.seat.where, best.seat
    patience_s = PATIENCE_LOADS * best.candidate.load_s
    # The last of them is served when all are: now, or after all that patience.
    work_s = waiting * speeds.of("", ask.model, seat.size_bytes).usual_s / max(1, seat.slots)
    served_s = waited_s + work_s
    pain = misery(waiting, served_s + best.ready_s, served_s + patience_s)
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
    wanted_per_s: float,
) -> Decision | None:
    """A further replica, where it saves more than it costs."""
    # Before its first reply nobody knows how long this model serves: be slower to believe it.
    doubts = 1.0 if speeds.known(ask.model) else 2.0
    cost = best.candidate
    served = sum(seat.slots for seat in found.full) + sum(seat.slots for seat in found.loading)
    service_s = max(1e-3, speeds.of("", ask.model, cost.seat.size_bytes).usual_s)
    ready_s = best.ready_s
    if speeds.known(ask.model) and not best.evict and not best.drains:
        wanted = waiting + wanted_per_s * HORIZON_LOADS * cost.load_s
        work_s = wanted * service_s / served
        if work_s > FREE_MARGIN * ready_s:
            reason = _worth(work_s, wait_s, best)
            return Decision("load", best.seat, candidates, tuple(found.rejected), reason)
    # What runs there already shares the device with it.
    slots = max(1, cost.seat.slots) / (1.0 + CROWDING * best.crowd)
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
    reason = _worth(wait_s, wait_s, best)
    return Decision("load", best.seat, candidates, rejected, reason, best.evict)


def _worth(work_s: float, wait_s: float, best: Offer) -> str:
    """The reason of a further replica."""
    cost = best.candidate
    where = cost.seat.where if best.crowd else f"idle {cost.seat.where}"
    if wait_s > cost.load_s:
        return f"{wait_s:.1f} s of queue > {cost.load_s:.1f} s load on {where}"
    return (
        f"{work_s:.1f} s until all who wait and will soon come are served, and room for a "
        f"{cost.load_s:.1f} s load is free on {where}"
    )


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
