"""On which terms a request waits: by its key, and by what its headers ask for.

`X-Olol-Class: batch` lets others go first; `interactive` says nothing, because a key of class
batch cannot ask for more. `X-Olol-Deadline-S: 30` is how long its client would wait for a slot.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

from olol_tui.gateway.dialects.errors import BadRequest
from olol_tui.gateway.keys import Key
from olol_tui.routing.ticket import Terms

Clock = Callable[[], float]
_usual = lru_cache(maxsize=4096)(Terms)
"""A client has the same terms again and again."""
_CLASSES = {b"interactive": False, b"batch": True}


def terms_of(headers: dict[bytes, bytes], key: Key | None, peer: str, now: Clock) -> Terms:
    """The terms of a new request.

    Without a key it counts as its address's.

    Raises:
        BadRequest: a header makes no sense.
    """
    batch = key is not None and key.priority == "batch"
    said = headers.get(b"x-olol-class")
    if said is not None:
        asked = _CLASSES.get(said.strip().lower())
        if asked is None:
            raise BadRequest("X-Olol-Class: expected interactive or batch")
        batch = batch or asked
    wait_s = headers.get(b"x-olol-deadline-s")
    deadline_s = None if wait_s is None else now() + _seconds(wait_s)
    if key is None or not key.id:
        flow, weight = peer, 1.0
    else:
        flow, weight = key.id, key.weight
    if deadline_s is None:
        return _usual(flow, weight, batch)
    return Terms(flow, weight, batch, deadline_s)


def _seconds(text: bytes) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise BadRequest("X-Olol-Deadline-S: expected seconds such as 30 or 0.5")
    return seconds
