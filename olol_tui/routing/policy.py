"""Which seat takes a request, or whether a load or a wait is better.

Pure: reads a Roster, what runs, learned speeds and a clock value; returns a decision with its
reasons. `routing.queue` is its only caller.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from olol_tui.routing.roster import Seat
from olol_tui.routing.speeds import Speeds

_FAILED_BEFORE = "it failed this request before"
LOAD_TIE = 1.3
"""Times of loads and prefills within this factor count as equal: they are estimates."""
PREFILL_TIE_S = 0.05
"""Prefills this close are equal too: a short prompt's measured speed is mostly noise, and a
rounding edge between 14 and 16 ms once kept an engine idle beside full ones."""
NOBODY = "no engine can take it now"
LOAD_MARGIN = 1.2
"""A further replica must beat waiting by this factor: loads are estimates and evict others."""


@dataclass(frozen=True, slots=True)
class Ask:
    """What a client wants, as far as routing cares."""

    model: str
    """Canonical name."""
    prompt_tokens: int = 0
    """Estimate from the body's size."""
    num_ctx: int | None = None
    exclude: frozenset[str] = frozenset()
    """Engine incarnations that already failed this request."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One seat that may serve, and what it would cost the client. Seconds."""

    seat: Seat
    wait_s: float
    load_s: float
    prefill_s: float

    @property
    def ttft_s(self) -> float:
        return self.wait_s + self.load_s + self.prefill_s

    def text(self) -> str:
        return (
            f"{self.seat.where}: {self.ttft_s:.2f} s to first token "
            f"(wait {self.wait_s:.2f} + load {self.load_s:.2f} + prefill {self.prefill_s:.2f})"
        )


@dataclass(frozen=True, slots=True)
class Rejection:
    where: str
    reason: str
    final: bool = False
    """Waiting will not change it."""


@dataclass(frozen=True)
class Decision:
    """What to do with the head of a model's queue."""

    action: Literal["dispatch", "load", "wait", "fail"]
    seat: Seat | None = None
    candidates: tuple[Candidate, ...] = ()
    rejected: tuple[Rejection, ...] = ()
    reason: str = ""

    @cached_property
    def text(self) -> str:
        """One line for the operator: the choice, then what it beat and what could not serve."""
        parts = [self.reason]
        parts += [f"over {c.text()}" for c in self.candidates if c.seat is not self.seat]
        parts += [f"not {r.where}: {r.reason}" for r in self.rejected]
        return "; ".join(part for part in parts if part)


@dataclass(frozen=True, slots=True)
class Occupancy:
    """What the gateway itself has under way. Read-only views of the queue's own books."""

    running: Mapping[tuple[str, str], int]
    """(seat key, model) → requests."""
    by_engine: Mapping[str, int]
    """Seat key → requests of any model."""
    loads: Mapping[tuple[str, str], float]
    """(seat key, model) → clock at which our load of it began."""
    last_used: Mapping[tuple[str, str], float]


def choose(
    ask: Ask,
    seats: tuple[Seat, ...],
    busy: Occupancy,
    speeds: Speeds,
    *,
    waiting: int,
    now_s: float,
) -> Decision:
    """Decide for the request at the head of its model's queue.

    Args:
        ask: the request.
        seats: everywhere its model runs or could run.
        waiting: requests of the model that wait, this one included.
        now_s: clock.

    Returns:
        dispatch to a warm seat with a free slot (least expected time to first token; ties to
        the emptier engine, then to the one idle for longest), load on a seat, wait for one, or
        fail when no seat can ever serve it. Always with the candidates and rejections.
    """
    model = ask.model
    rejected: list[Rejection] = []
    free: list[Candidate] = []
    full: list[Seat] = []
    cold: list[Seat] = []
    loading: list[Seat] = []
    for seat in seats:
        if reason := _ruled_out(ask, seat):
            rejected.append(Rejection(seat.where, reason, seat.dead))
        elif seat.warm:
            if busy.running.get((seat.key, model), 0) < seat.slots:
                free.append(Candidate(seat, 0.0, 0.0, _prefill_s(ask, seat, speeds)))
            else:
                full.append(seat)
        elif seat.loading or (seat.key, model) in busy.loads:
            loading.append(seat)
        else:
            cold.append(seat)

    if free:
        least_s = min(c.prefill_s for c in free)
        limit_s = max(LOAD_TIE * least_s, least_s + PREFILL_TIE_S)
        best = min(
            free,
            key=lambda c: (
                c.prefill_s if c.prefill_s > limit_s else 0.0,
                (busy.by_engine.get(c.seat.key, 0) + 1) / c.seat.share,
                busy.last_used.get((c.seat.key, model), 0.0),
            ),
        )
        return Decision(
            "dispatch",
            best.seat,
            tuple(free),
            tuple(rejected),
            f"{best.seat.where} has {model} loaded and a free slot",
        )
    return _load_or_wait(
        ask, full, loading, cold, rejected, busy, speeds, waiting=waiting, now_s=now_s
    )


def _load_or_wait(
    ask: Ask,
    full: list[Seat],
    loading: list[Seat],
    cold: list[Seat],
    rejected: list[Rejection],
    busy: Occupancy,
    speeds: Speeds,
    *,
    waiting: int,
    now_s: float,
) -> Decision:
    """No free slot: is a load cheaper than the queue?"""
    loads: list[Candidate] = []
    spilling: list[Seat] = []
    crowded: list[Seat] = []
    for seat in cold:
        blocked, evicted_bytes = _room(seat, busy)
        if seat.fits is False:
            spilling.append(seat)
        elif blocked:
            crowded.append(seat)
            rejected.append(Rejection(seat.where, blocked))
        else:
            # Evicted models will be wanted again: charge their reload to this load.
            load_s = speeds.load_s(seat.node, seat.size_bytes + evicted_bytes)
            loads.append(Candidate(seat, 0.0, load_s, _prefill_s(ask, seat, speeds)))
    best = _best_load(loads, busy)
    wait_s = _queue_wait_s(ask, full, loading, busy, speeds, waiting, now_s)
    if not full and not loading:
        if best is not None:
            reason = f"loading {ask.model} on {best.seat.where}: nobody has it warm"
            return Decision("load", best.seat, tuple(loads), tuple(rejected), reason)
        if spilling:
            seat = max(spilling, key=_free)
            reason = f"{ask.model} fits no device; {seat.where} has the most memory"
            return Decision("load", seat, (), tuple(rejected), reason)
        if crowded:
            # Room comes when what runs there ends: this is a queue, not an outage.
            reason = f"waiting for room on {', '.join(seat.where for seat in crowded)}"
            return Decision("wait", None, (), tuple(rejected), reason)
        if not rejected:
            return Decision("fail", None, (), (), "no engine has the model")
        if all(r.final for r in rejected):
            return Decision("fail", None, (), tuple(rejected), "every engine that has it failed")
        return Decision("wait", None, (), tuple(rejected), NOBODY)
    # Before its first reply nobody knows how long this model serves: one load is enough.
    known = not loading or any(speeds.of(x.key, ask.model).samples for x in (*full, *loading))
    worth = best is not None and wait_s > LOAD_MARGIN * best.load_s
    if best is not None and known and worth and _is_idle(best.seat, busy):
        reason = f"{wait_s:.1f} s of queue > {best.load_s:.1f} s load on idle {best.seat.where}"
        return Decision("load", best.seat, tuple(loads), tuple(rejected), reason)
    place = ", ".join(seat.where for seat in (full or loading))
    verb = "a slot on" if full else "the load on"
    reason = f"waiting for {verb} {place}, about {wait_s:.1f} s"
    return Decision("wait", None, tuple(loads), tuple(rejected), reason)


def _best_load(loads: list[Candidate], busy: Occupancy) -> Candidate | None:
    """The quickest load; among those about as quick, the emptiest device."""
    if not loads:
        return None
    limit_s = LOAD_TIE * min(c.ttft_s for c in loads)
    near = [c for c in loads if c.ttft_s <= limit_s]
    return min(near, key=lambda c: (busy.by_engine.get(c.seat.key, 0), -_free(c.seat)))


def _ruled_out(ask: Ask, seat: Seat) -> str:
    if seat.refused:
        return seat.refused
    if seat.incarnation in ask.exclude:
        return _FAILED_BEFORE
    return ""


def _prefill_s(ask: Ask, seat: Seat, speeds: Speeds) -> float:
    return ask.prompt_tokens / speeds.of(seat.key, ask.model).prefill_tps


def _room(seat: Seat, busy: Occupancy) -> tuple[str, int]:
    """(why there is no room now or "", bytes of idle models that would be evicted)."""
    if seat.free_bytes is None or not seat.size_bytes:
        return "", 0
    missing = seat.need_bytes - seat.free_bytes
    if missing <= 0:
        return "", 0
    evicted = 0
    for name, size in seat.idle_residents:
        if evicted >= missing:
            break
        if not busy.running.get((seat.key, name), 0):
            evicted += size
    if evicted >= missing:
        return "", evicted
    return f"{missing - evicted:,} bytes short: what is loaded there is busy or pinned", 0


def _queue_wait_s(
    ask: Ask,
    full: list[Seat],
    loading: list[Seat],
    busy: Occupancy,
    speeds: Speeds,
    waiting: int,
    now_s: float,
) -> float:
    """Expected wait of the last in the queue: loads under way bring slots of their own, the
    rest comes at the measured rate of service."""
    remaining_s = []
    for seat in loading:
        elapsed_s = now_s - busy.loads.get((seat.key, ask.model), now_s)
        remaining_s.append(max(0.0, speeds.load_s(seat.node, seat.size_bytes) - elapsed_s))
    load_s = min(remaining_s, default=0.0)
    left = waiting - sum(seat.slots for seat in loading)
    if left <= 0:
        return load_s
    rate = sum(
        seat.slots / max(1e-3, speeds.of(seat.key, ask.model).service_s)
        for seat in (*full, *loading)
    )
    return load_s + left / rate if rate else 0.0


def _is_idle(seat: Seat, busy: Occupancy) -> bool:
    return not busy.by_engine.get(seat.key, 0)


def _free(seat: Seat) -> int:
    return seat.free_bytes or 0
