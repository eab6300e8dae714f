"""Sorts the seats of a model by what they could do for a request now. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from olol_tui.routing.decision import Ask, Candidate, Occupancy, Rejection
from olol_tui.routing.roster import Seat
from olol_tui.routing.speeds import Speeds

FAILED_BEFORE = "it failed this request before"
CACHES_PER_SLOT = 2
"""Prompts that an engine keeps for each slot: the one in it, and about one in host memory."""


@dataclass(slots=True)
class Survey:
    """Every seat is in exactly one list."""

    free: list[Seat] = field(default_factory=list)
    """Warm, with a slot for us."""
    full: list[Seat] = field(default_factory=list)
    """Warm, every slot taken."""
    loading: list[Seat] = field(default_factory=list)
    """On its way there."""
    cold: list[Seat] = field(default_factory=list)
    small: list[Seat] = field(default_factory=list)
    """Warm, with less context than was asked for: a load by another name."""
    rejected: list[Rejection] = field(default_factory=list)


def survey(ask: Ask, seats: tuple[Seat, ...], busy: Occupancy) -> Survey:
    """Sort the seats of `ask.model`."""
    model = ask.model
    found = Survey()
    for seat in seats:
        if reason := ruled_out(ask, seat, busy):
            found.rejected.append(Rejection(seat.where, reason, seat.dead))
        elif (seat.key, model) in busy.loads:
            found.loading.append(seat)
        elif (seat.key, model) in busy.leaving:
            found.cold.append(seat)
        elif seat.warm:
            if is_small(ask, seat):
                found.small.append(seat)
            elif busy.running.get((seat.key, model), 0) < seat.slots:
                found.free.append(seat)
            else:
                found.full.append(seat)
        elif seat.loading:
            found.loading.append(seat)
        else:
            found.cold.append(seat)
    return found


def ruled_out(ask: Ask, seat: Seat, busy: Occupancy) -> str:
    """Why a seat takes nothing of this request now; empty when it may."""
    if seat.refused:
        return seat.refused
    if seat.incarnation in ask.exclude:
        return FAILED_BEFORE
    if busy.claims and busy.claims.get(seat.room, ask.model) != ask.model:
        claimant = busy.claims[seat.room]
        return f"it makes room for {claimant}"
    return ""


def is_small(ask: Ask, seat: Seat) -> bool:
    """The client asks for more context than the model was loaded with there."""
    return (
        ask.num_ctx is not None
        and seat.context_length is not None
        and ask.num_ctx > seat.context_length
        # A model's own limit caps what is loaded: asking again would load for ever.
        and (seat.longest_context is None or seat.context_length < seat.longest_context)
    )


def priced(ask: Ask, seats: list[Seat], busy: Occupancy, speeds: Speeds) -> list[Candidate]:
    """The seats with their prefill, less what a cache saves."""
    if not ask.prefix:
        return [Candidate(seat, 0.0, 0.0, prefill_s(ask, seat, speeds)) for seat in seats]
    keeps = {seat.incarnation: CACHES_PER_SLOT * seat.slots for seat in seats}
    cached = busy.prefixes.cached(ask.model, ask.prefix, keeps)
    found = []
    for seat in seats:
        saved = cached.get(seat.incarnation, 0) // BYTES_PER_TOKEN
        note = f"prompt cached up to {saved:,} tokens" if saved else ""
        found.append(Candidate(seat, 0.0, 0.0, prefill_s(ask, seat, speeds, saved), note))
    return found


BYTES_PER_TOKEN = 4
"""Of an English prompt; only for estimates."""


def prefill_s(ask: Ask, seat: Seat, speeds: Speeds, saved_tokens: int = 0) -> float:
    tokens = max(0, ask.prompt_tokens - saved_tokens)
    return tokens / speeds.of(seat.key, ask.model, seat.size_bytes).prefill_tps
