"""Ollama's `keep_alive`: a number of seconds or a Go duration, negative for ever."""

from __future__ import annotations

import json
import math
import re
from typing import Any

FOREVER = math.inf

_UNITS = {
    "ns": 1e-9,
    "us": 1e-6,
    "µs": 1e-6,
    "μs": 1e-6,
    "ms": 1e-3,
    "s": 1.0,
    "m": 60.0,
    "h": 3600.0,
}
_PART = re.compile(r"(\d+\.?\d*|\.\d+)([^\d.]*)")


class DurationError(ValueError):
    """The text is no duration; the message is Go's."""


def parse_duration(text: str) -> float:
    """Seconds of a Go duration such as `1h30m`, `-1s` or `0`.

    Raises:
        DurationError: as Go's time.ParseDuration says it.
    """
    quoted = json.dumps(text, ensure_ascii=False)
    body = text[1:] if text[:1] in ("+", "-") else text
    if body == "0":
        return 0.0
    seconds, at = 0.0, 0
    while at < len(body):
        part = _PART.match(body, at)
        if part is None:
            raise DurationError(f"time: invalid duration {quoted}")
        unit = part.group(2)
        if not unit:
            raise DurationError(f"time: missing unit in duration {quoted}")
        if unit not in _UNITS:
            raise DurationError(f"time: unknown unit {json.dumps(unit)} in duration {quoted}")
        seconds += float(part.group(1)) * _UNITS[unit]
        at = part.end()
    if not body:
        raise DurationError(f"time: invalid duration {quoted}")
    return -seconds if text[0] == "-" else seconds


def parse_keep_alive(value: Any) -> float | None:
    """Seconds to keep the model after the request; None when the client does not say.

    Raises:
        DurationError: the value is neither a number nor a duration.
    """
    if value is None:
        return None
    if isinstance(value, str):
        seconds = parse_duration(value)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        seconds = float(value)
    else:
        kinds = {bool: "bool", list: "[]interface {}", dict: "map[string]interface {}"}
        raise DurationError(f"Unsupported type: '{kinds.get(type(value), 'unknown')}'")
    return FOREVER if seconds < 0 else seconds
