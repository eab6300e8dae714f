"""Whether a ready engine still lives: it answers, and it moves while it has something to do.

A head whose worker is frozen answers everything and computes nothing; nobody but its own
counters can tell, and a long prompt moves them seldom. A worker that is frozen is known by
what the kernel says of it, and by a connection that it has not noticed is gone.
"""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import Any

from . import client
from .engines import Advance, EngineKind
from .pulse import Meter, Watch
from .records import State
from .spec import Policy, Spec

SILENT_POLLS = 3
"""Unanswered polls after which a ready engine is said not to answer."""
FROZEN_POLLS = 2
"""Unanswered ones after which an engine that must answer is ended."""


class Vigil:
    """Looks at one process from when it is ready until it ends."""

    def __init__(
        self,
        kind: EngineKind,
        spec: Spec,
        port: int,
        policy: Policy,
        pid: int = 0,
        state: State | None = None,
    ) -> None:
        self._kind, self._spec, self._port, self._policy = kind, spec, port, policy
        self._pid, self._state = pid, state
        self.silent = 0
        """Polls in a row without an answer."""
        self.verdict = ""
        """Why the process should be ended; empty while it may go on."""
        self._advance: Advance | None = None
        self._moved_at = time.monotonic()
        self._watch = Watch(policy, computes=spec.devices == ("cpu",))
        self._meter = Meter()
        self._layout: dict[str, Any] | None = None

    async def begin(self) -> None:
        """Read what it says of itself once it is ready."""
        if self._state is not None:
            read = partial(self._kind.layout, self._spec, self._state.log_path(self._spec.id))
            self._layout = await asyncio.get_running_loop().run_in_executor(None, read)

    def tells(self) -> dict[str, Any]:
        """Fields of a ready engine's STATUS."""
        told: dict[str, Any] = {} if self._layout is None else {"layout": self._layout}
        if self._meter.peak_bytes_s is not None:
            told["carries_bytes_s"] = self._meter.peak_bytes_s
        return told

    async def look(self) -> list[dict[str, Any]]:
        """What it has loaded.

        Raises:
            client.CallError: it gave no usable answer.
        """
        policy = self._policy
        if self._kind.is_inspected:
            place = str(self._state.path) if self._state is not None else ""
            inspect = partial(self._kind.inspect, self._spec, self._pid, place)
            pulse = await asyncio.get_running_loop().run_in_executor(None, inspect)
            now_s = time.monotonic()
            self._meter.seen(None if pulse is None else pulse.written_bytes, now_s)
            self.verdict = self._watch.seen(pulse, now_s)
            if self.verdict:
                return []
        try:
            loaded = await self._kind.loaded(self._spec, self._port, policy.answer_s)
            self.seen(
                await self._kind.advance(self._spec, self._port, policy.answer_s),
                time.monotonic(),
            )
        except client.CallError as error:
            self.silent += 1
            if self._advance is not None:
                # No news of running requests is no movement.
                self.seen(self._advance, time.monotonic())
            if self._kind.ends_when_silent and self.silent >= FROZEN_POLLS:
                self.verdict = f"it does not answer: {error}"
            raise
        self.silent = 0
        return loaded

    def seen(self, advance: Advance | None, now_s: float) -> None:
        """Compare with the last look."""
        if advance is None or advance != self._advance:
            self._advance, self._moved_at = advance, now_s
            return
        limit_s = self._policy.prefill_stall_s if advance.in_prefill else self._policy.stall_s
        if now_s - self._moved_at > limit_s:
            count = len(advance.steps)
            what = "1 request runs" if count == 1 else f"{count} requests run"
            self.verdict = f"{what} without a token for {limit_s:g} s"
