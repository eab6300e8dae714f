"""Under the devices: what is wrong, and the demand for every model."""

from __future__ import annotations

from dataclasses import dataclass

from olol_tui.fleet.snapshot import Fleet, ModelLoad, Severity
from olol_tui.models.names import canonical
from olol_tui.render.box import wrap
from olol_tui.render.charts import spark
from olol_tui.render.history import FleetHistory
from olol_tui.render.line import Line, Row, beside
from olol_tui.render.palette import Palette, Palettes
from olol_tui.render.text import age, cells, clean, percent, rate, seconds, short_model
from olol_tui.render.tiles import ASKS_KEY, Tile, engine_fault, is_new

WIDE = 100
"""From this width alerts and models stand side by side."""

LOG_SAYS = "; last log line: "
"""Between an alert and the log line that explains it: the line gets a row of its own."""

_GLYPH: dict[Severity, str] = {"critical": "■", "warning": "▲", "info": "·"}


@dataclass(frozen=True, slots=True)
class Notice:
    """One line of the alert list."""

    severity: Severity
    where: str
    message: str
    age_s: float | None
    detail: str = ""
    """The last log line, shown below when there is room."""


def notices(fleet: Fleet, tiles: tuple[Tile, ...]) -> tuple[Notice, ...]:
    """Alerts of the fleet plus every fault of a node or engine they do not name, worst first."""
    found: list[Notice] = []
    for alert in fleet.alerts:
        message, _, line = alert.message.partition(LOG_SAYS)
        age_s = fleet.now_s - alert.since_s
        found.append(Notice(alert.severity, alert.where, message, age_s, line))
    named = {n.where for n in found}
    details: dict[str, str] = {}
    for node in fleet.nodes:
        waits = node.question is not None or is_new(node)
        if node.question is not None and node.name not in named:
            found.append(Notice("warning", node.name, ASKS_KEY, None))
        if node.state in ("lost", "failed") and node.name not in named and not waits:
            message = node.error or f"node {node.state}, last good figures kept"
            found.append(Notice("critical", node.name, message, node.age_s))
        for engine in node.engines:
            fault = engine_fault(engine)
            if fault and engine.log_tail:
                details[engine.id] = engine.log_tail[-1]
            if fault and engine.id not in named:
                severity: Severity = "critical" if engine.state == "failed" else "warning"
                since_s = fleet.now_s - engine.since_s
                found.append(Notice(severity, engine.id, fault, since_s))
    for tile in tiles:
        device_fault = tile.state in ("crit", "warn") and tile.note and tile.note != ASKS_KEY
        faults = tuple(f for e in tile.engines if (f := engine_fault(e)))
        engine_note = bool(faults) and tile.note.endswith(faults)
        told = tile.label in named or any(e.id in named for e in tile.engines)
        if device_fault and not engine_note and not told:
            severity = "critical" if tile.state == "crit" else "warning"
            found.append(Notice(severity, tile.label, tile.note, None))
    order = {"critical": 0, "warning": 1, "info": 2}
    found.sort(key=lambda n: order[n.severity])
    return tuple(
        Notice(n.severity, n.where, n.message, n.age_s, n.detail or details.get(n.where, ""))
        for n in found
    )


def notice_lines(found: tuple[Notice, ...], width: int, rows: int, palette: Palette) -> list[Line]:
    """Alert rows, with the log line of a fault beneath it while there is room."""
    if not found:
        return [Row(width, palette.base).gap(2).put("● nothing wrong", palette.ok).end()][:rows]
    shown = found if len(found) <= rows else found[: max(0, rows - 1)]
    spare = rows - len(found)
    lines: list[Line] = []
    where_width = min(max(cells(clean(n.where)) for n in found), max(8, width // 3))
    for notice in shown:
        style = {"critical": palette.crit, "warning": palette.warn, "info": palette.muted}
        row = Row(width, palette.base).gap()
        row.put(_GLYPH[notice.severity], style[notice.severity]).gap()
        row.put(age(notice.age_s), palette.muted, 4, ">").gap()
        row.put(notice.where, palette.base, where_width).gap()
        room = max(8, row.left - 1)
        parts = wrap(notice.message, room)[: 1 + max(0, spare)]
        if len(parts) == 1 or spare <= 0:
            parts = [notice.message]
        spare -= len(parts) - 1
        indent = row.used
        lines.append(row.put(parts[0], style[notice.severity], room).end())
        lines.extend(
            Row(width, palette.base).gap(indent).put(part, style[notice.severity], room).end()
            for part in parts[1:]
        )
        if notice.detail and spare > 0:
            spare -= 1
            row = Row(width, palette.base).gap(8).put("└ ", palette.faint)
            lines.append(row.put(notice.detail, palette.muted, max(0, row.left - 1)).end())
    if len(shown) < len(found):
        more = f"+{len(found) - len(shown)} more"
        lines.append(Row(width, palette.base).gap(2).put(more, palette.muted).end())
    return lines[:rows]


def _progress_by_model(tiles: tuple[Tile, ...]) -> dict[str, float | None]:
    return {canonical(r.name): r.progress for t in tiles for r in t.residents if r.loading}


def _model_row(
    load: ModelLoad,
    history: FleetHistory,
    loading: dict[str, float | None],
    width: int,
    name_width: int,
    palette: Palette,
) -> Line:
    row = (
        Row(width, palette.base).gap(2).put(short_model(load.model), palette.base, name_width).gap()
    )
    name = canonical(load.model)
    on_its_way = load.loading or name in loading
    replicas = "▒" if on_its_way and not load.replicas else str(load.replicas)
    row.put(replicas, palette.loading if on_its_way else palette.base, 3, ">")
    row.put("P" if load.pinned else " ", palette.pinned).gap()
    row.put(rate(load.requests_per_s), palette.base, 5, ">").gap()
    row.put(rate(load.tokens_per_s or None), palette.base, 5, ">").gap(2)
    progress = loading.get(name)
    if on_its_way and not load.replicas:
        text = "loading" if progress is None else f"loading {percent(100 * progress)}"
        row.put(text, palette.loading, 13)
    else:
        row.put(seconds(load.ttft_p50_s), palette.base, 5, ">").put(" / ", palette.faint)
        row.put(seconds(load.ttft_p95_s), palette.base, 5, ">")
    row.gap(2)
    glyphs = spark(history.queue(load.model).tail(8), 8) if row.left >= 13 else ""
    row.raw(glyphs, len(glyphs), palette.loading if load.queued else palette.faint)
    style = palette.bright if load.queued else palette.muted
    return row.gap().put(str(load.queued), style, min(3, max(0, row.left - 1)), ">").end()


def model_lines(
    fleet: Fleet,
    tiles: tuple[Tile, ...],
    history: FleetHistory,
    width: int,
    rows: int,
    palette: Palette,
) -> list[Line]:
    """The table of models: replicas, rates, time to first token, queue."""
    loads = fleet.gateway.models
    fixed = 2 + 1 + 5 + 6 + 7 + 13 + 2 + 13
    name_width = max(10, min(28, width - fixed))
    row = Row(width, palette.muted).gap(2).put("MODEL", palette.muted, name_width)
    row.put(" REPL ", palette.muted).put("REQ/s", palette.muted, 5, ">")
    row.put(" TOK/s", palette.muted).put("  TTFT p50/p95 ", palette.muted).gap()
    row.put("QUEUE" if row.left >= 6 else "Q", palette.muted)
    lines = [row.end()]
    if not loads:
        empty = Row(width, palette.base).gap(2).put("no request yet", palette.faint).end()
        return [*lines, empty][:rows]
    loading = _progress_by_model(tiles)
    room = rows - 1
    shown = loads if len(loads) <= room else loads[: max(0, room - 1)]
    lines.extend(_model_row(x, history, loading, width, name_width, palette) for x in shown)
    if len(shown) < len(loads):
        more = f"+{len(loads) - len(shown)} more"
        lines.append(Row(width, palette.base).gap(2).put(more, palette.muted).end())
    return lines[:rows]


def wanted_rows(fleet: Fleet, found: tuple[Notice, ...], width: int) -> int:
    """Rows in which nothing of the summary is cut."""
    alerts = max(1, len(found) + sum(1 for n in found if n.detail))
    models = 1 + max(1, len(fleet.gateway.models))
    return 1 + max(alerts, models) if width >= WIDE else 2 + min(alerts, 4) + models


def _titled_rule(width: int, title: str, palette: Palette) -> Row:
    row = Row(width, palette.faint).raw("─ ", 2, palette.faint).put(title, palette.muted).gap()
    return row.raw("─" * row.left, row.left, palette.faint)


def draw_summary(
    fleet: Fleet,
    tiles: tuple[Tile, ...],
    found: tuple[Notice, ...],
    history: FleetHistory,
    width: int,
    height: int,
    palettes: Palettes,
) -> list[Line]:
    """Alerts and models in exactly `height` rows, side by side when wide, else stacked."""
    palette = palettes.base
    if height <= 1:
        return []
    alerts_title = f"Alerts {len(found)}" if found else "Alerts"
    if width >= WIDE:
        left = width * 42 // 100
        right = width - left - 1
        head = [
            *_titled_rule(left, alerts_title, palette).end(),
            *Row(1, palette.faint).put("┬", palette.faint).end(),
            *_titled_rule(right, "Models", palette).end(),
        ]
        rows = height - 1
        edge = [Row(1, palette.base).put("│", palette.faint).end()] * rows
        columns = [
            (notice_lines(found, left, rows, palette), left),
            (edge, 1),
            (model_lines(fleet, tiles, history, right, rows, palette), right),
        ]
        return [head, *beside(columns, rows, palette.base)]
    lines: list[Line] = []
    if found:
        room = max(1, min(4, height - 4))
        lines.append(_titled_rule(width, alerts_title, palette).end())
        lines.extend(notice_lines(found, width, room, palette))
    if height - len(lines) >= 3:
        lines.append(_titled_rule(width, "Models", palette).end())
        rows = height - len(lines)
        lines.extend(model_lines(fleet, tiles, history, width, rows, palette))
    lines = lines[:height]
    lines.extend(Row(width, palette.base).end() for _ in range(height - len(lines)))
    return lines
