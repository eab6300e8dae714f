"""The frame around every screen: header, tabs, status line and footer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.style import Style

from olol_tui.fleet.snapshot import Fleet, Operation
from olol_tui.render.charts import bar
from olol_tui.render.line import Frame, Hit, Line, Row
from olol_tui.render.palette import Palette, Palettes
from olol_tui.render.summary import Notice
from olol_tui.render.text import (
    age,
    cells,
    clean,
    count,
    fit,
    percent,
    rate,
    seconds,
    size_pair,
    watts,
)
from olol_tui.render.tiles import GLYPHS, WORST_FIRST, Tile

RESULT_SHOWN_S = 8.0
"""A finished operation stays in the status line this long."""


@dataclass(frozen=True, slots=True)
class _Chunk:
    """One fact of the header: long form, short form, and who is dropped first."""

    long: str
    short: str
    style: Style
    keep: int
    """The higher, the longer it stays when the terminal narrows."""


def _totals(tiles: Sequence[Tile]) -> tuple[float | None, float, float, float | None]:
    """Mean utilisation, bytes used, bytes in all, watts; None where no device says."""
    utils: list[float] = []
    used = total = 0.0
    power: float | None = None
    for tile in tiles:
        device = tile.device
        if device is None:
            continue
        if device.util_percent is not None:
            utils.append(device.util_percent)
        if device.vram_bytes is not None and device.used_bytes is not None:
            used += device.used_bytes
            total += device.vram_bytes
        if device.power_w is not None:
            power = (power or 0.0) + device.power_w
    return (sum(utils) / len(utils) if utils else None), used, total, power


def _left_chunks(
    fleet: Fleet, tiles: Sequence[Tile], found: Sequence[Notice], p: Palette
) -> list[_Chunk]:
    worst = next((s for s in WORST_FIRST if any(t.state == s for t in tiles)), "idle")
    glyph = GLYPHS["ok" if worst in ("idle", "cordoned") else worst]
    cards = [t for t in tiles if t.device is not None and t.device.vendor != "cpu"]
    gpus = len(cards)
    long, short = count(len(fleet.nodes), "node"), f"{len(fleet.nodes)}n"
    if gpus:
        long, short = f"{long} {gpus} GPU", f"{short} {gpus}g"
    chunks = [
        _Chunk(f"{glyph} {long}", f"{glyph}{short}", p.state(worst), 9),
    ]
    # The RAM of a machine without one is no VRAM, and its work says nothing of the GPUs.
    util, used, total, power = _totals(cards or tiles)
    if util is not None:
        chunks.append(_Chunk(f"util {percent(util)}", percent(util), p.base, 6))
    if total:
        pair = size_pair(used, total)
        word = "vram" if gpus else "ram"
        chunks.append(_Chunk(f"{word} {pair}", pair, p.base, 3))
    if power is not None:
        chunks.append(_Chunk(watts(power), watts(power), p.base, 2))
    warnings = sum(1 for n in found if n.severity == "warning")
    criticals = sum(1 for n in found if n.severity == "critical")
    if warnings:
        chunks.append(_Chunk(f"▲{warnings}", f"▲{warnings}", p.warn, 8))
    if criticals:
        chunks.append(_Chunk(f"■{criticals}", f"■{criticals}", p.crit, 9))
    return chunks


def _right_chunks(fleet: Fleet, p: Palette, *, read_only: bool) -> list[_Chunk]:
    gateway = fleet.gateway
    queued = p.warn if gateway.queued else p.base
    chunks = [_Chunk(f"queue {gateway.queued}", f"q{gateway.queued}", queued, 8)]
    speed = rate(gateway.tokens_per_s)
    chunks.append(_Chunk(f"{speed} tok/s", f"{speed}t/s", p.base, 7))
    if gateway.ttft_p95_s is not None:
        p95 = seconds(gateway.ttft_p95_s)
        chunks.append(_Chunk(f"p95 {p95}", f"p95 {p95}", p.base, 4))
    address = clean(gateway.address).removeprefix("http://")
    if address:
        port = ":" + address.rsplit(":", 1)[-1]
        word = "draining" if gateway.draining else address
        style = p.warn if gateway.draining else p.ok
        chunks.append(_Chunk(f"● {word}", f"● {'drain' if gateway.draining else port}", style, 9))
    else:
        chunks.append(_Chunk("✕ gateway off", "✕ off", p.crit, 9))
    badge = ("RO", p.warn) if read_only else ("RW", p.muted)
    chunks.append(_Chunk(badge[0], badge[0], badge[1], 9))
    return chunks


def _fit_chunks(
    groups: list[list[_Chunk]], name: str, width: int, gap: int
) -> list[list[tuple[str, Style]]]:
    """Short forms of what fits, the least important dropped; then longer while there is room."""
    room = width - cells(name) - 3
    chunks = sorted((c for group in groups for c in group), key=lambda c: -c.keep)
    forms: dict[int, str] = {}
    for chunk in chunks:
        needed = cells(chunk.short) + gap
        if needed <= room:
            forms[id(chunk)] = chunk.short
            room -= needed
    for chunk in chunks:
        more = cells(chunk.long) - cells(chunk.short)
        if id(chunk) in forms and more <= room:
            forms[id(chunk)] = chunk.long
            room -= more
    return [[(forms[id(c)], c.style) for c in group if id(c) in forms] for group in groups]


def draw_header(
    fleet: Fleet,
    tiles: Sequence[Tile],
    found: Sequence[Notice],
    width: int,
    palettes: Palettes,
    *,
    read_only: bool,
    silent_s: float = 0.0,
) -> Line:
    """The fleet in one line.

    Args:
        silent_s: how long the core has sent nothing; above a few seconds it is the news.
    """
    p = palettes.head
    name = clean(fleet.name) or "olol"
    groups = [_left_chunks(fleet, tiles, found, p), _right_chunks(fleet, p, read_only=read_only)]
    if silent_s > 0:
        lost = f"✕ no data for {age(silent_s)}"
        groups = [[_Chunk(lost, lost, p.crit, 99)], groups[1][-1:]]
    gap = 2 if width >= 100 else 1
    left, right = _fit_chunks(groups, f"olol {name}", width, gap)
    row = Row(width, p.base).gap().put("olol ", p.strong).put(name, p.bright)
    for text, style in left:
        row.gap(gap).put(text, style)
    row.to(width - 1 - sum(cells(t) for t, _ in right) - gap * (len(right) - 1))
    for index, (text, style) in enumerate(right):
        row.gap(gap if index else 0).put(text, style)
    return row.end()


def draw_tabs(
    tabs: Sequence[tuple[str, str, str]],
    active: str,
    crumbs: str,
    width: int,
    palettes: Palettes,
) -> Frame:
    """The screens (`key, title, name`), the active one as a chip, and where we are."""
    p = palettes.base
    row = Row(width, p.base)
    frame = Frame()
    for key, title, name in tabs:
        text = f" {key} {title} "
        frame.hits.append(Hit(row.used, 0, cells(text), 1, "view", name))
        if name == active:
            row.put(text, p.chip)
        else:
            row.put(f" {key} ", p.accent).put(f"{title} ", p.muted)
    room = row.left - 2
    if crumbs and room > 4:
        row.right(fit(crumbs, min(cells(clean(crumbs)), room)), p.muted, margin=1)
    frame.lines.append(row.end())
    return frame


def draw_footer(
    keys: Sequence[tuple[str, str, str]],
    last: Sequence[tuple[str, str, str]],
    width: int,
    palettes: Palettes,
) -> Frame:
    """Keys with their labels and actions: as many as fit, and always the `last` ones."""
    p = palettes.head
    row = Row(width, p.base)
    frame = Frame()

    def wide(item: tuple[str, str, str]) -> int:
        return cells(item[0]) + cells(item[1]) + 3

    reserved = sum(wide(item) for item in last)
    for item in keys:
        if row.used + wide(item) + reserved > width:
            continue
        _key(row, frame, item, p)
    for item in last:
        if row.left >= wide(item) - 1:
            _key(row, frame, item, p)
    frame.lines.append(row.end())
    return frame


def _key(row: Row, frame: Frame, item: tuple[str, str, str], p: Palette) -> None:
    key, label, action = item
    frame.hits.append(Hit(row.used, 0, cells(key) + cells(label) + 3, 1, "action", action))
    row.gap().put(key, p.strong).gap().put(label, p.base).gap()


def latest_running(fleet: Fleet) -> Operation | None:
    """The newest operation that runs."""
    running = (op for op in fleet.operations if op.state == "running")
    return max(running, key=lambda op: op.started_s, default=None)


def draw_operation(operation: Operation, fleet: Fleet, width: int, palettes: Palettes) -> Line:
    """A command on its way, or its result."""
    p = palettes.base
    row = Row(width, p.base).gap()
    marks = {
        "running": ("▒", p.loading),
        "done": ("●", p.ok),
        "failed": ("✕", p.crit),
        "cancelled": ("_", p.muted),
    }
    glyph, style = marks[operation.state]
    row.put(glyph + " ", style)
    others = sum(1 for op in fleet.operations if op.state == "running") - 1
    tail = f"+{others} more" if operation.state == "running" and others > 0 else ""
    title = clean(operation.title)
    row.put(title, p.bright, min(cells(title), max(10, row.left - 24 - cells(tail)))).gap(2)
    if operation.state == "running":
        if operation.progress is not None and row.left > 20 + cells(tail):
            wide = min(24, row.left - 16 - cells(tail))
            full, empty = bar(operation.progress, wide)
            row.raw(full, len(full), p.loading).raw(empty, len(empty), p.empty).gap()
            row.put(percent(100 * operation.progress), p.loading, 4, ">").gap()
        row.put(age(fleet.now_s - operation.started_s), p.muted).gap()
        if operation.message:
            row.put(operation.message, p.muted, max(0, row.left - cells(tail) - 2))
    else:
        words = operation.message or operation.state
        if operation.hint:
            words = f"{words}. {operation.hint}"
        row.put(words, style, max(0, row.left - 1))
    if tail and row.left > cells(tail):
        row.right(tail, p.muted, margin=1)
    return row.end()


def draw_tiny(
    fleet: Fleet,
    tiles: Sequence[Tile],
    found: Sequence[Notice],
    width: int,
    palettes: Palettes,
    *,
    read_only: bool,
) -> list[Line]:
    """Below the smallest useful size: one line of status, and the worst news if it fits."""
    lines = [draw_header(fleet, tiles, found, width, palettes, read_only=read_only)]
    p = palettes.base
    if found:
        style = p.crit if found[0].severity == "critical" else p.warn
        text = f" {found[0].where}: {found[0].message}"
        lines.append(Row(width, p.base).put(text, style, width).end())
    return lines
