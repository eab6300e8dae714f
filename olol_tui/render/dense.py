"""Devices as a list, one line each: the Fleet screen beyond 16 devices."""

from __future__ import annotations

from dataclasses import dataclass

from olol_tui.render.charts import bar, spark
from olol_tui.render.history import DeviceHistory
from olol_tui.render.line import Frame, Hit, Line, Row
from olol_tui.render.palette import Palettes
from olol_tui.render.panes import value_style
from olol_tui.render.text import age, cells, celsius, percent, short_model, size, watts
from olol_tui.render.tiles import GLYPHS, Resident, Tile, TileKey


@dataclass(frozen=True, slots=True)
class Columns:
    """Widths of the list for one terminal width."""

    label: int
    history: int
    bar: int
    models: int
    wide: bool
    """Room for the columns REQ and AGE."""


def columns_for(tiles: tuple[Tile, ...], width: int) -> Columns:
    """Every column keeps its width while the fleet keeps its names: nothing jumps."""
    label = min(max((cells(t.label) for t in tiles), default=8), 22 if width >= 100 else 14)
    wide = width >= 100
    history = 24 if wide else 12
    bar_width = 8 if wide else 5
    # mark, glyph, label, util, history, bar, used, temp, power and the gaps between them
    fixed = 4 + label + 6 + 2 + history + 2 + bar_width + 6 + 6 + 7 + 2
    if wide:
        fixed += 5 + 6 + 1
    return Columns(label, history, bar_width, max(6, width - fixed), wide)


def header(columns: Columns, width: int, palettes: Palettes) -> Line:
    palette = palettes.base
    muted = palette.muted
    row = Row(width, palette.base).gap(4).put("GPU", muted, columns.label)
    row.put("UTIL", muted, 6, ">").gap(2)
    row.put(f"last {columns.history}s", muted, columns.history).gap(2)
    row.put("VRAM", muted, columns.bar + 6).put("TEMP", muted, 6, ">").put("POWER", muted, 7, ">")
    row.gap(2).put("MODELS", muted, columns.models)
    if columns.wide:
        row.put("REQ", muted, 5, ">").put("AGE", muted, 6, ">")
    return row.end()


def _resident_words(resident: Resident) -> str:
    name = short_model(resident.name)
    if resident.loading:
        progress = resident.progress
        return f"▒{'' if progress is None else percent(100 * progress)} {name}"
    return f"{name} P" if resident.pinned else name


def draw_row(
    tile: Tile,
    history: DeviceHistory,
    columns: Columns,
    width: int,
    palettes: Palettes,
    *,
    cursor: bool,
    target: bool,
) -> Line:
    """One device in one line."""
    palette = palettes.cursor if cursor or target else palettes.base
    if tile.dimmed and not cursor:
        palette = palettes.dim
    live = palettes.cursor if cursor or target else palettes.base
    device = tile.device
    row = Row(width, palette.base)
    row.raw("▶" if cursor else " ", 1, live.loading if target else live.strong).gap()
    row.raw(GLYPHS[tile.state], 1, live.state(tile.state)).gap()
    row.put(tile.label, palette.bright if cursor else palette.base, columns.label)
    if device is None:
        row.gap(2).put(tile.note or tile.node.kind, live.state(tile.state), row.left - 8)
        return row.to(width - 6).put(age(tile.node.age_s), palette.muted, 5, ">").end()
    # Figures are ASCII and narrower than their column: no need to measure them.
    row.raw(percent(device.util_percent).rjust(6), 6, palette.bright).gap(2)
    glyphs = spark(history.util.tail(columns.history), columns.history)
    row.raw(glyphs, columns.history, palette.util).gap(2)
    full, empty = bar(tile.used_fraction, columns.bar)
    row.raw(full, len(full), palette.vram).raw(empty, len(empty), palette.empty)
    row.raw(size(device.used_bytes).rjust(6), 6, value_style(tile, "vram", palette))
    row.raw(celsius(device.temp_c).rjust(6), 6, value_style(tile, "temp", palette))
    row.raw(watts(device.power_w).rjust(7), 7, palette.base).gap(2)
    _models(row, tile, columns.models, palettes, cursor=cursor or target)
    if not columns.wide:
        return row.end()
    requests = str(tile.requests)
    row.raw(requests.rjust(5), 5, palette.base if tile.requests else palette.faint)
    return row.put(age(tile.node.age_s), live.stale if tile.dimmed else palette.muted, 6, ">").end()


def _models(row: Row, tile: Tile, width: int, palettes: Palettes, *, cursor: bool) -> None:
    """The models, or what is wrong where that matters more."""
    palette = palettes.cursor if cursor else palettes.base
    if tile.note and (tile.state in ("lost", "crit") or not tile.residents):
        row.put(tile.note, palette.state(tile.state), width)
        return
    if not tile.residents:
        row.put("-", palette.faint, width)
        return
    # What is on its way comes first: it is the news.
    start, residents = row.used, sorted(tile.residents, key=lambda r: not r.loading)
    for index, resident in enumerate(residents):
        words = _resident_words(resident)
        more = f" +{len(residents) - index}"
        rest = 0 if index == len(residents) - 1 else len(more)
        room = width - (row.used - start) - bool(index)
        if index and cells(words) + rest > room:
            row.put(more, palette.muted)
            break
        row.gap(1 if index else 0)
        style = palette.loading if resident.loading else palette.base
        row.put(words, style, min(cells(words), room - rest))
    row.to(start + width)


def draw_dense(
    tiles: tuple[Tile, ...],
    first: int,
    rows: int,
    histories: dict[TileKey, DeviceHistory],
    palettes: Palettes,
    width: int,
    *,
    cursor: TileKey | None,
    target: TileKey | None = None,
) -> Frame:
    """A header and `rows - 1` devices from `first` on."""
    columns = columns_for(tiles, width)
    frame = Frame([header(columns, width, palettes)])
    for index in range(first, min(len(tiles), first + rows - 1)):
        tile = tiles[index]
        frame.hits.append(Hit(0, len(frame.lines), width, 1, "cursor", str(index)))
        frame.lines.append(
            draw_row(
                tile,
                histories[tile.key],
                columns,
                width,
                palettes,
                cursor=tile.key == cursor,
                target=tile.key == target,
            )
        )
    return frame
