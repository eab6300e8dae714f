"""The Placement screen: models down, devices across, what lies where and what is planned.

One cell is one model on one device. A cell says resident, loading, pinned, possible, too big
or absent by its glyph; colour only repeats it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from rich.style import Style

from olol_tui.fleet.snapshot import Fleet, Model
from olol_tui.models.names import canonical
from olol_tui.placement.fit import estimate
from olol_tui.render.charts import level, spark
from olol_tui.render.fit import DEFAULT_CTX
from olol_tui.render.line import Frame, Hit, Line, Row, blank
from olol_tui.render.palette import Palette
from olol_tui.render.scene import Scene
from olol_tui.render.text import cells, short_model, size
from olol_tui.render.tiles import Resident, Tile, TileKey

WIDE = 100
"""From this width on cells have room for a figure beside their glyph."""
HEAD_ROWS = 2
_NAME_CELLS = (14, 28)
_NODE_GAP = 1
_LARGE_BYTES = 100 * 2**30
_TITLE_CELLS = 10
"""Of a node's name, what its devices make room for."""

Cell = tuple[str, TileKey]
"""Canonical model name and device."""


@dataclass(frozen=True, slots=True)
class ModelRow:
    """One line of the matrix."""

    name: str
    """Canonical."""
    size_bytes: int
    """Of the weights, 0 where no store says."""
    need_bytes: int
    """Memory to run one slot of it, as measured or estimated."""
    nodes: frozenset[str]
    """Whose library has it."""
    replicas: int
    queued: int
    running: int


def model_rows(fleet: Fleet) -> list[ModelRow]:
    """Every model that some node has or some engine holds, by name."""
    entries: dict[str, Model] = {}
    homes: dict[str, set[str]] = {}
    replicas: dict[str, int] = {}
    measured: dict[str, int] = {}
    for node in fleet.nodes:
        for model in node.library:
            name = canonical(model.name)
            entries.setdefault(name, model)
            homes.setdefault(name, set()).add(node.name)
        for engine in node.engines:
            for loaded in engine.loaded:
                name = canonical(loaded.name)
                replicas[name] = replicas.get(name, 0) + 1
                taken = loaded.size_bytes or loaded.vram_bytes
                measured[name] = max(measured.get(name, 0), taken)
            for loading in engine.loading:
                replicas.setdefault(canonical(loading.name), 0)
    for split in fleet.splits:
        name = canonical(split.model)
        replicas[name] = replicas.get(name, 0) + (split.state == "ready")
    loads = {canonical(load.model): load for load in fleet.gateway.models}
    rows: list[ModelRow] = []
    for name in sorted(entries.keys() | replicas.keys()):
        model = entries.get(name, Model(name))
        known = measured.get(name) or None
        need = estimate(model, num_ctx=DEFAULT_CTX, slots=1, measured_bytes=known)
        load = loads.get(name)
        rows.append(
            ModelRow(
                name=name,
                size_bytes=model.size_bytes,
                need_bytes=need.total_bytes,
                nodes=frozenset(homes.get(name, ())),
                replicas=replicas.get(name, 0),
                queued=0 if load is None else load.queued,
                running=0 if load is None else load.running,
            )
        )
    return rows


@dataclass(frozen=True, slots=True)
class Grid:
    """Where things stand for one width."""

    name_cells: int
    wide: bool
    cell: int
    first: int
    """Index of the first visible device."""
    shown: int
    """Devices that fit."""

    @property
    def left(self) -> int:
        """Cells before the first device."""
        return 2 + self.name_cells + 1 + 6 + (12 if self.wide else 0) + 1


def grid(
    models: Sequence[ModelRow], tiles: Sequence[Tile], column: int, first: int, width: int
) -> Grid:
    """Lay the matrix out so that the device `column` is visible, moving as little as needed."""
    longest = max((cells(short_model(m.name)) for m in models), default=_NAME_CELLS[0])
    wide = width >= WIDE
    name_cells = max(_NAME_CELLS[0], min(_NAME_CELLS[1] if wide else 20, longest))
    # Three figures of free memory want a blank beside them.
    large = any(((t.device and t.device.vram_bytes) or 0) >= _LARGE_BYTES for t in tiles)
    plain = Grid(name_cells, wide, 5 if wide else 4 if large else 3, 0, 0)
    room = width - plain.left

    def fits(start: int) -> int:
        used = count = 0
        for index in range(start, len(tiles)):
            used += plain.cell + _gap(tiles, start, index, plain.cell)
            if used > room:
                break
            count += 1
        return max(1, count)

    first = max(0, min(first, column))
    while column >= first + fits(first):
        first += 1
    while first > 0 and first - 1 + fits(first - 1) >= len(tiles):
        first -= 1
    return Grid(name_cells, wide, plain.cell, first, min(fits(first), len(tiles) - first))


def _title_cells(name: str, devices: int, cell: int) -> int:
    """Above a node's visible devices; more than they take where one device is too narrow."""
    return max(cell * devices - 1, min(_TITLE_CELLS, cells(name)))


def _gap(tiles: Sequence[Tile], first: int, index: int, cell: int) -> int:
    """Cells before a device: nodes stand apart, by as much as the name of the one before needs.

    Args:
        first: index of the first visible device.
    """
    if index <= first or tiles[index].node.name == tiles[index - 1].node.name:
        return 0
    name, start = tiles[index - 1].node.name, index - 1
    while start > first and tiles[start - 1].node.name == name:
        start -= 1
    devices = index - start
    return _NODE_GAP + _title_cells(name, devices, cell) - (cell * devices - 1)


def draw_matrix(
    scene: Scene,
    models: Sequence[ModelRow],
    first: int,
    rows: int,
    tiles: Sequence[Tile],
    layout: Grid,
    width: int,
    *,
    cursor: Cell | None,
    marks: Mapping[Cell, str],
) -> Frame:
    """Heads, `rows` models from `first` on, and the devices' memory, load and heat below."""
    p = scene.palettes.base
    shown = tiles[layout.first : layout.first + layout.shown]
    held = _held(shown)
    frame = Frame(
        [_node_line(shown, layout, width, p), _head_line(shown, layout, width, p, cursor)]
    )
    for place, model in enumerate(models[first : first + rows], first):
        here = cursor is not None and cursor[0] == model.name
        q = scene.palettes.cursor if here else p
        row = Row(width, q.base).put("▶" if here else " ", q.accent, 1).gap()
        row.put(
            short_model(model.name), q.bright if model.replicas else q.base, layout.name_cells
        ).gap()
        row.put(size(model.size_bytes or None), q.muted, 6, ">").gap()
        if layout.wide:
            row.put(_replicas(model, marks), q.base if model.replicas else q.faint, 5, ">").gap()
            row.put(str(model.queued or "-"), q.warn if model.queued else q.faint, 5, ">")
        y = len(frame.lines)
        link = _link(model.name, shown, held)
        for index, tile in _across(row, shown, layout, link, q.ok):
            cell = (model.name, tile.key)
            text, style = _content(model, tile, held.get(cell), marks.get(cell, ""), q)
            if index in link:
                text, style = _linked(text, index, link, layout.cell), q.ok
            if cell == cursor:
                text, style = f"{text:^{layout.cell}}", scene.palettes.base.chip
            at = layout.first + index
            frame.hits.append(Hit(row.used, y, layout.cell, 1, "cursor", f"{place},{at}"))
            row.put(text, style, layout.cell, "^")
        frame.lines.append(row.end())
    frame.lines.extend(_foot(scene, shown, layout, width))
    return frame


def foot_rows(*, wide: bool) -> int:
    """Lines below the models."""
    return 4 if wide else 1


def _held(tiles: Sequence[Tile]) -> dict[Cell, Resident]:
    return {(canonical(r.name), tile.key): r for tile in tiles for r in tile.residents}


def _across(
    row: Row,
    shown: Sequence[Tile],
    layout: Grid,
    link: range = range(0),
    style: Style | None = None,
) -> Iterator[tuple[int, Tile]]:
    """Bring the row to each device's place in turn; nodes stand a little apart.

    Args:
        link: devices between which a line is drawn, in `style`.
    """
    row.to(layout.left)
    for index, tile in enumerate(shown):
        if gap := _gap(shown, 0, index, layout.cell):
            if style is not None and index in link and index - 1 in link:
                row.raw("─" * gap, gap, style)
            else:
                row.gap(gap)
        yield index, tile


def _link(model: str, shown: Sequence[Tile], held: Mapping[Cell, Resident]) -> range:
    """From the first to the last device of a split among those that are shown."""
    parts = [
        index
        for index, tile in enumerate(shown)
        if (one := held.get((model, tile.key))) is not None and one.of_layers
    ]
    return range(parts[0], parts[-1] + 1) if parts else range(0)


def _linked(text: str, index: int, link: range, width: int) -> str:
    """A cell of a split, joined to its neighbours; cells between its devices are the line."""
    if text in ("", "·", "×"):
        return "─" * width
    space = max(0, width - cells(text))
    left = ("─" if index > link.start else " ") * (space // 2)
    return f"{left}{text}{('─' if index < link.stop - 1 else ' ') * (space - space // 2)}"


def _node_line(shown: Sequence[Tile], layout: Grid, width: int, p: Palette) -> Line:
    row = Row(width, p.base).to(layout.left)
    for number, (name, group) in enumerate(groupby(shown, key=lambda tile: tile.node.name)):
        row.gap(_NODE_GAP if number else 0)
        room = _title_cells(name, len(list(group)), layout.cell)
        title = f"─ {name} " if room > cells(name) + 3 else name
        row.put(title, p.muted, min(room, cells(title)))
        rest = max(0, room - cells(title))
        row.raw("─" * rest, rest, p.faint).gap()
    return row.end()


def _head_line(
    shown: Sequence[Tile], layout: Grid, width: int, p: Palette, cursor: Cell | None
) -> Line:
    row = Row(width, p.base).gap(2).put("MODEL", p.muted, layout.name_cells).gap()
    row.put("SIZE", p.muted, 6, ">").gap()
    if layout.wide:
        row.put("REPL", p.muted, 5, ">").gap().put("QUEUE", p.muted, 5, ">")
    for _, tile in _across(row, shown, layout):
        under = cursor is not None and cursor[1] == tile.key
        style = p.strong if under else p.state(tile.state) if tile.note else p.muted
        row.put(_short(tile, layout), style, layout.cell, "^")
    return row.end()


def _short(tile: Tile, layout: Grid) -> str:
    """`gpu3`, or `g3` where cells are narrow."""
    label = tile.label.rsplit("/", 1)[-1]
    return label if layout.wide or not label.startswith("gpu") else f"g{label[3:]}"


def _replicas(model: ModelRow, marks: Mapping[Cell, str]) -> str:
    """Replicas now, and after the plan where that differs."""
    signs = {"[+]": 1, "[-]": -1}
    change = sum(signs.get(mark, 0) for (name, _), mark in marks.items() if name == model.name)
    if change:
        return f"{model.replicas}→{max(0, model.replicas + change)}"
    return str(model.replicas or "-")


def _content(
    model: ModelRow, tile: Tile, resident: Resident | None, mark: str, p: Palette
) -> tuple[str, Style]:
    """A cell's text and style."""
    if mark:
        return mark, p.warn if mark == "[-]" else p.accent
    if resident is not None and resident.of_layers:
        glyph = "▒" if resident.loading else "◆" if resident.is_head else ""
        return f"{glyph}{resident.layers}", p.loading if resident.loading else p.ok
    if resident is not None:
        if resident.loading:
            done = "" if resident.progress is None else f"{100 * resident.progress:.0f}"
            return f"▒{done}", p.loading
        style = p.stale if tile.dimmed else p.warn if resident.spilled else p.ok
        return ("■P", p.pinned) if resident.pinned else ("■", style)
    if tile.node.name not in model.nodes:
        return "", p.faint
    total = None if tile.device is None else tile.device.vram_bytes
    if total is not None and model.need_bytes > total:
        return "×", p.faint
    return "·", p.faint if tile.state in ("lost", "crit", "cordoned") else p.muted


def _foot(scene: Scene, shown: Sequence[Tile], layout: Grid, width: int) -> list[Line]:
    """Free memory of every device, and on wide screens its load and temperature."""
    p = scene.palettes.base

    def line(title: str, value: Callable[[Tile], tuple[str, Style]]) -> Line:
        row = Row(width, p.base).gap(2).put(title, p.muted)
        for _, tile in _across(row, shown, layout):
            text, style = value(tile)
            wide = layout.cell - 1 if layout.wide else layout.cell
            row.put(text, p.stale if tile.dimmed else style, wide, ">")
            row.gap(layout.cell - wide)
        return row.end()

    if not layout.wide:
        return [line("free GiB", lambda t: (_whole_gib(t), p.vram))]
    return [
        blank(width, p.base),
        line("FREE", lambda t: (_free(t), p.vram)),
        line("UTIL", lambda t: (_util(t), p.util)),
        line("TEMP", lambda t: (_temp(t), p.temp)),
    ]


def _free(tile: Tile) -> str:
    return "-" if tile.device is None else size(tile.device.free_bytes)


def _whole_gib(tile: Tile) -> str:
    """For cells without room for a fraction."""
    free = None if tile.device is None else tile.device.free_bytes
    return "-" if free is None else f"{free >> 30}" if free >> 30 else "<1" if free else "0"


def _util(tile: Tile) -> str:
    util = None if tile.device is None else tile.device.util_percent
    return "-" if util is None else spark(bytes([level(util / 100)]), 1) * 2


def _temp(tile: Tile) -> str:
    temp = None if tile.device is None else tile.device.temp_c
    return "-" if temp is None else f"{temp:.0f}"
