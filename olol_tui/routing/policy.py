"""Which seat takes a request, or whether a load or a wait is better.

Pure: reads a Roster, what runs, learned speeds and a clock value; returns a decision with its
reasons. `routing.queue` is its only caller.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import ceil, inf

from olol_tui.routing import simple
from olol_tui.routing.decision import (
    NOBODY,
    Ask,
    Candidate,
    Decision,
    Occupancy,
    Policy,
    Rejection,
)
from olol_tui.routing.loads import LOAD_TIE, load_or_wait
from olol_tui.routing.roster import Roster, Seat
from olol_tui.routing.speeds import Speeds
from olol_tui.routing.survey import Survey, priced, survey

__all__ = [
    "NOBODY", "POLICIES", "Ask", "Candidate", "Decision", "Occupancy", "Policy", "Rejection",
    "at_a_glance", "expected", "in_full", "policies",
]  # fmt: skip

Rank = tuple[float, float, bool, float, float]
PREFILL_TIE_S = 0.05
"""Prefills this close are equal: a short prompt's measured speed is mostly noise, and a
rounding edge between 14 and 16 ms once kept an engine idle beside full ones."""
PACE_TIE = 1.3
"""Engines are taken for equally fast within this factor."""


def expected(
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
    """The seat with the least expected time to the first token.

    That is the wait for a slot, the load of a cold model, and the prefill that no cache
    covers. Ties go to the faster engine, then to the emptier, then to the one idle for longest.
    """
    # There can be 10,000 of these a second.
    chosen = at_a_glance(ask, seats, busy, speeds, now_s)
    if chosen is not None:
        return chosen
    return in_full(
        ask, seats, roster, busy, speeds, waiting=waiting, waited_s=waited_s, now_s=now_s
    )


def in_full(
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
    """`expected` in its general case."""
    found = survey(ask, seats, busy)
    if not found.free:
        return load_or_wait(
            ask, found, roster, busy, speeds, waiting=waiting, waited_s=waited_s, now_s=now_s
        )
    candidates = priced(ask, found.free, busy, speeds)
    if len(candidates) == 1 and not found.full:
        return _dispatch(ask, candidates[0], tuple(candidates), tuple(found.rejected))
    least_s = min(c.prefill_s for c in candidates)
    better = _worth_waiting(ask, found, least_s, busy, speeds, waiting)
    if better is not None:
        note = f", {better.note}" if better.note else ""
        reason = (
            f"waiting {better.wait_s:.2f} s for a slot on {better.seat.where}{note}: "
            f"its first token comes sooner"
        )
        return Decision(
            "wait", better.seat, (better, *candidates), tuple(found.rejected), reason, picky=True
        )
    limit_s = max(LOAD_TIE * least_s, least_s + PREFILL_TIE_S)
    fastest = max(speeds.faster(c.seat.key) for c in candidates) if len(candidates) > 1 else 1.0
    model = ask.model

    def rank(one: Candidate) -> Rank:
        key = one.seat.key
        pace = speeds.faster(key)
        return (
            one.prefill_s if one.prefill_s > limit_s else 0.0,
            0.0 if pace * PACE_TIE >= fastest else 1.0 / pace,
            # Even where it saves the client nothing to speak of: it is work that need not be done.
            not one.note,
            (busy.by_engine.get(key, 0) + 1) / one.seat.share,
            busy.last_used.get((key, model), 0.0),
        )

    candidates = _needed(ask, found, candidates, rank, busy, now_s)
    best = min(candidates, key=rank) if len(candidates) > 1 else candidates[0]
    return _dispatch(ask, best, tuple(candidates), tuple(found.rejected))


def at_a_glance(
    ask: Ask, seats: tuple[Seat, ...], busy: Occupancy, speeds: Speeds, now_s: float
) -> Decision | None:
    """What `in_full` comes to where every seat has the model, a slot is free, none that is free
    is nearer than another, and nothing else has to be looked at; else None.

    The same order without its general case: that takes longer than the rest of the queue
    together.
    """
    if ask.num_ctx is not None or ask.prefix or ask.exclude:
        return None
    if busy.claims or busy.loads or busy.leaving:
        return None
    model, tokens, running = ask.model, ask.prompt_tokens, busy.running
    if len(seats) == 1:
        seat = seats[0]
        if not seat.warm or seat.refused or running.get((seat.key, model), 0) >= seat.slots:
            return None
        speed = speeds.of(seat.key, model, seat.size_bytes)
        only = Candidate(seat, 0.0, 0.0, tokens / speed.prefill_tps)
        return _dispatch(ask, only, (only,), ())
    paces = speeds.pace
    candidates = []
    full = 0
    least_s, most_s = inf, 0.0
    slowest, fastest = inf, 0.0
    for seat in seats:
        key = seat.key
        if not seat.warm or seat.refused:
            return None
        if running.get((key, model), 0) >= seat.slots:
            full += 1
            continue
        prefill = tokens / speeds.of(key, model, seat.size_bytes).prefill_tps
        if prefill < least_s:
            least_s = prefill
        if prefill > most_s:
            most_s = prefill
        pace = paces.get(key, 1.0)
        if pace < slowest:
            slowest = pace
        if pace > fastest:
            fastest = pace
        candidates.append(Candidate(seat, 0.0, 0.0, prefill))
    count = len(candidates)
    if not count or (full and least_s > PREFILL_TIE_S):
        return None
    if count == 1:
        return _dispatch(ask, candidates[0], tuple(candidates), ())
    if most_s > max(LOAD_TIE * least_s, least_s + PREFILL_TIE_S) or slowest * PACE_TIE < fastest:
        return None
    rejected: tuple[Rejection, ...] = ()
    wanted = _wanted(model, busy, now_s) - full
    last_used = busy.last_used
    if 0 < wanted < count:
        # As in `_needed`, where nothing tells the seats apart but how they are used.
        candidates.sort(
            key=lambda one: (
                -running.get((one.seat.key, model), 0),
                -last_used.get((one.seat.key, model), 0.0),
            )
        )
        rejected = _left(candidates[wanted:], wanted, count + full)
        del candidates[wanted:]
    by_engine = busy.by_engine
    best, least, since_s = candidates[0], inf, 0.0
    for one in candidates:
        seat = one.seat
        key = seat.key
        fill = (by_engine.get(key, 0) + 1) / seat.share
        if fill > least:
            continue
        used_s = last_used.get((key, model), 0.0)
        if fill < least or used_s < since_s:
            best, least, since_s = one, fill, used_s
    return _dispatch(ask, best, tuple(candidates), rejected)


def _dispatch(
    ask: Ask, best: Candidate, candidates: tuple[Candidate, ...], rejected: tuple[Rejection, ...]
) -> Decision:
    reason = f"{best.seat.where} has {ask.model} loaded and a free slot"
    if best.note:
        reason += f", {best.note}"
    return Decision("dispatch", best.seat, candidates, rejected, reason)


def _needed(
    ask: Ask,
    found: Survey,
    free: list[Candidate],
    rank: Callable[[Candidate], Rank],
    busy: Occupancy,
    now_s: float,
) -> list[Candidate]:
    """The replicas that the demand of late needs, one for each request at once.

    The others are left to expire, or to be evicted first: that is how a model that was hot
    shrinks again. They serve when these have no slot.
    """
    replicas = len(free) + len(found.full)
    if len(free) == 1:
        return free
    wanted = _wanted(ask.model, busy, now_s) - len(found.full)
    if not 0 < wanted < len(free):
        return free

    def keep(one: Candidate) -> tuple[float, float, bool, int, float]:
        place = (one.seat.key, ask.model)
        return (*rank(one)[:3], -busy.running.get(place, 0), -busy.last_used.get(place, 0.0))

    order = sorted(free, key=keep)
    found.rejected += _left(order[wanted:], wanted, replicas)
    return order[:wanted]


def _wanted(model: str, busy: Occupancy, now_s: float) -> int:
    """Replicas, by how many requests there were at once lately."""
    return max(1, ceil(busy.demand.peak(model, now_s) - 0.05))


def _left(over: list[Candidate], wanted: int, replicas: int) -> tuple[Rejection, ...]:
    reason = f"left to expire: {wanted} at once lately, {replicas} replicas"
    return tuple(Rejection(one.seat.where, reason) for one in over)


def _worth_waiting(
    ask: Ask, found: Survey, least_s: float, busy: Occupancy, speeds: Speeds, waiting: int
) -> Candidate | None:
    """A full seat whose next slot gives the first token sooner than any free one: it has the
    conversation in its cache, or is that much faster."""
    if not found.full or least_s <= PREFILL_TIE_S:
        return None
    best = None
    for one in priced(ask, found.full, busy, speeds):
        seat = one.seat
        # Whoever waits although a slot is free waits for the same seat, as a rule.
        wait_s = waiting * (
            speeds.of(seat.key, ask.model, seat.size_bytes).service_s / max(1, seat.slots)
        )
        if (wait_s + one.prefill_s) * LOAD_TIE < least_s and (
            best is None or wait_s + one.prefill_s < best.ttft_s
        ):
            best = Candidate(seat, wait_s, 0.0, one.prefill_s, one.note)
    return best


POLICIES: dict[str, Policy] = {
    "expected": expected,
    "least-busy": simple.least_busy,
    "round-robin": simple.round_robin,
    "sticky": simple.sticky,
}
"""By the names that `cluster.toml` knows them under."""


def policies(default: str, by_model: Mapping[str, str]) -> Callable[[str], Policy]:
    """The policy of each canonical model name, by the names of `POLICIES`."""
    usual = POLICIES[default]
    special = {model: POLICIES[name] for model, name in by_model.items()}
    if not special:
        return lambda _: usual
    return lambda model: special.get(model, usual)
