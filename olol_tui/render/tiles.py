"""The fleet as a list of tiles: one per device, or per node that shows none.

A tile is what panes, list and hero draw and what the cursor stands on. Derived from one
snapshot; the order is the fleet's own, so nothing jumps between ticks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from olol_tui.fleet.snapshot import Device, Engine, Fleet, Loaded, Loading, Node, Split
from olol_tui.models.names import same

TileState = Literal["ok", "idle", "warn", "crit", "stale", "lost", "cordoned", "loading"]

GLYPHS: dict[str, str] = {
    "ok": "●",
    "idle": "○",
    "warn": "▲",
    "crit": "■",
    "stale": "◌",
    "lost": "✕",
    "cordoned": "_",
    "loading": "▒",
}
"""State is always glyph and colour."""

WORST_FIRST: tuple[TileState, ...] = (
    "lost",
    "crit",
    "warn",
    "stale",
    "loading",
    "cordoned",
    "ok",
    "idle",
)

RUNNING = frozenset({"dispatched", "prefill", "decode"})
"""States of a request that occupies a slot."""

ASKS_KEY = "unknown host key: see screen 4"
"""Note of every tile of a node that waits for an answer."""

IDLE_UTIL_PERCENT = 2.0
SPILL_TOLERANCE = 0.98
"""A replica with less than this share of its bytes on the GPU runs partly on the CPU."""

TileKey = tuple[str, str]
"""Node name and device UUID; the UUID is empty for a node without devices."""


@dataclass(frozen=True, slots=True)
class Resident:
    """A model in, or on its way into, an engine of a device."""

    name: str
    engine: str
    size_bytes: int = 0
    vram_bytes: int = 0
    context_length: int | None = None
    expires_at: str = ""
    pinned: bool = False
    spilled: bool = False
    loading: bool = False
    progress: float | None = None
    """0..1 while loading, None when the engine does not say."""
    layers: int = 0
    """Of a split, how many lie here; 0 for a whole model."""
    of_layers: int = 0
    """How many the split has."""
    is_head: bool = False
    """The split's head is on this node, and this is the device that it begins or ends at."""

    @property
    def share(self) -> str:
        """`14/30 layers`; empty for a whole model."""
        return f"{self.layers}/{self.of_layers} layers" if self.of_layers else ""


@dataclass(frozen=True, slots=True)
class Tile:
    """One device, or one node without devices."""

    key: TileKey
    label: str
    """`n01/gpu0`, or the node's name."""
    node: Node
    device: Device | None
    state: TileState
    note: str
    """What is wrong, one line; empty when nothing is."""
    log: str
    """The last log line of a failed engine."""
    engines: tuple[Engine, ...]
    residents: tuple[Resident, ...]
    requests: int
    """Running on it now."""

    @property
    def dimmed(self) -> bool:
        """Figures are old: drawn dimmed, never as zero."""
        return self.state in ("stale", "lost") or self.node.stale

    @property
    def memory_word(self) -> str:
        return "ram" if self.device is not None and self.device.vendor == "cpu" else "vram"

    @property
    def used_fraction(self) -> float | None:
        device = self.device
        if device is None or device.used_bytes is None or not device.vram_bytes:
            return None
        return device.used_bytes / device.vram_bytes


def _resident(loaded: Loaded, engine: Engine, pinned: bool, device: Device | None) -> Resident:
    on_gpu = device is not None and device.vendor != "cpu"
    return Resident(
        name=loaded.name,
        engine=engine.id,
        size_bytes=loaded.size_bytes,
        vram_bytes=loaded.vram_bytes,
        context_length=loaded.context_length,
        expires_at=loaded.expires_at,
        pinned=loaded.pinned or pinned,
        spilled=on_gpu and 0 < loaded.vram_bytes < loaded.size_bytes * SPILL_TOLERANCE,
    )


def _on_its_way(loading: Loading, engine: Engine, pinned: bool) -> Resident:
    return Resident(
        name=loading.name,
        engine=engine.id,
        pinned=pinned,
        loading=True,
        progress=loading.progress,
    )


def residents_of(
    engines: tuple[Engine, ...], pins: Collection[str], device: Device | None
) -> tuple[Resident, ...]:
    """What the engines hold and load; `pins` are the pinned names of the device."""

    def pinned(name: str) -> bool:
        return bool(pins) and any(same(name, pin) for pin in pins)

    found: list[Resident] = []
    for engine in engines:
        found.extend(_resident(x, engine, pinned(x.name), device) for x in engine.loaded)
        if engine.loading:
            held = {x.name for x in engine.loaded}
            found.extend(
                _on_its_way(x, engine, pinned(x.name)) for x in engine.loading if x.name not in held
            )
    # By name, not by last use: rows that trade places cannot be read.
    return tuple(sorted(found, key=lambda r: (r.loading, not r.pinned, r.name)))


def split_residents(splits: Sequence[Split]) -> dict[TileKey, list[Resident]]:
    """The shares of splits by device."""
    found: dict[TileKey, list[Resident]] = {}
    for split in splits:
        layers = sum(part.layers for part in split.parts)
        for part in split.parts:
            held = part.planned_bytes if part.real_bytes is None else part.real_bytes
            found.setdefault((part.node, part.device), []).append(
                Resident(
                    name=split.model,
                    engine=split.engine,
                    size_bytes=held,
                    vram_bytes=held,
                    context_length=split.num_ctx,
                    loading=split.state != "ready",
                    progress=part.progress if split.state != "ready" else None,
                    layers=part.layers,
                    of_layers=layers,
                    is_head=part.node == split.node,
                )
            )
    return found


def engine_fault(engine: Engine) -> str:
    """One sentence for an engine that does not run as it should, else empty."""
    reason = f": {engine.error}" if engine.error else ""
    if engine.state == "failed":
        return f"failed{reason}"
    if engine.state == "backoff":
        retry = "" if engine.retry_in_s is None else f", retry in {engine.retry_in_s:.0f}s"
        return f"exited{retry}{reason}"
    return ""


def _fault_note(engine: Engine, engines: tuple[Engine, ...]) -> str:
    """The fault, with the engine's name where there are several."""
    fault = engine_fault(engine)
    return f"{engine.id.rsplit('/', 1)[-1]} {fault}" if len(engines) > 1 else fault


def _spill_note(residents: tuple[Resident, ...]) -> str:
    spilled = next((r for r in residents if r.spilled), None)
    if spilled is None:
        return ""
    share = 100 - round(100 * spilled.vram_bytes / max(1, spilled.size_bytes))
    return f"{spilled.name}: {share}% on the CPU"


def is_new(node: Node) -> bool:
    """Waits to be provisioned, and nothing is wrong with it."""
    return (
        node.provisioned is False
        and node.state in ("failed", "lost")
        and node.question is None
        and not any(s.state in ("running", "failed", "cancelled") for s in node.steps)
    )


def _judge(
    node: Node,
    device: Device | None,
    engines: tuple[Engine, ...],
    residents: tuple[Resident, ...],
    requests: int,
) -> tuple[TileState, str, str]:
    """State, note and log line, worst first."""
    if node.question is not None:
        return "warn", ASKS_KEY, ""
    if any(step.state == "running" for step in node.steps):
        return "loading", "provisioning", ""
    if is_new(node):
        return "idle", "not provisioned: P on screen 4", ""
    if node.state in ("lost", "failed"):
        return "lost", node.error or f"node {node.state}", ""
    if device is not None and device.error:
        return "crit", device.error, ""
    log = ""
    for engine in engines:
        if engine.state == "failed":
            log = engine.log_tail[-1] if engine.log_tail else ""
            return "crit", _fault_note(engine, engines), log
    if node.stale:
        return "stale", f"no telemetry for {node.age_s:.0f}s", ""
    for engine in engines:
        if engine.state == "backoff":
            log = engine.log_tail[-1] if engine.log_tail else ""
            return "warn", _fault_note(engine, engines), log
    if device is not None:
        temp, limit = device.temp_c, device.temp_limit_c
        if temp is not None and limit is not None and temp >= limit:
            return "warn", f"{temp:.0f}C, limit {limit:.0f}C", ""
        if device.throttle:
            return "warn", "throttled: " + ", ".join(device.throttle), ""
    if note := _spill_note(residents):
        return "warn", note, ""
    if node.state == "connecting":
        return "loading", "connecting", ""
    if any(r.loading for r in residents):
        return "loading", "", ""
    if node.cordoned or any(e.cordoned for e in engines):
        return "cordoned", "cordoned", ""
    if node.error:
        return "warn", node.error, ""
    util = 0.0 if device is None else (device.util_percent or 0.0)
    return ("ok" if requests or util > IDLE_UTIL_PERCENT else "idle"), "", ""


def build_tiles(fleet: Fleet) -> tuple[Tile, ...]:
    """Every device of the fleet, nodes in the fleet's order."""
    running = Counter(r.where for r in fleet.requests if r.state in RUNNING)
    by_engine = Counter(r.engine for r in fleet.requests if r.state in RUNNING)
    pins: dict[TileKey, set[str]] = {}
    for pin in fleet.pins:
        pins.setdefault((pin.node, pin.device), set()).add(pin.model)
    tiles: list[Tile] = []
    shares = split_residents(fleet.splits)
    heads = {split.engine for split in fleet.splits}
    for node in fleet.nodes:
        if not node.devices:
            tiles.append(_node_tile(node, pins, by_engine))
            continue
        single = len(node.devices) == 1
        for device in node.devices:
            key = (node.name, device.uuid)
            label = f"{node.name}/{device.label}"
            engines = tuple(
                e for e in node.engines if device.uuid in e.devices or (single and not e.devices)
            )
            # What a head holds lies on the devices of its parts.
            whole = tuple(e for e in engines if e.id not in heads)
            residents = residents_of(whole, pins.get(key, ()), device)
            residents += tuple(shares.get(key, ()))
            state, note, log = _judge(node, device, engines, residents, running[label])
            tiles.append(
                Tile(key, label, node, device, state, note, log, engines, residents, running[label])
            )
    return tuple(tiles)


def _node_tile(node: Node, pins: dict[TileKey, set[str]], by_engine: Counter[str]) -> Tile:
    key = (node.name, "")
    residents = residents_of(node.engines, pins.get(key, ()), None)
    requests = sum(by_engine[e.id] for e in node.engines)
    state, note, log = _judge(node, None, node.engines, residents, requests)
    return Tile(key, node.name, node, None, state, note, log, node.engines, residents, requests)
