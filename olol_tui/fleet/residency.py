"""Loads and unloads models in engines that hold many: Ollama, endpoints, simulated ones.

The engine is asked through its own API and then checked: what counts is what it reports as
resident afterwards, not that it said yes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from olol_tui.errors import EngineError, PlacementError
from olol_tui.fleet.desk import Desk
from olol_tui.fleet.operations import Report
from olol_tui.fleet.snapshot import Engine, Loaded
from olol_tui.fleet.targets import Target
from olol_tui.models.names import same
from olol_tui.units import format_size

READY_TIMEOUT_S = 90.0
"""An engine that restarts gets this long before a load gives up on it."""
LOAD_TIMEOUT_FLOOR_S = 300.0
"""Ollama's own stall limit (OLLAMA_LOAD_TIMEOUT)."""
SLOWEST_LOAD_BYTES_S = 30e6
"""A network disk; a load slower than that is given up."""
PRIOR_LOAD_BYTES_S = 1.5e9
"""Until a load was measured: a good SSD."""
UNLOAD_TIMEOUT_S = 120.0
_TICK_S = 0.25
_LOOK_S = 0.2
"""Between looks at a foreign process that drops a model: it sends no event."""


class Residency:
    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._rates_bytes_s: dict[str, float] = {}
        """Measured load rates by engine."""

    async def load(
        self,
        report: Report,
        target: Target,
        *,
        keep_alive_s: float | None,
        num_ctx: int | None,
        note: str = "",
    ) -> str:
        """Make the target's model resident; returns what changed, as a sentence.

        Args:
            note: what the operator should know meanwhile: who will be evicted.

        Raises:
            EngineError: the engine did not, with its reason.
        """
        if target.engine is None:
            raise AssertionError("runners are launched, not loaded")
        engine = await self._ready(report, target.engine.id)
        member = self._desk.member(target.node.name)
        was_resident = _is_resident(engine, target.name, num_ctx)
        used_before = self._used_bytes(target)
        size = target.model.size_bytes
        expected_s = size / self._rates_bytes_s.get(engine.id, PRIOR_LOAD_BYTES_S)
        started_s = self._desk.now_s()
        timeout_s = max(LOAD_TIMEOUT_FLOOR_S, size / SLOWEST_LOAD_BYTES_S)

        def tick() -> None:
            report.say(note, self._reported_progress(engine.id, target.name))

        async with (
            member.engine_client(engine) as client,
            _ticking(tick),
        ):
            if was_resident:
                await client.load(
                    target.model, keep_alive_s=keep_alive_s, num_ctx=num_ctx, timeout_s=timeout_s
                )
            else:
                with member.loading(engine.id, target.name, expected_s):
                    await client.load(
                        target.model,
                        keep_alive_s=keep_alive_s,
                        num_ctx=num_ctx,
                        timeout_s=timeout_s,
                    )
                    # Within the mark: loading must not blink off before loaded is known.
                    await member.refresh(engine)
        elapsed_s = self._desk.now_s() - started_s
        if was_resident:
            await member.refresh(engine)
        elif elapsed_s > _LOOK_S:
            self._rates_bytes_s[engine.id] = size / elapsed_s
        loaded = self._resident(engine.id, target.name)
        if loaded is None:
            raise EngineError(
                f"{engine.id} accepted {target.name} and does not list it as resident",
                hint="Another load may have evicted it; its log tells.",
            )
        if was_resident:
            return f"{target.name} was resident already"
        return self._outcome(target, loaded, used_before, elapsed_s)

    async def unload(self, report: Report, engine_id: str, model: str) -> str:
        """Drop a model; returns when it is gone.

        Raises:
            EngineError: it is still there after a while, or the engine does not answer.
        """
        engine = await self._ready(report, engine_id)
        member = self._desk.member(engine.node)
        before = self._resident(engine_id, model)
        async with member.engine_client(engine) as client:
            await client.unload(model)
            try:
                async with asyncio.timeout(UNLOAD_TIMEOUT_S):
                    while True:
                        await member.refresh(engine)
                        if self._resident(engine_id, model) is None:
                            break
                        running = model in self._desk.busy(engine_id)
                        report.say("waits for its running requests" if running else "")
                        await asyncio.sleep(_LOOK_S)
            except TimeoutError:
                raise EngineError(
                    f"{engine_id} still holds {model} after {UNLOAD_TIMEOUT_S:.0f} s",
                    hint="It goes when its running requests have ended.",
                ) from None
        freed = before.vram_bytes or before.size_bytes if before is not None else 0
        return f"{model} is gone, {format_size(freed)} freed"

    async def _ready(self, report: Report, engine_id: str) -> Engine:
        """The engine once it is ready; one that failed for good is not waited for."""

        def check() -> Engine | None:
            engine = self._desk.engine(engine_id)
            if engine is None:
                raise PlacementError(f"{engine_id} is gone")
            if engine.state == "failed":
                raise EngineError(
                    f"{engine_id} failed: {engine.error}", hint="Restart it when that is mended."
                )
            if engine.state == "ready" and engine.address:
                return engine
            report.say(f"waits for {engine_id}, {engine.state}")
            return None

        try:
            return await self._desk.until(check, READY_TIMEOUT_S)
        except TimeoutError:
            raise EngineError(f"{engine_id} was not ready within {READY_TIMEOUT_S:.0f} s") from None

    def _resident(self, engine_id: str, model: str) -> Loaded | None:
        engine = self._desk.engine(engine_id)
        if engine is None:
            return None
        return next((one for one in engine.loaded if same(one.name, model)), None)

    def _reported_progress(self, engine_id: str, model: str) -> float | None:
        engine = self._desk.engine(engine_id)
        marks = engine.loading if engine is not None else ()
        return next((mark.progress for mark in marks if same(mark.name, model)), None)

    def _used_bytes(self, target: Target) -> int | None:
        """Used on all devices of the target, as the snapshot has it now."""
        wanted = set(target.devices)
        for node in self._desk.nodes:
            if node.name == target.node.name:
                used = [d.used_bytes for d in node.devices if d.uuid in wanted]
                known = [one for one in used if one is not None]
                return sum(known) if len(known) == len(used) else None
        return None

    def _outcome(
        self, target: Target, loaded: Loaded, used_before: int | None, elapsed_s: float
    ) -> str:
        size = loaded.vram_bytes or loaded.size_bytes
        total = sum(d.vram_bytes or 0 for d in target.node.devices if d.uuid in target.devices)
        before = (
            f", {format_size(used_before)} of {format_size(total)} were used before"
            if used_before is not None and total
            else ""
        )
        spill = ""
        if 0 < loaded.vram_bytes < loaded.size_bytes and target.device.vendor != "cpu":
            spilled = format_size(loaded.size_bytes - loaded.vram_bytes)
            spill = f"; {spilled} of it spilled to the CPU"
        return f"{target.name} takes {format_size(size)}{before}; {elapsed_s:.1f} s{spill}"


def _is_resident(engine: Engine, model: str, num_ctx: int | None) -> bool:
    """With that context: an engine that is asked for another one loads anew."""
    return any(
        same(one.name, model) and (num_ctx is None or one.context_length in (None, num_ctx))
        for one in engine.loaded
    )


@asynccontextmanager
async def _ticking(tick: Callable[[], None]) -> AsyncIterator[None]:
    """Calls `tick` now and again while open."""

    async def run() -> None:
        while True:
            tick()
            await asyncio.sleep(_TICK_S)

    task = asyncio.create_task(run(), name="load progress")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
