"""The fleet as plain text for `olol-tui status`.

Pure, and without rich: a script calls `status` every few seconds, so it must start fast.
State is always glyph and word; colour only adds to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from olol_tui.fleet.snapshot import Device, Engine, Fleet, Node, Request, SplitPart
from olol_tui.units import format_size, link_words

Tone = Literal["good", "busy", "bad", "dim", "plain"]

_ANSI: dict[Tone, str] = {"good": "32", "busy": "33", "bad": "31", "dim": "2"}
_STATES: dict[str, tuple[str, Tone]] = {
    "ready": ("●", "good"),
    "done": ("●", "good"),
    "decode": ("●", "good"),
    "prefill": ("◐", "busy"),
    "dispatched": ("◐", "busy"),
    "connecting": ("◐", "busy"),
    "starting": ("◐", "busy"),
    "planning": ("◐", "busy"),
    "loading": ("◐", "busy"),
    "stopping": ("◐", "busy"),
    "running": ("◐", "busy"),
    "queued": ("○", "plain"),
    "stopped": ("○", "dim"),
    "cancelled": ("○", "dim"),
    "backoff": ("▲", "bad"),
    "lost": ("✖", "bad"),
    "failed": ("✖", "bad"),
}
_SHOWN_OPERATIONS = 8
_LOG_LINES = 4


@dataclass(frozen=True, slots=True)
class Cell:
    text: str
    tone: Tone = "plain"
    right: bool = False


def status_lines(fleet: Fleet, *, colour: bool) -> list[str]:
    """Nodes with GPUs, engines, models, queue, operations, alerts; without empty parts."""
    parts = [
        [[_headline(fleet)]],
        _table(("NODE", "STATE", "GPU", "NAME", "UTIL", "VRAM", "TEMP", "POWER"), _devices(fleet)),
        _table(("ENGINE", "STATE", "SLOTS", "MODELS"), _engines(fleet)),
        _table(("SPLIT", "STATE", "HEAD", "LAYERS"), _splits(fleet)),
        _table(("MODEL", "REPLICAS", "RUNNING", "QUEUED", "TOK/S"), _models(fleet)),
        _table(("REQUEST", "STATE", "MODEL", "WHERE", "CLIENT", "AGE", "TOKENS"), _requests(fleet)),
        _table(("OPERATION", "STATE", "WHAT"), _operations(fleet)),
        _alerts(fleet),
    ]
    lines: list[str] = []
    for part in filter(None, parts):
        lines += [""] * bool(lines) + [_paint(row, colour) for row in part]
    return lines


def _headline(fleet: Fleet) -> Cell:
    gateway = fleet.gateway
    facts = [
        f"olol-tui {fleet.version}".rstrip(),
        fleet.name,
        gateway.address or "gateway not listening",
        f"{gateway.running} running",
        f"{gateway.queued} queued",
        f"{gateway.tokens_per_s:.0f} tok/s",
    ]
    if gateway.draining:
        facts.append("draining")
    return Cell(_clean(" · ".join(facts)))


def _devices(fleet: Fleet) -> Iterable[list[Cell]]:
    for node in fleet.nodes:
        first = [Cell(node.name), _node_state(node)]
        if not node.devices:
            yield [*first, Cell(""), Cell(node.error)]
        for device in node.devices:
            yield [*first, *_device(device, node)]
            first = [Cell(""), Cell("")]


def _node_state(node: Node) -> Cell:
    state = _state(node.state)
    if node.stale:
        return Cell(f"{state.text}, {_seconds(node.age_s)} old", "dim")
    return Cell(f"{state.text}, cordoned", "busy") if node.cordoned else state


def _device(device: Device, node: Node) -> list[Cell]:
    tone: Tone = "dim" if node.stale else "plain"
    if device.error:
        return [Cell(device.label, "bad"), Cell(f"{device.name}: {device.error}", "bad")]
    used = "" if device.used_bytes is None else format_size(device.used_bytes)
    total = "" if device.vram_bytes is None else format_size(device.vram_bytes)
    return [
        Cell(device.label, tone),
        Cell(device.name, tone),
        Cell(_number(device.util_percent, "%"), tone, right=True),
        Cell(" / ".join(part for part in (used, total) if part), tone, right=True),
        Cell(_number(device.temp_c, " °C"), tone, right=True),
        Cell(_number(device.power_w, " W"), tone, right=True),
    ]


def _engines(fleet: Fleet) -> Iterable[list[Cell]]:
    for node in fleet.nodes:
        for engine in node.engines:
            yield [
                Cell(engine.id),
                _state(engine.state),
                Cell(str(engine.slots), right=True),
                _engine_facts(engine, fleet),
            ]
        for url in node.foreign:
            yield [Cell(url), Cell("○ not ours", "dim"), Cell(""), Cell(f"on {node.name}", "dim")]


def _engine_facts(engine: Engine, fleet: Fleet) -> Cell:
    """What it holds; for one in trouble, why."""
    if engine.state in ("backoff", "failed"):
        last_log = next((line.strip() for line in reversed(engine.log_tail) if line.strip()), "")
        facts = [engine.error, f"last log line: {last_log}" if last_log else ""]
        if engine.retry_in_s is not None:
            facts.append(f"again in {_seconds(engine.retry_in_s)}")
        return Cell("; ".join(fact for fact in facts if fact), "bad")
    held = [
        f"{loaded.name} ({format_size(loaded.size_bytes)}{', pinned' if loaded.pinned else ''})"
        for loaded in engine.loaded
    ]
    for loading in engine.loading:
        progress = "" if loading.progress is None else f" {loading.progress:.0%}"
        waited = _seconds(max(0.0, fleet.now_s - loading.started_s))
        held.append(f"{loading.name} (loading{progress}, {waited})")
    return Cell(", ".join(held)) if held else Cell(engine.model or "-", "dim")


def _splits(fleet: Fleet) -> Iterable[list[Cell]]:
    """One line a split, then one for each of its devices."""
    for split in fleet.splits:
        facts = [split.error] if split.error else []
        if split.parts:
            facts.append(f"{len(split.parts)} devices, {split.tokens_factor:.0%} of one's speed")
        if split.restarts:
            took = "" if split.restart_s is None else f", the last in {_seconds(split.restart_s)}"
            often = "once" if split.restarts == 1 else f"{split.restarts} times"
            facts.append(f"restarted {often}{took}")
        tone: Tone = "bad" if split.state in ("backoff", "failed") else "plain"
        yield [
            Cell(split.model),
            _state(split.state),
            Cell(split.node),
            Cell("; ".join(facts), tone),
        ]
        if split.state == "failed":
            again = f"tried again by: olol-tui retry {split.model}"
            for line in (*split.log_tail[-_LOG_LINES:], again):
                yield [Cell(""), Cell(""), Cell(""), Cell(line.strip(), "dim")]
        for part in split.parts:
            way = link_words(part.rtt_s, part.bytes_s)
            road = f"{part.road} {way}" if way else part.road
            yield [Cell(f"  {part.where}"), _state(part.state), Cell(road), _share(part)]


def _share(part: SplitPart) -> Cell:
    """`14 layers, 51 MiB of 88 MiB planned`: the layers that the head's log tells of."""
    layers = part.layers if part.real_layers is None else part.real_layers
    told = f"{layers} layers{' and the output' if part.has_output else ''}"
    planned = format_size(part.planned_bytes)
    if part.real_bytes is not None:
        unknown = "" if part.real_layers is not None else " (as planned)"
        return Cell(f"{told}{unknown}, {format_size(part.real_bytes)} of {planned} planned")
    progress = "" if part.progress is None else f", {part.progress:.0%} there"
    return Cell(f"{told} planned, {planned}{progress}", "dim")


def _models(fleet: Fleet) -> Iterable[list[Cell]]:
    loads = {load.model: load for load in fleet.gateway.models}
    names = {model.name for node in fleet.nodes for model in node.library} | loads.keys()
    for name in sorted(names):
        load = loads.get(name)
        replicas = sum(
            loaded.name == name
            for node in fleet.nodes
            for engine in node.engines
            for loaded in engine.loaded
        )
        yield [
            Cell(name),
            Cell(str(replicas), right=True),
            Cell(str(load.running if load else 0), right=True),
            Cell(str(load.queued if load else 0), right=True),
            Cell(f"{load.tokens_per_s:.0f}" if load else "0", right=True),
        ]


def _requests(fleet: Fleet) -> Iterable[list[Cell]]:
    for request in fleet.requests:
        if request.state in ("queued", "dispatched", "prefill", "decode"):
            yield _request(request)


def _request(request: Request) -> list[Cell]:
    return [
        Cell(request.id),
        _state(request.state),
        Cell(request.model),
        Cell(request.where or "-"),
        Cell(request.client),
        Cell(_seconds(request.age_s), right=True),
        Cell(str(request.tokens), right=True),
    ]


def _operations(fleet: Fleet) -> Iterable[list[Cell]]:
    for operation in fleet.operations[-_SHOWN_OPERATIONS:]:
        state = _state(operation.state)
        if operation.state == "running" and operation.progress is not None:
            state = Cell(f"{state.text} {operation.progress:.0%}", state.tone)
        what = ": ".join(text for text in (operation.title, operation.message) if text)
        yield [Cell(operation.id), state, Cell(what)]


def _alerts(fleet: Fleet) -> list[list[Cell]]:
    tones: dict[str, tuple[str, Tone]] = {
        "info": ("·", "dim"),
        "warning": ("▲", "busy"),
        "critical": ("✖", "bad"),
    }
    lines = []
    for alert in fleet.alerts:
        glyph, tone = tones[alert.severity]
        lines.append([Cell(_clean(f"{glyph} {alert.where}: {alert.message}"), tone)])
    return lines


def _state(state: str) -> Cell:
    glyph, tone = _STATES.get(state, ("?", "plain"))
    return Cell(f"{glyph} {state}", tone)


def _number(value: float | None, unit: str) -> str:
    return "-" if value is None else f"{value:.0f}{unit}"


def _seconds(seconds: float) -> str:
    """`4 s`, `3 min`, `5 h`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"


def _table(head: Sequence[str], rows: Iterable[list[Cell]]) -> list[list[Cell]]:
    """Rows padded to columns. The last cell of a row may run on: it does not widen its column."""
    body = [[Cell(_clean(cell.text), cell.tone, cell.right) for cell in row] for row in rows]
    if not body:
        return []
    widths = [len(name) for name in head]
    right = [False] * len(head)
    for row in body:
        for column, cell in enumerate(row):
            if column < len(row) - 1 or len(row) == len(head):
                widths[column] = max(widths[column], len(cell.text))
            right[column] = right[column] or cell.right
    top = [Cell(name, "dim", right[column]) for column, name in enumerate(head)]
    return [
        [
            Cell(_pad(cell, widths[column], is_last=column == len(row) - 1), cell.tone)
            for column, cell in enumerate(row)
        ]
        for row in [top, *body]
    ]


def _pad(cell: Cell, width: int, *, is_last: bool) -> str:
    if cell.right:
        return cell.text.rjust(width)
    return cell.text if is_last else cell.text.ljust(width)


def _paint(row: list[Cell], colour: bool) -> str:
    painted = [
        f"\x1b[{_ANSI[cell.tone]}m{cell.text}\x1b[0m"
        if colour and cell.tone != "plain" and cell.text.strip()
        else cell.text
        for cell in row
    ]
    return "  ".join(painted).rstrip()


def _clean(text: str) -> str:
    """Names and log lines come from elsewhere: they must not steer the terminal."""
    return "".join(char if char.isprintable() else " " for char in text)
