"""Which engines are left alone for a while because they failed, and how they come back.

    healthy -> ejected: three failures in a row; ten seconds, longer each time
    ejected -> on probation: the time is over; one request at a time tries it
    on probation -> starting: it answered; its share grows over some seconds
    on probation -> ejected: it failed again

Pure: fed with what requests met and with snapshots; the clock is an argument. What it knows
reaches a policy as changed seats (refused, or with fewer slots), so that no policy has to ask.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from math import ceil

from olol_tui.fleet.snapshot import Fleet
from olol_tui.routing.roster import Seat

EJECT_AFTER = 3
"""Consecutive failures of an engine before it is left alone for a while."""
EJECT_BASE_S = 10.0
EJECT_MAX_S = 120.0
JITTER = 0.2
"""Of a time, up or down: engines that fell together must not come back together."""
FORGET_S = 60.0
"""So long without an ejection takes one back from the count that makes the next one longer."""
SLOW_START_S = 10.0
SLOW_START_FLOOR = 0.1
BUSY_BASE_S = 0.25
BUSY_MAX_S = 4.0


@dataclass(slots=True)
class _State:
    """What is known against one engine. Times are of the clock."""

    failures: int = 0
    """In a row."""
    times: int = 0
    """Ejections that still count."""
    ejected_s: float = 0.0
    until_s: float = 0.0
    """0: not ejected; in the past: on probation."""
    probing: bool = False
    """On probation, and a request is finding out."""
    started_s: float | None = None
    """When its share began to grow."""
    busy_until_s: float = 0.0
    refusals: int = 0
    """Times in a row that it said it is busy."""

    def forget(self, now_s: float) -> None:
        while self.times and not self.until_s and now_s - self.ejected_s > FORGET_S:
            self.times -= 1
            self.ejected_s += FORGET_S

    def share(self, now_s: float) -> float:
        if self.started_s is None:
            return 1.0
        share = (now_s - self.started_s) / SLOW_START_S
        if share >= 1.0:
            self.started_s = None
            return 1.0
        return max(SLOW_START_FLOOR, share)

    @property
    def blank(self) -> bool:
        return not (
            self.failures or self.times or self.until_s or self.refusals
        ) and self.started_s is None  # fmt: skip


class Ejection:
    """Failures by seat key. Empty while everything is well, and then it costs nothing."""

    __slots__ = ("_pids", "_random", "_states", "watches")

    def __init__(self, *, chance: Callable[[], float] = random.random) -> None:
        """
        Args:
            chance: numbers from 0 to 1, for the jitter.
        """
        self._random = chance
        self._states: dict[str, _State] = {}
        self.watches: Collection[str] = self._states.keys()
        """Engines against which anything is held; while it is empty nobody has to ask."""
        self._pids: dict[str, int | None] = {}

    # -- what requests met

    def failed(self, engine: str, now_s: float, *, others: bool) -> float:
        """An engine broke off, refused or fell silent.

        Args:
            others: another engine can serve the model; the last one is never ejected.

        Returns:
            For how long it was ejected by this, seconds; 0: it was not.
        """
        state = self._states.setdefault(engine, _State())
        state.failures += 1
        on_probation = 0 < state.until_s <= now_s
        state.probing = False
        if state.until_s > now_s or not others:
            return 0.0
        if state.failures < EJECT_AFTER and not on_probation:
            return 0.0
        state.forget(now_s)
        state.times += 1
        state.started_s = None
        state.ejected_s = now_s
        span_s = self._jittered(min(EJECT_BASE_S * state.times, EJECT_MAX_S))
        state.until_s = now_s + span_s
        return span_s

    def forgiven(self, engine: str) -> None:
        """A failure that others shared: the request was at fault, not the engine."""
        state = self._states.get(engine)
        if state is None or not state.failures:
            return
        state.failures -= 1
        if state.until_s and state.failures < EJECT_AFTER:
            state.until_s = 0.0
            state.times -= 1

    def answered(self, engine: str, now_s: float, sent_s: float) -> None:
        """The first byte of a reply came. `sent_s`: when the request went there."""
        state = self._states.get(engine)
        if state is None:
            return
        state.refusals = 0
        state.busy_until_s = 0.0
        if state.until_s and sent_s >= state.ejected_s:
            state.until_s = 0.0
            state.probing = False
            state.started_s = now_s
            # Not trusted yet: one failure more and it is out again.
            state.failures = EJECT_AFTER - 1

    def succeeded(self, engine: str, now_s: float, sent_s: float) -> None:
        """A reply came whole."""
        state = self._states.get(engine)
        if state is None:
            return
        self.answered(engine, now_s, sent_s)
        if not state.until_s:
            state.failures = 0

    def busy(self, engine: str, now_s: float) -> float:
        """It said that it is busy: no failure, but it gets nothing for a moment.

        Returns:
            For how long, seconds.
        """
        state = self._states.setdefault(engine, _State())
        span_s = self._jittered(min(BUSY_BASE_S * 2.0**state.refusals, BUSY_MAX_S))
        state.refusals += 1
        state.busy_until_s = now_s + span_s
        return span_s

    def taken(self, engine: str, now_s: float) -> None:
        """A request goes there."""
        state = self._states.get(engine)
        if state is not None and 0 < state.until_s <= now_s:
            state.probing = True

    def released(self, engine: str) -> None:
        """A request there is over, however it went: another one may find out."""
        state = self._states.get(engine)
        if state is not None:
            state.probing = False

    def observe(self, fleet: Fleet, now_s: float) -> None:
        """A new snapshot: a new process gets a new chance, and begins slowly."""
        pids = {
            engine.id: engine.pid
            for node in fleet.nodes
            for engine in node.engines
            if engine.pid is not None
        }
        for engine, pid in pids.items():
            known = self._pids.get(engine)
            if known is not None and known != pid:
                state = self._states.setdefault(engine, _State())
                state.failures = 0
                state.until_s = 0.0
                state.probing = False
                state.started_s = now_s
        self._pids.update(pids)
        here = {engine.id for node in fleet.nodes for engine in node.engines}
        for engine in [engine for engine in self._pids if engine not in here]:
            del self._pids[engine]
        for engine, state in list(self._states.items()):
            state.forget(now_s)
            state.share(now_s)
            if engine not in here or state.blank:
                del self._states[engine]

    # -- what follows from it

    def is_out(self, engine: str, now_s: float) -> bool:
        """Ejected, or on probation: nothing to count on."""
        state = self._states.get(engine)
        return state is not None and state.until_s > 0.0 and not self._may_probe(state, now_s)

    def guard(
        self, seats: tuple[Seat, ...], exclude: frozenset[str], now_s: float
    ) -> tuple[tuple[Seat, ...], str]:
        """The seats as a policy may use them now.

        Args:
            seats: of one model.
            exclude: incarnations that the request must not meet again.

        Returns:
            The seats, those of ejected engines refused, those of beginners with fewer slots;
            and what the operator should know about it: that ejections are ignored because too
            much would be lost by them.
        """
        states = self._states
        if not states or not any(seat.key in states for seat in seats):
            return seats, ""
        usable = [seat for seat in seats if not seat.refused]
        out = {seat.key for seat in usable if self.is_out(seat.key, now_s)}
        note = ""
        if 2 * len(out) > len(usable):
            note = f"{len(out)} of its {len(usable)} engines are ejected: ejections ignored"
        elif out and all(s.key in out for s in usable if s.incarnation not in exclude):
            note = "only ejected engines are left for it: ejections ignored"
        if note:
            out = set()
        full = any(
            seat.warm and seat.key not in out and self._share(seat.key, now_s) >= 1.0
            for seat in usable
        )
        return tuple(self._guarded(seat, out, full, now_s) for seat in seats), note

    def _guarded(self, seat: Seat, out: set[str], full: bool, now_s: float) -> Seat:
        state = self._states.get(seat.key)
        if state is None or seat.refused:
            return seat
        if seat.key in out:
            left_s = state.until_s - now_s
            reason = (
                f"ejected for {left_s:.0f} s after failures"
                if left_s > 0
                else "a request is finding out whether it works again"
            )
            return replace(seat, refused=reason)
        if state.busy_until_s > now_s:
            return replace(seat, slots=0)
        share = state.share(now_s)
        # A beginner yields to those that are warm; alone it has to take what comes.
        if share < 1.0 and full:
            return replace(seat, slots=max(1, ceil(seat.slots * share)), share=share)
        return seat

    def _share(self, engine: str, now_s: float) -> float:
        state = self._states.get(engine)
        return 1.0 if state is None else state.share(now_s)

    @staticmethod
    def _may_probe(state: _State, now_s: float) -> bool:
        return state.until_s <= now_s and not state.probing

    def _jittered(self, span_s: float) -> float:
        return span_s * (1.0 + JITTER * (2.0 * self._random() - 1.0))
