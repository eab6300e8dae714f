"""How much each model is wanted: arrivals a second and how many at once, both fading.

Pure: fed by the queue, read by the policy, which replicates and evicts by it.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp

RATE_FADES_S = 300.0
"""Minutes: what a fleet should hold is told by more than the burst of a moment. After so long a
silence a rate is a third of what it was."""
RATE_AGE_S = 10.0
"""Younger than this, what was seen is no rate yet: two requests at once are not a thousand a
second."""
PEAK_FADES_S = 90.0
"""A burst justifies its replicas for this long: longer than a load, so that they do not flap."""


@dataclass(slots=True)
class _Wanted:
    rate_per_s: float
    peak: float
    at_s: float
    """Clock at which both were so."""


class Demand:
    """By canonical model name; a model costs some bytes once it was asked for."""

    __slots__ = ("_since_s", "_wanted")

    def __init__(self) -> None:
        self._since_s = 0.0
        """Clock at which the first of all requests came."""
        self._wanted: dict[str, _Wanted] = {}

    def arrived(self, model: str, at_once: int, now_s: float) -> None:
        """A request came, and with it so many are queued or run."""
        one = self._wanted.get(model)
        if one is None:
            if not self._wanted:
                self._since_s = now_s
            self._wanted[model] = _Wanted(1.0 / RATE_FADES_S, at_once, now_s)
            return
        if (passed_s := now_s - one.at_s) > 0.0:
            one.rate_per_s *= exp(-passed_s / RATE_FADES_S)
            one.peak *= exp(-passed_s / PEAK_FADES_S)
            one.at_s = now_s
        one.rate_per_s += 1.0 / RATE_FADES_S
        if at_once > one.peak:
            one.peak = at_once

    def rate_per_s(self, model: str, now_s: float) -> float:
        """Requests a second of late, over all the time that anything was asked for where that
        is shorter."""
        one = self._wanted.get(model)
        if one is None:
            return 0.0
        seen = 1.0 - exp(-max(RATE_AGE_S, now_s - self._since_s) / RATE_FADES_S)
        return one.rate_per_s * exp((one.at_s - now_s) / RATE_FADES_S) / seen

    def peak(self, model: str, now_s: float) -> float:
        """How many at once lately, the past fading."""
        one = self._wanted.get(model)
        if one is None:
            return 0.0
        return one.peak * exp((one.at_s - now_s) / PEAK_FADES_S)
