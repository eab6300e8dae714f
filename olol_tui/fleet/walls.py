"""Wall clocks of nodes that go wrong: their times as ours. Pure.

Nothing is decided by a node's wall clock (leases and ages are counted here, by a clock that
only goes forward); but moments that a node tells, such as when a model goes, are shown.
"""

from __future__ import annotations

from datetime import datetime, timedelta

TOLERANCE_S = 10.0
"""A frame may be late by so much, and a clock that is off by less misleads nobody."""


def ahead_s(node_wall_s: float | str, our_wall_s: float) -> float:
    """The node's clock minus ours in whole seconds; 0 within the tolerance, or when it is mute."""
    if isinstance(node_wall_s, str) or not node_wall_s:
        return 0.0
    ahead = float(round(node_wall_s - our_wall_s))
    return ahead if abs(ahead) > TOLERANCE_S else 0.0


def in_our_time(rfc3339: str, node_ahead_s: float) -> str:
    """A moment of the node's as our clock would call it; what is none stays as it is."""
    if not rfc3339 or not node_ahead_s:
        return rfc3339
    try:
        moment = datetime.fromisoformat(rfc3339) - timedelta(seconds=node_ahead_s)
    except (ValueError, OverflowError):
        return rfc3339
    return moment.isoformat()
