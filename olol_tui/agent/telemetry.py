"""Frames of the telemetry stream: one a beat, and one at once when an engine changed."""

from __future__ import annotations

import asyncio
import time
from typing import Any, AsyncIterator, Callable

from . import __version__

_GAP_S = 0.05
"""Between frames: a burst of changes becomes one frame."""


class Telemetry:
    """Builds frames from the latest samples; each listener has its own sequence."""

    def __init__(
        self,
        latest: Callable[[], dict[str, Any]],
        engines: Callable[[], tuple[int, list[dict[str, Any]]]],
        foreign: Callable[[], list[str]],
        holder: Callable[[], dict[str, Any] | None] = lambda: None,
    ) -> None:
        self._latest = latest
        self._engines = engines
        self._foreign = foreign
        self._holder = holder
        self._listeners: set[asyncio.Event] = set()

    def changed(self) -> None:
        """An engine entered another state: every listener gets a frame now."""
        for listener in self._listeners:
            listener.set()

    async def stream(self, hz: float) -> AsyncIterator[dict[str, Any]]:
        changed = asyncio.Event()
        self._listeners.add(changed)
        seq = 0
        try:
            while True:
                changed.clear()
                sent = time.monotonic()
                yield self.frame(seq)
                seq += 1
                beat_at = sent + 1.0 / hz
                try:
                    await asyncio.wait_for(changed.wait(), max(0.0, beat_at - time.monotonic()))
                except asyncio.TimeoutError:
                    continue
                await asyncio.sleep(max(0.0, sent + _GAP_S - time.monotonic()))
        finally:
            self._listeners.discard(changed)

    def frame(self, seq: int) -> dict[str, Any]:
        """FRAME of the contract; a fact the node cannot give is absent."""
        sample = self._latest()
        generation, engines = self._engines()
        frame: dict[str, Any] = {
            "seq": seq,
            "version": __version__,
            "t_mono": time.monotonic(),
            "t_wall": time.time(),
            "generation": generation,
            "devices": sample.get("devices", []),
            "engines": engines,
            "foreign": self._foreign(),
            "controller": self._holder(),
        }
        for name in ("cpu_percent", "memory_bytes", "memory_used_bytes"):
            if sample.get(name) is not None:
                frame[name] = sample[name]
        return frame
