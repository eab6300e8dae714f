"""Which engines are left alone for a while because they failed.

Pure: fed with what requests met, read by the policy; the clock is an argument.
"""

from __future__ import annotations

from collections.abc import Mapping

EJECT_AFTER = 3
"""Consecutive failures of an engine before it is left alone for a while."""
EJECT_BASE_S = 10.0
EJECT_MAX_S = 120.0


class Ejection:
    """Failures in a row by engine, and until when each is out."""

    __slots__ = ("_down_until", "_failures")

    def __init__(self) -> None:
        self._failures: dict[str, int] = {}
        self._down_until: dict[str, float] = {}

    @property
    def down_until(self) -> Mapping[str, float]:
        """Seat key → clock; a live view."""
        return self._down_until

    def failed(self, engine: str, now_s: float, *, others: bool) -> bool:
        """An engine broke off or refused a request.

        Args:
            others: another engine can serve the model; the last one is never ejected.

        Returns:
            Whether it is left alone for a while now.
        """
        count = self._failures[engine] = self._failures.get(engine, 0) + 1
        if others and count >= EJECT_AFTER:
            span_s = min(EJECT_BASE_S * (count - EJECT_AFTER + 1), EJECT_MAX_S)
            self._down_until[engine] = now_s + span_s
            return True
        return False

    def succeeded(self, engine: str) -> None:
        if engine in self._failures:
            del self._failures[engine]
            self._down_until.pop(engine, None)
