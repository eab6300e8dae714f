"""What a policy is asked, what it may look at, and what it answers. Pure.

A policy is any function of the type `Policy`: the queue calls it for the head of a model's
line and carries out what it says. What is made for every request is a struct of msgspec: a
frozen dataclass takes several times as long to make.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, Protocol

import msgspec

from olol_tui.routing.demand import Demand
from olol_tui.routing.prefix import Prefixes
from olol_tui.routing.roster import Roster, Seat
from olol_tui.routing.speeds import Speeds

NOBODY = "no engine can take it now"


class Ask(msgspec.Struct, frozen=True):
    """What a client wants, as far as routing cares."""

    model: str
    """Canonical name."""
    prompt_tokens: int = 0
    """Estimate from the body's size."""
    num_ctx: int | None = None
    exclude: frozenset[str] = frozenset()
    """Engine incarnations that already failed this request."""
    prefix: tuple[int, ...] = ()
    """Marks of the prompt's beginning, shortest first; see `prefix.marks`."""
    client: str = ""
    """Who asks: what `sticky` sticks to."""
    distributed: bool | None = None
    """True: over several devices; False: on one; None: as the model's rule says."""


class Candidate(msgspec.Struct, frozen=True):
    """One seat that may serve, and what it would cost the client. Seconds."""

    seat: Seat
    wait_s: float
    load_s: float
    prefill_s: float
    note: str = ""
    """What else speaks for or against it: `prompt cached up to 1,024 tokens`."""

    @property
    def ttft_s(self) -> float:
        return self.wait_s + self.load_s + self.prefill_s

    def text(self) -> str:
        note = f", {self.note}" if self.note else ""
        return (
            f"{self.seat.where}: {self.ttft_s:.2f} s to first token "
            f"(wait {self.wait_s:.2f} + load {self.load_s:.2f} + "
            f"prefill {self.prefill_s:.2f}{note})"
        )


class Rejection(msgspec.Struct, frozen=True):
    where: str
    reason: str
    final: bool = False
    """Waiting will not change it."""


class Decision(msgspec.Struct, frozen=True, dict=True):
    """What to do with the head of a model's queue."""

    action: Literal["dispatch", "load", "wait", "fail"]
    seat: Seat | None = None
    candidates: tuple[Candidate, ...] = ()
    rejected: tuple[Rejection, ...] = ()
    reason: str = ""
    evict: tuple[str, ...] = ()
    """With `load`: canonical names that leave the engine first."""
    claim: str = ""
    """With `wait`: room of a seat; nothing new starts in it until there is space for us."""
    picky: bool = False
    """With `wait`: a slot is free, but not the one worth waiting for: others may pass."""

    @cached_property
    def text(self) -> str:
        """One line for the operator: the choice, then what it beat and what could not serve."""
        parts = [self.reason]
        parts += [f"over {c.text()}" for c in self.candidates if c.seat is not self.seat]
        parts += [f"not {r.where}: {r.reason}" for r in self.rejected]
        return "; ".join(part for part in parts if part)


def _nobody_waits(_: str) -> int:
    return 0


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
    loaded_at: Mapping[tuple[str, str], float] = field(default_factory=dict)
    """(seat key, model) → clock at which our load of it ended."""
    leaving: Mapping[tuple[str, str], str] = field(default_factory=dict)
    """(seat key, model) that is unloaded now → the model whose load needs its room."""
    claims: Mapping[str, str] = field(default_factory=dict)
    """Room of a seat → model that waits for space there."""
    queued: Callable[[str], int] = _nobody_waits
    """Model → requests that wait."""
    demand: Demand = field(default_factory=Demand)
    prefixes: Prefixes = field(default_factory=Prefixes)


class Policy(Protocol):
    """Decides for the request at the head of its model's queue."""

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
        """
        Args:
            ask: the request.
            seats: everywhere its model runs or could run, less what failures rule out.
            roster: where other models are.
            waiting: requests of the model that wait, this one included.
            waited_s: how long this one waits.
            now_s: clock.

        Returns:
            dispatch to a seat with a free slot, load on a seat, wait, or fail when no seat can
            ever serve it. Always with the candidates and rejections.
        """
        ...
