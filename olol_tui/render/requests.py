"""The Requests screen: a line per queue, then the requests."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from rich.style import Style

from olol_tui.fleet.snapshot import ModelLoad, Request
from olol_tui.models.names import canonical, same
from olol_tui.render.charts import spark
from olol_tui.render.line import Frame, Hit, Line, Row, blank
from olol_tui.render.palette import Palette
from olol_tui.render.scene import Scene
from olol_tui.render.table import Column, Fitted, fit_columns, head_line
from olol_tui.render.text import cells, clean, percent, rate, seconds, tenths

COLUMNS: tuple[Column, ...] = (
    Column("id", "ID", 6, grow=4),
    Column("age", "AGE", 6, ">"),
    Column("state", "STATE", 10, grow=2),
    Column("model", "MODEL", 13, grow=15),
    Column("client", "CLIENT", 7, grow=11, keep=5),
    Column("where", "WHERE", 9, grow=7),
    Column("wait", "WAIT", 6, ">", keep=3),
    Column("ttft", "TTFT", 6, ">"),
    Column("speed", "TOK/s", 5, ">"),
    Column("tokens", "TOKENS", 6, ">", keep=4),
    Column("status", "HTTP", 5, ">", keep=2),
)

_GLYPHS = {
    "queued": "○",
    "dispatched": "▒",
    "prefill": "▒",
    "decode": "●",
    "done": "·",
    "failed": "✕",
    "cancelled": "_",
}

_RANK = {"queued": 0, "dispatched": 1, "prefill": 1, "decode": 1}


def is_live(request: Request) -> bool:
    """Queued or running: it can still be cancelled."""
    return request.state in _RANK


def ordered(requests: Sequence[Request]) -> list[Request]:
    """Queued, then running, oldest first; then those that ended, newest first."""
    return sorted(
        requests, key=lambda r: (_RANK.get(r.state, 2), -r.age_s if is_live(r) else r.age_s)
    )


def state_style(request: Request, p: Palette) -> Style:
    return {
        "queued": p.warn,
        "dispatched": p.loading,
        "prefill": p.loading,
        "decode": p.ok,
        "done": p.muted,
        "failed": p.crit,
        "cancelled": p.muted,
    }[request.state]


def _cell(request: Request, key: str) -> str:
    if key == "state":
        return f"{_GLYPHS[request.state]} {request.state}"
    if key == "tokens":
        return str(request.tokens) if request.tokens else "-"
    if key == "status":
        return "-" if request.status is None else str(request.status)
    return {
        "id": request.id,
        "age": tenths(request.age_s),
        "model": request.model,
        "client": request.client,
        "where": request.where or place_words(request) or "-",
        "wait": seconds(request.wait_s),
        "ttft": seconds(request.ttft_s),
        "speed": rate(request.tokens_per_s),
    }[key]


def place_words(request: Request) -> str:
    """`#3 ~12.0s`: third in its line, about 12 s to go. Empty when it does not wait."""
    if request.position is None:
        return ""
    wait = "" if request.expected_s is None else f" ~{tenths(request.expected_s)}"
    return f"#{request.position}{wait}"


def _fitted(width: int) -> Fitted:
    return fit_columns(COLUMNS, width - 3, _gap(width))


def _gap(width: int) -> int:
    return 2 if width >= 110 else 1


def _request_line(
    request: Request, fitted: Fitted, width: int, p: Palette, *, cursor: bool
) -> Line:
    row = Row(width, p.base).raw("▶ " if cursor else "  ", 2, p.strong)
    live = is_live(request)
    for index, (column, cells_wide) in enumerate(fitted):
        row.gap(_gap(width) if index else 0)
        style = p.base if live else p.muted
        if column.key == "state":
            style = state_style(request, p)
        elif column.key == "model" and live:
            style = p.bright
        elif column.key == "status" and (request.status or 0) >= 400:
            style = p.crit
        text = _cell(request, column.key)
        if column.key == "client" and len(text) > cells_wide and _is_address(text):
            # Its end tells it from its neighbours.
            text = f"…{text[1 - cells_wide :]}"
        row.put(text, style, cells_wide, column.align)
    return row.end()


def _is_address(client: str) -> bool:
    return client[-1:].isalnum() and not set(client) - set("0123456789abcdefABCDEF.:")


def _waiting_words(load: ModelLoad, scene: Scene, requests: Sequence[Request]) -> tuple[str, bool]:
    """How long a queue waits, and whether that is because the model loads."""
    name = canonical(load.model)
    if load.paused:
        return "paused: p resumes it", True
    for tile in scene.tiles:
        for resident in tile.residents:
            if resident.loading and same(resident.name, name) and not load.replicas:
                progress = resident.progress
                tail = "" if progress is None else f" {percent(100 * progress)}"
                return f"loading on {clean(tile.label)}{tail}", True
    if load.queued and not load.replicas and not load.loading:
        return "no replica", True
    mine = [r for r in requests if canonical(r.model) == name]
    oldest = max((r.age_s for r in mine if r.state == "queued"), default=None)
    waits = [r.wait_s for r in mine if r.state != "queued" and r.wait_s is not None]
    words = f"wait {seconds(median(waits) if waits else None)}"
    return words + (f"  oldest {tenths(oldest)}" if oldest is not None else ""), False


def queue_lines(scene: Scene, requests: Sequence[Request], width: int, rows: int) -> list[Line]:
    """One line per model with demand: depth, its history, how long it waits."""
    p = scene.palettes.base
    loads = scene.fleet.gateway.models
    waiting = scene.fleet.gateway.queued
    rule = Row(width, p.faint).raw("─ ", 2, p.faint).put("Queues", p.muted).gap()
    tail = f" {waiting} waiting " if waiting else " nobody waits "
    fill = max(0, rule.left - cells(tail) - 1)
    rule.raw("─" * fill, fill, p.faint).put(tail, p.warn if waiting else p.muted)
    lines = [rule.raw("─" * rule.left, rule.left, p.faint).end()]
    # What is busy is there, idle models fill the rest; all in the gateway's order: lines that
    # come and go with every reply would shift the whole screen.
    ranked = sorted(loads, key=lambda x: 0 if x.queued else 1 if x.running or x.paused else 2)
    shown = {x.model for x in ranked[: rows - 1]}
    name_width = max(12, min(26, width // 4))
    words_width = 30
    for load in (x for x in loads if x.model in shown):
        row = Row(width, p.base).gap(2).put(load.model, p.base, name_width).gap()
        queued, running = (" queued", " running") if width >= 100 else (" q", " r")
        row.put(str(load.queued), p.warn if load.queued else p.muted, 3, ">").put(queued, p.muted)
        row.put(str(load.running), p.ok if load.running else p.muted, 4, ">")
        row.put(running, p.muted).gap()
        graph = max(0, row.left - words_width - 3)
        glyphs = spark(scene.history.queue(load.model).tail(graph), graph)
        row.raw(glyphs, graph, p.loading if load.queued else p.faint).gap(2)
        words, blocked = _waiting_words(load, scene, requests)
        row.put(words, p.loading if blocked else p.muted, max(0, row.left - 1))
        lines.append(row.end())
    return lines


def draw_head(scene: Scene, requests: Sequence[Request], width: int, height: int) -> list[Line]:
    """What stands above the rows: the queues and the titles of the columns."""
    p = scene.palettes.base
    queue_rows = max(2, min(1 + len(scene.fleet.gateway.models), height // 4, 6))
    lines = queue_lines(scene, requests, width, queue_rows)
    if height >= 24:
        lines.append(blank(width, p.base))
    lines.append(head_line(_fitted(width), width, p, gap=_gap(width)))
    return lines


def draw_rows(
    scene: Scene, shown: Sequence[Request], first: int, rows: int, width: int, *, cursor: str
) -> Frame:
    """The requests from index `first` on.

    Args:
        shown: what the filter lets through, in order.
        cursor: id of the request with the cursor.
    """
    frame = Frame()
    fitted = _fitted(width)
    for index, request in enumerate(shown[first : first + rows], start=first):
        chosen = request.id == cursor
        palette = scene.palettes.cursor if chosen else scene.palettes.base
        frame.hits.append(Hit(0, len(frame.lines), width, 1, "cursor", str(index)))
        frame.lines.append(_request_line(request, fitted, width, palette, cursor=chosen))
    return frame
