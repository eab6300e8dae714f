"""Would a model fit on a device, and who would have to leave: shown before the key is pressed.

The judgement is the core's own (`placement.fit`), asked with what the snapshot tells; the
core judges again when the command arrives, with what it has measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from olol_tui.errors import OlolError
from olol_tui.fleet.snapshot import Fleet, Model
from olol_tui.fleet.targets import find_target, room_of
from olol_tui.models.names import canonical, same
from olol_tui.placement.fit import estimate, judge
from olol_tui.render.tiles import RUNNING, Tile

DEFAULT_CTX = 4096
"""Context that an engine takes when nobody says another."""

Verdict = Literal["fits", "evicts", "waits", "never", "loaded", "unknown", "absent"]


@dataclass(frozen=True, slots=True)
class Fit:
    """What loading one model on one device would do."""

    verdict: Verdict
    reason: str
    """One sentence with numbers."""
    need_bytes: int
    before_bytes: int | None
    after_bytes: int | None
    total_bytes: int | None
    goes: tuple[str, ...] = ()
    """Models that must go first."""

    @property
    def possible(self) -> bool:
        return self.verdict in ("fits", "evicts", "waits", "unknown")

    @property
    def words(self) -> str:
        """The verdict in a few words."""
        names = ", ".join(self.goes)
        return {
            "fits": "fits",
            "evicts": f"evicts {names}" if names else "may fail: memory held by others",
            "waits": f"waits for {names}",
            "never": "too big",
            "loaded": "already here",
            "unknown": "memory unknown",
            "absent": "not in the library",
        }[self.verdict]


def find_model(tile: Tile, name: str) -> Model | None:
    """The model in the library of the tile's node."""
    wanted = canonical(name)
    return next((m for m in tile.node.library if canonical(m.name) == wanted), None)


def _measured_bytes(name: str, fleet: Fleet) -> int | None:
    """The largest replica of the model anywhere: better than any guess."""
    seen: list[int] = [
        loaded.size_bytes or loaded.vram_bytes
        for node in fleet.nodes
        for engine in node.engines
        for loaded in engine.loaded
        if same(loaded.name, name)
    ]
    return max(seen, default=0) or None


def judge_on(name: str, tile: Tile, fleet: Fleet) -> Fit:
    """What would happen if the model were loaded on the tile's device."""
    device = tile.device
    used = None if device is None else device.used_bytes
    total = None if device is None else device.vram_bytes
    measured = _measured_bytes(name, fleet)
    try:
        target = find_target((tile.node,), name, tile.key[0], tile.key[1])
    except OlolError as error:
        return Fit("absent", str(error), measured or 0, used, used, total)

    def busy(engine_id: str) -> frozenset[str]:
        return frozenset(
            canonical(r.model)
            for r in fleet.requests
            if r.engine == engine_id and r.state in RUNNING
        )

    slots = target.engine.slots if target.engine is not None else 1
    need = estimate(
        target.model,
        num_ctx=DEFAULT_CTX,
        slots=slots,
        vendor=target.device.vendor,
        measured_bytes=measured,
    )
    room = room_of(target, busy)
    fit = judge(target.name, need, room)
    before = None
    if room.total_bytes is not None and room.free_bytes is not None:
        before = room.total_bytes - room.free_bytes
    after = before
    if before is not None and fit.verdict not in ("loaded", "unknown"):
        freed = sum(r.bytes for r in room.residents if r.name in fit.goes)
        after = max(0, before - freed) + need.total_bytes
    return Fit(fit.verdict, fit.reason, need.total_bytes, before, after, room.total_bytes, fit.goes)
