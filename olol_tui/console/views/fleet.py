"""Screen 1: devices, alerts and models, with placement under the cursor."""

from __future__ import annotations

from textual.events import Key

from olol_tui.console.views import split_actions
from olol_tui.console.views.base import Host, View
from olol_tui.console.views.placement import Placement
from olol_tui.render.filters import Fields, Filter
from olol_tui.render.fleet import MODES, Layout, Mode, draw_fleet, plan
from olol_tui.render.line import Frame, Hit, Line, Row
from olol_tui.render.tiles import Tile, TileKey

SORTS: dict[str, tuple[str, str]] = {
    "n": ("name", "fleet order"),
    "u": ("util", "utilisation"),
    "v": ("vram", "memory used"),
    "t": ("temp", "temperature"),
    "w": ("power", "watts"),
    "r": ("req", "requests"),
}
"""Letter after `o`: field of `fields_of` and how it is called."""

SORT_HOLD_S = 2.0

FAULTY = frozenset({"warn", "crit", "lost", "stale"})


def fields_of(tile: Tile) -> Fields:
    """A tile as filter and sort see it."""
    device = tile.device
    fraction = tile.used_fraction
    return {
        "gpu": tile.label,
        "node": tile.node.name,
        "pool": tile.node.pool,
        "name": "" if device is None else device.name,
        "state": tile.state,
        "model": " ".join(r.name for r in tile.residents),
        "note": tile.note,
        "util": None if device is None else device.util_percent,
        "vram": None if fraction is None else 100 * fraction,
        "temp": None if device is None else device.temp_c,
        "power": None if device is None else device.power_w,
        "req": tile.requests,
    }


class FleetView(View):
    name = "fleet"
    key = "1"
    title = "Fleet"

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self.cursor: TileKey | None = None
        self._mode: Mode | None = None
        self._first = 0
        self._layout: Layout | None = None
        self._tiles: tuple[Tile, ...] = ()
        self._sort = "n"
        self._reverse = False
        self._choosing_sort = False
        self._ranked: dict[TileKey, int] = {}
        self._ranked_s = 0.0
        self._faults_only = False
        self._placement = Placement(self)

    # -- what is shown --

    def tiles(self) -> tuple[Tile, ...]:
        """What the filter lets through, sorted; the fleet's own order unless asked."""
        tiles = [
            t
            for t in self.scene.tiles
            if (not self.filter or self.filter.passes(fields_of(t)))
            and (not self._faults_only or t.state in FAULTY)
        ]
        if self._sort != "n":
            rank = self._ranks()
            tiles.sort(key=lambda t: rank.get(t.key, len(rank)))
        elif self._reverse:
            tiles.reverse()
        return tuple(tiles)

    def _ranks(self) -> dict[TileKey, int]:
        """Places in the sort order, held for a while so that rows do not jump at every tick."""
        now_s = self.scene.fleet.now_s
        if self._ranked and 0 <= now_s - self._ranked_s < SORT_HOLD_S:
            return self._ranked
        field = SORTS[self._sort][0]

        def value(tile: Tile) -> float:
            found = fields_of(tile)[field]
            return found if isinstance(found, int | float) else -1.0

        ordered = sorted(self.scene.tiles, key=value, reverse=not self._reverse)
        self._ranked = {tile.key: place for place, tile in enumerate(ordered)}
        self._ranked_s = now_s
        return self._ranked

    def current(self) -> Tile | None:
        """The tile under the cursor."""
        return self.scene.by_key.get(self.cursor) if self.cursor else None

    def _index(self) -> int:
        return next((i for i, t in enumerate(self._tiles) if t.key == self.cursor), 0)

    def draw(self, width: int, height: int) -> Frame:
        self._tiles = self.tiles()
        if self._tiles and not any(t.key == self.cursor for t in self._tiles):
            self.cursor = self._tiles[0].key
            self._first = 0
        layout = self._layout = plan(self.scene, len(self._tiles), width, height, self._wanted())
        self.page = layout.rows * layout.columns
        row = self._index() // layout.columns
        total = -(-len(self._tiles) // layout.columns)
        self._first = max(0, min(self._first, total - layout.rows))
        if row < self._first:
            self._first = row
        elif row >= self._first + layout.rows:
            self._first = row - layout.rows + 1
        return draw_fleet(
            self.scene,
            self._tiles,
            layout,
            self._first,
            width,
            height,
            cursor=self.cursor,
            target=self.cursor if self._placement.moving else None,
            empty="nothing passes the filter: esc clears it"
            if self.scene.tiles
            else "no node yet: is the agent starting?",
        )

    def _wanted(self) -> Mode | None:
        """The mode asked for; a filter does not change the mode that the whole fleet has."""
        filtered = len(self._tiles) < len(self.scene.tiles)
        if self._mode is None and filtered and self._layout is not None:
            return self._layout.mode
        return self._mode

    def crumbs(self) -> str:
        layout = self._layout
        mode = layout.mode if layout else "list"
        shown = self._tiles
        total = len(self.scene.tiles)
        words = [f"/{self.filter.text}" if self.filter else "all"]
        if self._faults_only:
            words.append("faults only")
        words.append(mode)
        if len(shown) != total:
            words.append(f"{len(shown)} of {total}")
        elif layout and layout.rows * layout.columns < total:
            first = self._first * layout.columns
            last = min(total, first + layout.rows * layout.columns)
            words.append(f"{first + 1}-{last} of {total}")
        if self._sort != "n" or self._reverse:
            words.append(f"by {SORTS[self._sort][0]}{'↑' if self._reverse else '↓'}")
        return " · ".join(words)

    def prompt(self, width: int) -> Line | None:
        if self._choosing_sort:
            p = self.scene.palettes.base
            row = Row(width, p.base).gap().put("sort by ", p.muted)
            for letter, (_, words) in SORTS.items():
                row.put(f" {letter} ", p.strong).put(f"{words} ", p.base)
            return row.put("  again reverses", p.faint).end()
        return self._placement.prompt(width) or super().prompt(width)

    # -- keys --

    def intercept(self, key: Key) -> bool:
        if self._choosing_sort:
            self._choosing_sort = False
            letter = key.character or ""
            if letter in SORTS:
                self._reverse = not self._reverse if letter == self._sort else False
                self._sort = letter
                self._ranked = {}
            self.host.redraw()
            return True
        return self._placement.intercept(key) or super().intercept(key)

    def can(self, action: str) -> bool:
        if action in ("place_model", "move_model", "unload_model", "pin_model"):
            return self._placement.can(action)
        if action == "retry_split":
            return bool(split_actions.failed_splits(self.host))
        return super().can(action)

    def _move(self, by: int) -> None:
        if self._tiles:
            index = max(0, min(len(self._tiles) - 1, self._index() + by))
            self.cursor = self._tiles[index].key
        self.host.redraw()

    def _columns(self) -> int:
        return self._layout.columns if self._layout else 1

    def do_cursor_up(self) -> None:
        if self._index() >= self._columns():
            self._move(-self._columns())

    def do_cursor_down(self) -> None:
        if self._index() // self._columns() < (len(self._tiles) - 1) // self._columns():
            self._move(self._columns())

    def do_cursor_left(self) -> None:
        self._move(-1)

    def do_cursor_right(self) -> None:
        self._move(1)

    def do_cursor_first(self) -> None:
        self._move(-len(self._tiles))

    def do_cursor_last(self) -> None:
        self._move(len(self._tiles))

    def do_page_up(self) -> None:
        self._move(-self.page)

    def do_page_down(self) -> None:
        self._move(self.page)

    def do_cycle_view(self) -> None:
        """What fits → graphs → panes → list → what fits."""
        order: list[Mode | None] = [None, *MODES]
        self._mode = order[(order.index(self._mode) + 1) % len(order)]
        self._first = 0
        self.host.redraw()

    def do_sort_rows(self) -> None:
        self._choosing_sort = True
        self.host.redraw()

    def do_show_faults(self) -> None:
        self._faults_only = not self._faults_only
        self.host.redraw()

    def back(self) -> None:
        self._faults_only = False
        self._mode = None
        self.host.redraw()

    def do_open_log(self) -> None:
        self._placement.open_log()

    def do_describe(self) -> None:
        self._placement.describe()

    def do_place_model(self) -> None:
        self._placement.place()

    def do_move_model(self) -> None:
        self._placement.move()

    def do_unload_model(self) -> None:
        self._placement.unload()

    def do_pin_model(self) -> None:
        self._placement.pin()

    def do_retry_split(self) -> None:
        split_actions.retry(self.host)

    def click(self, hit: Hit, *, double: bool) -> None:
        index = int(hit.value)
        if index < len(self._tiles):
            self.cursor = self._tiles[index].key
            if double:
                self.do_describe()
            self.host.redraw()

    def scroll(self, rows: int) -> None:
        layout = self._layout
        if layout is None or layout.mode == "hero":
            return
        step = layout.columns * (1 if layout.mode == "panes" else abs(rows))
        self._move(step if rows > 0 else -step)

    def _set_filter(self, new: Filter) -> None:
        super()._set_filter(new)
        self._first = 0
