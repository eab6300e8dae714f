"""One device over the whole screen: tall graphs, and every model it holds."""

from __future__ import annotations

from olol_tui.fleet.snapshot import Fleet, ModelLoad
from olol_tui.models.names import canonical, same
from olol_tui.render.charts import bar, graph
from olol_tui.render.history import DeviceHistory, Ring
from olol_tui.render.line import Line, Row, beside, blank
from olol_tui.render.palette import Palette, Palettes
from olol_tui.render.panes import short_name, value_style
from olol_tui.render.text import (
    cells,
    celsius,
    percent,
    rate,
    remaining,
    seconds,
    size,
    size_pair,
    watts,
)
from olol_tui.render.tiles import GLYPHS, Resident, Tile

BOXED = 100
"""From this width the graphs stand two by two."""


def _graphs(tile: Tile, history: DeviceHistory) -> list[tuple[str, str, str, Ring]]:
    """Name of the colour, label, value and samples of every graph the device can fill."""
    device = tile.device
    if device is None:
        return []
    found = [("util", "util", percent(device.util_percent), history.util)]
    pair = size_pair(device.used_bytes, device.vram_bytes)
    found.append(("vram", tile.memory_word, pair, history.vram))
    if device.temp_c is not None:
        limit = "" if device.temp_limit_c is None else f" of {celsius(device.temp_limit_c)}"
        found.append(("temp", "temp", celsius(device.temp_c) + limit, history.temp))
    if device.power_w is not None:
        limit = "" if device.power_limit_w is None else f" of {watts(device.power_limit_w)}"
        found.append(("power", "power", watts(device.power_w) + limit, history.power))
    return found


def _draw_graph(
    tile: Tile,
    name: str,
    label: str,
    value: str,
    ring: Ring,
    width: int,
    rows: int,
    palette: Palette,
) -> list[Line]:
    """A title line with the value, then `rows - 1` rows of graph, one column of margin."""
    inner = width - 2
    hue = palette.ramp(name, 1)[0]
    head = Row(width, palette.base).gap().put(label, hue)
    span = f"  {inner}s"
    head.to(width - 1 - cells(value) - cells(span))
    head.put(value, value_style(tile, name, palette)).put(span, palette.faint)
    lines = [head.end()]
    styles = palette.ramp(name, rows - 1)
    for y, glyphs in enumerate(graph(ring.tail(inner), inner, rows - 1)):
        lines.append(Row(width, palette.base).gap().raw(glyphs, inner, styles[y]).end())
    return lines


def _resident_row(
    resident: Resident, load: ModelLoad | None, fleet: Fleet, width: int, name: int, p: Palette
) -> Line:
    row = Row(width, p.base).gap(2).put(resident.name, p.base, name)
    row.put(" P " if resident.pinned else "   ", p.pinned)
    if resident.loading:
        progress = resident.progress
        row.put("▒ loading ", p.loading)
        if progress is not None:
            full, empty = bar(progress, 20)
            row.raw(full, len(full), p.loading).raw(empty, len(empty), p.empty)
            row.put(f" {percent(100 * progress)}", p.loading)
        return row.end()
    row.put(size(resident.vram_bytes or resident.size_bytes or None), p.base, 6, ">")
    context = "-" if resident.context_length is None else str(resident.context_length)
    row.put(context, p.base, 8, ">")
    keep = "pin" if resident.pinned else remaining(resident.expires_at, fleet.wall)
    row.put(keep, p.pinned if resident.pinned else p.base, 9, ">")
    row.put("-" if load is None else str(load.running), p.base, 5, ">")
    row.put("-" if load is None else rate(load.tokens_per_s or None), p.bright, 8, ">")
    row.put("-" if load is None else seconds(load.ttft_p50_s), p.base, 8, ">")
    queued = 0 if load is None else load.queued
    row.put(str(queued), p.bright if queued else p.muted, 6, ">")
    if resident.spilled:
        row.put("  partly on the CPU", p.warn)
    return row.end()


def _fits(tile: Tile, width: int, palette: Palette) -> Line:
    """What is free, and which models of the library would fit beside what is there."""
    device = tile.device
    row = Row(width, palette.base).gap(2)
    free = None if device is None else device.free_bytes
    if free is None:
        return row.end()
    row.put("FREE ", palette.muted).put(size(free), palette.bright)
    held = tuple(r.name for r in tile.residents)
    fitting = [
        m
        for m in sorted(tile.node.library, key=lambda m: m.size_bytes)
        if 0 < m.size_bytes <= free and not any(same(m.name, h) for h in held)
    ]
    if fitting:
        words = ", ".join(f"{m.name} {size(m.size_bytes)}" for m in fitting[:6])
        row.put(f"  fits: {words}", palette.muted, max(0, row.left - 1))
    elif len(tile.node.library) > len(held):
        row.put("  nothing else of the library fits beside", palette.muted, max(0, row.left - 1))
    return row.end()


def _status(tile: Tile, width: int, palettes: Palettes) -> Line:
    palette = palettes.base
    row = Row(width, palette.base).gap()
    row.put(GLYPHS[tile.state] + " ", palette.state(tile.state)).put(tile.label, palette.strong)
    row.gap(2).put(short_name(tile), palette.muted)
    if tile.note:
        row.gap(2).put(tile.note, palette.state(tile.state), max(0, row.left - 1))
    elif tile.engines:
        engine = tile.engines[0]
        words = f"{engine.kind} {engine.version}".strip()
        row.gap(2).put(f"{words}, {engine.state}", palette.muted)
    return row.end()


def graph_rows(graphs: int, width: int, height: int, below: int) -> int:
    """Rows of one graph with its title: what is left over the table, within reason."""
    stacked = max(1, -(-graphs // 2) if width >= BOXED else graphs)
    return max(2, min(18, max(height - below, height // 2) // stacked))


def draw_hero(
    fleet: Fleet,
    tile: Tile,
    history: DeviceHistory,
    width: int,
    height: int,
    palettes: Palettes,
    *,
    others: bool,
) -> list[Line]:
    """Graphs, then the table of resident models, in at most `height` rows.

    Args:
        others: alerts or models that lie elsewhere will be drawn below.
    """
    palette = palettes.dim if tile.dimmed else palettes.base
    graphs = _graphs(tile, history)
    lines = [_status(tile, width, palettes)]
    if tile.log:
        row = Row(width, palette.base).gap(3).put("└ ", palettes.base.faint)
        lines.append(row.put(tile.log, palettes.base.muted, max(0, row.left - 1)).end())
    if graphs:
        # Status, rule, titles, models and what is free; then alerts when there are some.
        below = 4 + max(1, len(tile.residents)) + (6 if others else 0)
        rows = graph_rows(len(graphs), width, height, below)
        if width >= BOXED:
            half = width // 2
            for index in range(0, len(graphs), 2):
                pair = graphs[index : index + 2]
                parts = [
                    (_draw_graph(tile, *g, w, rows, palette), w)
                    for g, w in zip(pair, (half, width - half), strict=False)
                ]
                if len(pair) == 1:
                    parts = [(_draw_graph(tile, *pair[0], width, rows, palette), width)]
                lines.extend(beside(parts, rows, palette.base))
        else:
            for g in graphs:
                lines.extend(_draw_graph(tile, *g, width, rows, palette))
    roomy = height - len(lines) > 3 + max(1, len(tile.residents))
    lines.extend(_residents(fleet, tile, width, palettes, roomy=roomy))
    return lines[:height]


def _residents(
    fleet: Fleet, tile: Tile, width: int, palettes: Palettes, *, roomy: bool
) -> list[Line]:
    base = palettes.base
    rule = Row(width, base.faint).raw("─ ", 2, base.faint).put("Loaded", base.muted).gap()
    lines = [rule.raw("─" * rule.left, rule.left, base.faint).end()]
    name_width = max(14, min(32, width - 56))
    head = Row(width, base.muted).gap(2).put("MODEL", base.muted, name_width + 3)
    for title, cells_wide in (
        ("SIZE", 6),
        ("CTX", 8),
        ("KEEP", 9),
        ("REQ", 5),
        ("TOK/s", 8),
        ("TTFT", 8),
        ("QUEUE", 6),
    ):
        head.put(title, base.muted, cells_wide, ">")
    lines.append(head.end())
    loads = {canonical(m.model): m for m in fleet.gateway.models}
    for resident in tile.residents:
        load = loads.get(canonical(resident.name))
        lines.append(_resident_row(resident, load, fleet, width, name_width, base))
    if not tile.residents:
        row = Row(width, base.base).gap(2)
        lines.append(row.put("nothing loaded: p places a model", base.faint).end())
    if roomy:
        lines.append(blank(width, base.base))
    lines.append(_fits(tile, width, base))
    return lines
