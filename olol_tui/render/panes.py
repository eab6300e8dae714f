"""Devices as framed panes: the Fleet screen from 2 to 16 devices."""

from __future__ import annotations

from dataclasses import dataclass

from rich.segment import Segment
from rich.style import Style

from olol_tui.render.charts import bar, graph, spark
from olol_tui.render.history import DeviceHistory, Ring
from olol_tui.render.line import Frame, Hit, Line, Row, beside
from olol_tui.render.palette import Palette, Palettes
from olol_tui.render.text import (
    age,
    cells,
    celsius,
    fit,
    percent,
    short_model,
    size,
    size_pair,
    watts,
)
from olol_tui.render.tiles import GLYPHS, Resident, Tile, TileKey

MIN_WIDTH = 26
MIN_HEIGHT = 6
FULL_HEIGHT = 8
MAX_HEIGHT = 13
GOOD_WIDTH = 40


@dataclass(frozen=True, slots=True)
class Grid:
    """How panes are laid out."""

    columns: int
    rows: int
    width: int
    """Cells of one pane; what is left over widens the last column."""
    height: int
    visible_rows: int

    def tall(self) -> int:
        return self.visible_rows * self.height


def layout(count: int, width: int, height: int, below: int) -> Grid | None:
    """The grid that shows `count` panes at once and leaves `below` rows; None if none does.

    Full panes come before small ones, no holes before holes, then a width near GOOD_WIDTH.
    """
    if count < 1:
        return None
    most = min(count, width // MIN_WIDTH)
    for pane_height in (FULL_HEIGHT, FULL_HEIGHT - 1, MIN_HEIGHT):
        fitting = [
            (columns * rows - count, abs(width // columns - GOOD_WIDTH), columns, rows)
            for columns in range(1, most + 1)
            if (rows := -(-count // columns)) * pane_height + below <= height
        ]
        if fitting:
            _, _, columns, rows = min(fitting)
            grown = min(MAX_HEIGHT, (height - below) // rows)
            return Grid(columns, rows, width // columns, max(pane_height, grown), rows)
    return None


def scrolled_layout(count: int, width: int, height: int) -> Grid:
    """The grid when panes are wanted though they do not fit: some rows lie below the edge."""
    columns = max(1, min(count, width // 30))
    rows = -(-count // columns)
    pane_height = FULL_HEIGHT if height >= FULL_HEIGHT else max(MIN_HEIGHT, height)
    visible = max(1, min(rows, height // pane_height))
    return Grid(columns, rows, width // columns, pane_height, visible)


def value_style(tile: Tile, name: str, palette: Palette) -> Style:
    """Figures turn to the warning colour where the device is near its limit."""
    device = tile.device
    if device is None:
        return palette.base
    if name == "temp" and device.temp_c is not None:
        limit = device.temp_limit_c or 90.0
        if device.temp_c >= limit:
            return palette.crit
        if device.temp_c >= limit - 5:
            return palette.warn
    if name == "vram" and (tile.used_fraction or 0) >= 0.95:
        return palette.warn
    return palette.bright if name == "util" else palette.base


_HEAD = 12
"""Cells of label and value in front of a graph."""


def _head(palette: Palette, label: str, value: str, style: Style) -> Line:
    row = Row(_HEAD, palette.base).gap().raw(label.ljust(4), 4, palette.muted).gap()
    return row.put(value, style, 5, ">").end()


def _spark_row(head: Line, ring: Ring, width: int, hue: Style) -> Line:
    columns = width - _HEAD - 1
    return [*head, Segment(spark(ring.tail(columns), columns) + " ", hue)]


def _metric_rows(
    tile: Tile, history: DeviceHistory, width: int, rows: int, palette: Palette
) -> list[Line]:
    """Utilisation, memory, temperature and power in at most `rows` rows."""
    device = tile.device
    if device is None:
        return []
    util = _head(palette, "util", percent(device.util_percent), value_style(tile, "util", palette))
    lines = [_spark_row(util, history.util, width, palette.util)]
    pair = size_pair(device.used_bytes, device.vram_bytes)
    bar_width = max(4, width - 14 - cells(pair))
    full, empty = bar(tile.used_fraction, bar_width)
    fraction = tile.used_fraction
    row = Row(width, palette.base).gap().raw(f"{tile.memory_word:<4} ", 5, palette.muted)
    row.put(
        percent(None if fraction is None else 100 * fraction),
        value_style(tile, "vram", palette),
        5,
        ">",
    )
    row.gap().raw(full, len(full), palette.vram).raw(empty, len(empty), palette.empty)
    lines.append(row.gap().put(pair, palette.muted).end())
    has_temp, has_power = device.temp_c is not None, device.power_w is not None
    if rows >= 4 and has_temp and has_power:
        temp = _head(palette, "temp", celsius(device.temp_c), value_style(tile, "temp", palette))
        lines.append(_spark_row(temp, history.temp, width, palette.temp))
        power = _head(palette, "pwr", watts(device.power_w), palette.base)
        lines.append(_spark_row(power, history.power, width, palette.power))
    elif rows >= 3 and (has_temp or has_power):
        row = Row(width, palette.base).gap()
        if has_temp:
            row.raw("temp ", 5, palette.muted)
            row.put(celsius(device.temp_c), value_style(tile, "temp", palette), 5, ">").gap()
        if has_power:
            row.gap().raw("pwr ", 4, palette.muted)
            limit = "" if device.power_limit_w is None else f"/{watts(device.power_limit_w)}"
            row.put(watts(device.power_w), palette.base).put(limit, palette.muted)
        lines.append(row.end())
    return lines


def resident_row(resident: Resident, width: int, palette: Palette) -> Line:
    """One model: name, pin, size on the right; or its way into memory."""
    row = Row(width, palette.base).gap()
    if resident.loading:
        progress = resident.progress
        tail = "loading" if progress is None else f"{percent(100 * progress)}"
        name = short_model(resident.name)
        name_width = min(cells(name) + 1, max(6, width - 16))
        row.put("▒ ", palette.loading).put(name, palette.base, name_width).gap()
        bar_width = max(0, row.left - cells(tail) - 2)
        if progress is not None and bar_width >= 4:
            full, empty = bar(progress, bar_width)
            row.raw(full, len(full), palette.loading).raw(empty, len(empty), palette.empty)
        return row.right(tail, palette.loading, margin=1).end()
    held = size(resident.vram_bytes or resident.size_bytes or None)
    mark = " P" if resident.pinned else ""
    if resident.of_layers:
        mark = f"{' ◆' if resident.is_head else ' '}{resident.layers}/{resident.of_layers}L"
    name = short_model(resident.name)
    name = fit(name, min(cells(name), max(4, width - 5 - len(held) - len(mark))))
    row.put("  ").put(name, palette.base).put(mark, palette.pinned)
    if resident.spilled:
        row.put(" cpu", palette.warn)
    return row.right(held, palette.muted, margin=1).end()


def _content_rows(tile: Tile, width: int, rows: int, palette: Palette) -> list[Line]:
    """What is wrong, then the models, in exactly `rows` rows or fewer."""
    lines: list[Line] = []
    if tile.note:
        style = palette.state(tile.state)
        lines.append(
            Row(width, palette.base).gap().put("! ", style).put(tile.note, style, width - 4).end()
        )
        if tile.log and rows >= 2:
            lines.append(
                Row(width, palette.base)
                .gap()
                .put("└ ", palette.faint)
                .put(tile.log, palette.muted, width - 4)
                .end()
            )
    left = rows - len(lines)
    residents = tile.residents
    if not residents:
        if left > 0 and not tile.note:
            word = "nothing loaded" if tile.engines else "no engine"
            lines.append(Row(width, palette.base).gap().put("  " + word, palette.faint).end())
        return lines[:rows]
    shown = residents if len(residents) <= left else residents[: max(0, left - 1)]
    lines.extend(resident_row(r, width, palette) for r in shown)
    if len(shown) < len(residents) and left > 0:
        more = f"  +{len(residents) - len(shown)} more"
        lines.append(Row(width, palette.base).gap().put(more, palette.muted).end())
    return lines[:rows]


def draw_pane(
    tile: Tile,
    history: DeviceHistory,
    width: int,
    height: int,
    palettes: Palettes,
    *,
    content: int,
    cursor: bool,
    target: bool = False,
) -> list[Line]:
    """One pane, `width` x `height` with its frame.

    Args:
        content: rows to keep for models and faults, alike in all panes so that their
            figures stand side by side; what is left makes the graph taller.
        cursor: it has the cursor: its frame is lit.
        target: it is where a model is being moved: its frame says so.
    """
    palette = palettes.dim if tile.dimmed else palettes.base
    lit = palettes.base
    frame = lit.loading if target else lit.accent if cursor else lit.faint
    inner = width - 2
    lines = [_top(tile, width, lit, frame, cursor=cursor)]
    space = height - 2
    metrics = _metric_rows(tile, history, inner, 4 if space >= 6 else 3, palette)
    tall = space - len(metrics) - content
    if metrics and tall > 0:
        metrics[:1] = _tall_graph(tile, history, inner, 1 + min(3, tall), palette)
    body = metrics[:space] + _content_rows(tile, inner, max(0, space - len(metrics)), palette)
    edge = Segment("│", frame)
    empty = [Segment(" " * inner, palette.base)]
    body.extend([empty] * (space - len(body)))
    lines.extend([edge, *line, edge] for line in body)
    lines.append(_bottom(tile, width, lit, frame))
    return lines


def _tall_graph(
    tile: Tile, history: DeviceHistory, width: int, rows: int, palette: Palette
) -> list[Line]:
    """The utilisation graph over several rows, its label and value on the first."""
    assert tile.device is not None
    columns = width - _HEAD - 1
    value = percent(tile.device.util_percent)
    head = _head(palette, "util", value, value_style(tile, "util", palette))
    styles = [palette.util] * rows if tile.dimmed else palette.ramp("util", rows)
    beside_graph = [Segment(" " * _HEAD, palette.base)]
    return [
        [*(beside_graph if y else head), Segment(glyphs + " ", styles[y])]
        for y, glyphs in enumerate(graph(history.util.tail(columns), columns, rows))
    ]


def _top(tile: Tile, width: int, palette: Palette, frame: Style, *, cursor: bool) -> Line:
    row = Row(width - 1, palette.base).raw("╭─ ", 3, frame)
    row.put(GLYPHS[tile.state] + " ", palette.state(tile.state))
    title = palette.strong if cursor else palette.bright
    row.put(fit(tile.label, min(cells(tile.label), max(4, width - 8))), title).gap()
    name = short_name(tile)
    room = row.left - 3
    if name and room >= 6:
        name = fit(name, min(cells(name), room))
        row.raw("─" * (row.left - cells(name) - 3), row.left - cells(name) - 3, frame)
        row.gap().put(name, palette.muted).gap()
    return [*row.raw("─" * row.left, row.left, frame).end(), Segment("╮", frame)]


def _bottom(tile: Tile, width: int, palette: Palette, frame: Style) -> Line:
    row = Row(width - 1, palette.base).raw("╰─", 2, frame)
    if tile.requests:
        row.put(f" {tile.requests} req ", palette.ok)
    tail = f" ◌ {age(tile.node.age_s)} " if tile.dimmed else ""
    fill = row.left - cells(tail) - 1
    row.raw("─" * max(0, fill), max(0, fill), frame).put(tail, palette.stale)
    return [*row.raw("─" * row.left, row.left, frame).end(), Segment("╯", frame)]


def short_name(tile: Tile) -> str:
    """The device's name without the vendor's words."""
    device = tile.device
    if device is None:
        return tile.node.kind
    name = device.name
    for word in ("NVIDIA ", "GeForce ", "AMD ", "Tesla ", "(R)", "(TM)", "Intel "):
        name = name.replace(word, "")
    return name.strip()


def _content_wanted(tile: Tile) -> int:
    return len(tile.residents) + bool(tile.note) + bool(tile.log)


def draw_panes(
    tiles: tuple[Tile, ...],
    grid: Grid,
    first_row: int,
    histories: dict[TileKey, DeviceHistory],
    palettes: Palettes,
    width: int,
    *,
    cursor: TileKey | None,
    target: TileKey | None = None,
) -> Frame:
    """The visible rows of a grid of panes."""
    frame = Frame()
    content = max(2, min(4, max(_content_wanted(tile) for tile in tiles)))
    for row in range(first_row, min(grid.rows, first_row + grid.visible_rows)):
        start = row * grid.columns
        parts: list[tuple[list[Line], int]] = []
        top = len(frame.lines)
        for column in range(grid.columns):
            last = column == grid.columns - 1
            pane_width = width - grid.width * column if last else grid.width
            index = start + column
            if index >= len(tiles):
                parts.append(([], pane_width))
                continue
            tile = tiles[index]
            parts.append(
                (
                    draw_pane(
                        tile,
                        histories[tile.key],
                        pane_width,
                        grid.height,
                        palettes,
                        content=content,
                        cursor=tile.key == cursor,
                        target=tile.key == target,
                    ),
                    pane_width,
                )
            )
            frame.hits.append(
                Hit(grid.width * column, top, pane_width, grid.height, "cursor", str(index))
            )
        frame.lines.extend(beside(parts, grid.height, palettes.base.base))
    return frame
