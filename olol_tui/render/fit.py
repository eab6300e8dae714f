"""Would a model fit on a device, and who would have to leave: an estimate for the eye.

The core decides; this says before the key is pressed what is likely to happen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from olol_tui.fleet.snapshot import RUNNERS, Fleet, Model
from olol_tui.models.names import canonical, same
from olol_tui.render.text import size
from olol_tui.render.tiles import RUNNING, Resident, Tile

OVERHEAD = 1.1
"""KV cache and buffers on top of the weights, as long as no replica was seen loaded."""

Verdict = Literal["fits", "evicts", "too big", "here", "absent", "unknown"]


@dataclass(frozen=True, slots=True)
class Fit:
    """What loading one model on one device would do."""

    verdict: Verdict
    need_bytes: int
    before_bytes: int | None
    after_bytes: int | None
    total_bytes: int | None
    evicts: tuple[str, ...] = ()
    short_bytes: int = 0
    """What is missing when it is too big."""

    @property
    def possible(self) -> bool:
        return self.verdict in ("fits", "evicts", "unknown")

    @property
    def words(self) -> str:
        """The verdict in a few words."""
        if self.verdict == "evicts":
            return "evicts " + ", ".join(self.evicts)
        if self.verdict == "too big":
            return f"too big, {size(self.short_bytes)} short"
        return {
            "fits": "fits",
            "here": "already here",
            "absent": "not in the library",
            "unknown": "memory unknown",
        }[self.verdict]


def needed_bytes(name: str, library: Model | None, fleet: Fleet) -> int:
    """Memory of a replica: as seen on another device, else from the size of its file."""
    seen: list[int] = [
        x.size_bytes or x.vram_bytes
        for node in fleet.nodes
        for engine in node.engines
        for x in engine.loaded
        if same(x.name, name)
    ]
    largest = max(seen, default=0)
    if largest:
        return largest
    return round((library.size_bytes if library else 0) * OVERHEAD)


def find_model(tile: Tile, name: str) -> Model | None:
    """The model in the library of the tile's node."""
    wanted = canonical(name)
    return next((m for m in tile.node.library if canonical(m.name) == wanted), None)


def _evictable(tile: Tile, fleet: Fleet) -> list[Resident]:
    """What an engine may throw out, first to leave first: not pinned, not running."""
    if not any(e.kind not in RUNNERS for e in tile.engines):
        return []
    busy = {
        canonical(r.model) for r in fleet.requests if r.state in RUNNING and r.where == tile.label
    }
    idle = [
        r
        for r in tile.residents
        if not r.pinned and not r.loading and canonical(r.name) not in busy
    ]
    return sorted(idle, key=lambda r: r.expires_at or "9999")


def judge(name: str, tile: Tile, fleet: Fleet) -> Fit:
    """What would happen if the model were loaded on the tile's device."""
    model = find_model(tile, name)
    need = needed_bytes(name, model, fleet)
    device = tile.device
    used = None if device is None else device.used_bytes
    total = None if device is None else device.vram_bytes
    if any(same(r.name, name) for r in tile.residents):
        return Fit("here", need, used, used, total)
    if model is None:
        return Fit("absent", need, used, used, total)
    if used is None or total is None:
        return Fit("unknown", need, used, None, total)
    short = need - (total - used)
    if short <= 0:
        return Fit("fits", need, used, used + need, total)
    leaving: list[str] = []
    freed = 0
    for resident in _evictable(tile, fleet):
        if freed >= short:
            break
        leaving.append(resident.name)
        freed += resident.vram_bytes or resident.size_bytes
    if leaving and freed >= short:
        return Fit("evicts", need, used, used - freed + need, total, tuple(leaving))
    return Fit("too big", need, used, used + need, total, short_bytes=short - freed)
