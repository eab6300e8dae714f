"""What requests teach the gateway about its engines: who failed, is busy, may be tried again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from olol_tui.gateway.metrics import Metrics
from olol_tui.gateway.port import FleetPort
from olol_tui.gateway.records import Record
from olol_tui.routing.budget import RetryBudget
from olol_tui.routing.queue import Queue
from olol_tui.routing.roster import Roster, Seat

log = logging.getLogger("olol.gateway")


class Health:
    """Between exchanges, which meet engines, and the queue's ejection, which judges them."""

    def __init__(
        self,
        fleet: FleetPort,
        queue: Queue,
        metrics: Metrics,
        roster: Callable[[], Roster],
        pump: Callable[[str], None],
    ) -> None:
        """
        Args:
            roster: the latest one.
            pump: looks at a model's queue again.
        """
        self._loop = asyncio.get_running_loop()
        self._fleet = fleet
        self._ejection = queue.ejection
        self._metrics = metrics
        self._roster = roster
        self._pump = pump
        self._timers: set[asyncio.TimerHandle] = set()
        self._budget = RetryBudget()
        self.sent: Callable[[float], None] = self._budget.started
        """A request went to an engine for the first time."""
        self.watches = queue.ejection.watches
        """While it is empty nothing has to be told but failures."""

    def failed(self, seat: Seat, model: str, reason: str, cause: str) -> None:
        """An engine broke off a request or a load, answered nonsense, or fell silent.

        Args:
            cause: a word that can be counted.
        """
        now = self._loop.time()
        others = self.has_other(model, frozenset({seat.incarnation}))
        span_s = self._ejection.failed(seat.key, now, others=others)
        self._metrics.engine_failed(seat.key, cause, ejected=span_s > 0)
        log.warning(
            "engine failed",
            extra={
                "engine": seat.key,
                "reason": reason,
                "cause": cause,
                "ejected_s": round(span_s, 1),
            },
        )
        self._fleet.kick(seat.engine)

    def forgiven(self, seat: Seat) -> None:
        """It was the request."""
        self._ejection.forgiven(seat.key)

    def answered(self, seat: Seat | None, record: Record, now_s: float) -> None:
        """The first byte of a reply came."""
        if seat is not None:
            self._ejection.answered(seat.key, now_s, record.sent_s or now_s)

    def succeeded(self, seat: Seat, record: Record) -> None:
        """A whole reply came."""
        now = self._loop.time()
        self._ejection.succeeded(seat.key, now, record.sent_s or now)

    def busy(self, seat: Seat, model: str) -> None:
        """It said so: look at the model's queue again when it may not be any more."""
        now = self._loop.time()
        delay_s = self._ejection.busy(seat.key, now)
        self._metrics.retried("busy")
        self._timers = {timer for timer in self._timers if timer.when() > now}
        self._timers.add(self._loop.call_later(delay_s, self._pump, model))

    def has_other(self, model: str, exclude: frozenset[str]) -> bool:
        """Another engine could take a request of this model now, and has not been failing."""
        now = self._loop.time()
        return any(
            not seat.refused
            and seat.incarnation not in exclude
            and not self._ejection.is_out(seat.key, now)
            for seat in self._roster().seats(model)
        )

    def may_retry(self, cause: str) -> bool:
        """Whether the budget allows one more retry; counts it."""
        allowed = self._budget.take(self._loop.time())
        self._metrics.retried(cause if allowed else "denied")
        return allowed

    def close(self) -> None:
        for timer in self._timers:
            timer.cancel()
