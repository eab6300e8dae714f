"""What the tests of the dialects share: recorded replies, a counting clock, a fixed date."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from olol_tui.fleet.snapshot import Model
from olol_tui.gateway.dialects.llama import Translation, translate

RECORDED = Path(__file__).parent / "recorded"
CREATED = "2026-10-01T12:00:00.000000001Z"
STARTED_NS = 1_000_000_000
STEP_NS = 250_000_000

PLAIN = Model("smollm2:135m", context_length=8192)
CAPABLE = Model(
    "smollm2:135m", capabilities=("completion", "tools", "thinking", "vision", "insert")
)
HELLO = {"model": "smollm2:135m", "messages": [{"role": "user", "content": "hi"}]}


class Clock:
    """Nanoseconds that advance by STEP_NS at every look."""

    def __init__(self) -> None:
        self.now_ns = STARTED_NS - STEP_NS

    def __call__(self) -> int:
        self.now_ns += STEP_NS
        return self.now_ns


def recorded(name: str) -> bytes:
    """A real llama-server's reply; see recorded/record.py."""
    return (RECORDED / name).read_bytes()


def translation(
    route: str, body: dict[str, Any], model: Model = CAPABLE, *, clock: Clock | None = None
) -> Translation:
    return translate(
        route, body, model, created=lambda: CREATED, clock_ns=clock if clock else Clock()
    )
