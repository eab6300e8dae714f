"""Time as Ollama writes it."""

from __future__ import annotations

import time
from datetime import UTC, datetime


def rfc3339() -> str:
    """Now, UTC, with nanoseconds: `2026-11-23T20:15:04.123456789Z`."""
    now_ns = time.time_ns()
    whole = datetime.fromtimestamp(now_ns // 1_000_000_000, UTC)
    return f"{whole:%Y-%m-%dT%H:%M:%S}.{now_ns % 1_000_000_000:09d}Z"
