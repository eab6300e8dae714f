"""How many requests may be tried again: a share of the traffic, so that a fleet in trouble is
not buried under retries.

Pure; the clock is an argument.
"""

from __future__ import annotations

RETRY_SHARE = 0.2
RETRY_MIN = 16
"""In any window, whatever the traffic: the running requests of an engine that dies."""
WINDOW_S = 10.0
_BUCKETS = 10


class RetryBudget:
    """Requests and retries of the last seconds, in buckets of one second."""

    __slots__ = ("_at", "_retries", "_second", "_started")

    def __init__(self) -> None:
        self._started = [0] * _BUCKETS
        self._retries = [0] * _BUCKETS
        self._second = 0
        self._at = 0

    def started(self, now_s: float) -> None:
        """A request was sent to an engine for the first time."""
        if int(now_s) != self._second:
            self._turn(int(now_s))
        self._started[self._at] += 1

    def take(self, now_s: float) -> bool:
        """Whether one more retry is allowed; counts it."""
        if int(now_s) != self._second:
            self._turn(int(now_s))
        if sum(self._retries) >= max(RETRY_MIN, RETRY_SHARE * sum(self._started)):
            return False
        self._retries[self._at] += 1
        return True

    def _turn(self, second: int) -> None:
        for past in range(self._second + 1, min(second, self._second + _BUCKETS) + 1):
            self._started[past % _BUCKETS] = self._retries[past % _BUCKETS] = 0
        if second > self._second + _BUCKETS:
            self._started = [0] * _BUCKETS
            self._retries = [0] * _BUCKETS
        self._second = second
        self._at = second % _BUCKETS
