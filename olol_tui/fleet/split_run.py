"""What is remembered of one split between looks. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from olol_tui.fleet.snapshot import SplitState
from olol_tui.fleet.split_stage import Stage


@dataclass(slots=True)
class Run:
    """From when it is first asked for; not kept over a restart of the controller."""

    model: str
    since_s: float
    state: SplitState = "planning"
    now: Stage | None = None
    was_ready: bool = False
    fell_s: float | None = None
    restarts: int = 0
    restart_s: float | None = None
    error: str = ""
    log_tail: tuple[str, ...] = ()
    lost_since_s: float | None = None
    is_growing: bool = False
    """It is being planned anew, with more context."""
    largest_ctx: int | None = None
    replanned_s: float = 0.0
    num_ctx: int | None = None
    """As it was asked for, for another try."""
    is_spread: bool = False
    shown_s: float = 0.0
    """Once it failed: for how long, and so long nobody but the operator has it tried again."""
    has_told: bool = False
    """What its head logged of its memory has been learned."""

    def becomes(self, state: SplitState, now_s: float) -> None:
        if state == self.state:
            return
        self.state, self.since_s = state, now_s
        self.has_told = self.has_told and state == "ready"
        if state == "ready":
            if self.fell_s is not None:
                self.restarts += 1
                self.restart_s, self.fell_s = now_s - self.fell_s, None
            self.was_ready = True
            self.error = ""
        elif self.was_ready and self.fell_s is None:
            self.fell_s = now_s

    def grows(self, now_s: float) -> None:
        """It is planned anew on purpose: no failure, though it is down for a while."""
        self.is_growing = True
        self.was_ready = False
        self.becomes("planning", now_s)
