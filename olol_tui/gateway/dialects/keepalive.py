"""`keep_alive`: how long a model stays loaded after a request, read exactly as Ollama does.

A number is seconds, a string is a Go duration (`"5m"`, `"1h30m"`, `"-1s"`), negative is
forever, 0 unloads at once, absent or null is the server's default. A string without a unit
(`"5"`) is an error there, so it is one here.
"""

from __future__ import annotations

import math
import re
from typing import Any

from olol_tui.gateway.dialects.errors import BadRequest

DEFAULT_S = 300.0
"""OLLAMA_KEEP_ALIVE's default."""

FOREVER = -1.0
"""What `parse` gives for every negative duration."""

_UNIT_S = {
    "ns": 1e-9,
    "us": 1e-6,
    "µs": 1e-6,  # U+00B5, micro sign
    "μs": 1e-6,  # U+03BC, Greek mu
    "ms": 1e-3,
    "s": 1.0,
    "m": 60.0,
    "h": 3600.0,
}
_PART = re.compile(r"(\d*)(?:\.(\d*))?([^\d.]*)")
_MAX_NS = 2**63 - 1


def parse(value: Any) -> float | None:
    """Seconds; None when the client leaves it to the server; FOREVER when negative.

    >>> parse(None), parse(0), parse(90), parse("1h30m"), parse("-1s")
    (None, 0.0, 90.0, 5400.0, -1.0)

    Raises:
        BadRequest: not a number or a Go duration.
    """
    if value is None:
        return None
    if isinstance(value, bool):
        raise BadRequest("Unsupported type: 'bool'")
    if isinstance(value, int | float):
        seconds = float(value)
    elif isinstance(value, str):
        seconds = parse_duration(value)
    else:
        kind = "[]interface {}" if isinstance(value, list) else "map[string]interface {}"
        raise BadRequest(f"Unsupported type: '{kind}'")
    if not math.isfinite(seconds):
        raise BadRequest("keep_alive must be a finite number of seconds")
    return FOREVER if seconds < 0 else seconds


def parse_duration(text: str) -> float:
    """Seconds of a Go duration (`time.ParseDuration`), with Go's sentences for bad ones."""
    rest = text[1:] if text[:1] in ("-", "+") else text
    if rest == "0":
        return 0.0
    if not rest:
        raise _invalid(text)
    seconds = 0.0
    while rest:
        match = _PART.match(rest)
        assert match is not None  # every group of the pattern may be empty
        whole, fraction, unit = match.groups()
        if not whole and not fraction:
            raise _invalid(text)
        if not unit:
            raise BadRequest(f'time: missing unit in duration "{text}"')
        if unit not in _UNIT_S:
            raise BadRequest(f'time: unknown unit "{unit}" in duration "{text}"')
        seconds += float(f"{whole or 0}.{fraction or 0}") * _UNIT_S[unit]
        rest = rest[match.end() :]
    if seconds * 1e9 > _MAX_NS:
        raise _invalid(text)
    return -seconds if text.startswith("-") else seconds


def _invalid(text: str) -> BadRequest:
    return BadRequest(f'time: invalid duration "{text}"')
