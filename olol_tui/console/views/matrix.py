"""Screen 2: models × devices. Keys edit a plan; `a` applies it as commands."""

from __future__ import annotations

from textual.events import Key

from olol_tui.console.dialogs.ask import CANCEL, Answer, Ask
from olol_tui.console.dialogs.sheet import Sheet
from olol_tui.console.staged import Change, Kind, Staged
from olol_tui.console.views import split_actions
from olol_tui.console.views.base import Host
from olol_tui.console.views.rows import RowsView
from olol_tui.render.box import facts
from olol_tui.render.details import tile_facts
from olol_tui.render.filters import Fields
from olol_tui.render.fit import judge_on
from olol_tui.render.line import Frame, Hit, Line, Row, rule
from olol_tui.render.matrix import (
    HEAD_ROWS,
    WIDE,
    Cell,
    Grid,
    ModelRow,
    draw_matrix,
    foot_rows,
    grid,
    model_rows,
)
from olol_tui.render.palette import Palette
from olol_tui.render.plan import (
    Edit,
    after_plan,
    draw_boxes,
    draw_cell,
    draw_cell_line,
    draw_plan,
    resident_at,
    running_on,
)
from olol_tui.render.scene import Scene
from olol_tui.render.text import clean, count, short_model, size, size_pair
from olol_tui.render.tiles import Tile, TileKey

_STEERING = frozenset({"up", "down", "left", "right", "h", "j", "k", "g", "G", "home", "end"})
"""Keys that keep their meaning while a target is being chosen."""
_BOX_ROWS = 11
_BOX_ROWS_SMALL = 5


def fields_of(model: ModelRow) -> Fields:
    """A model as the filter sees it."""
    return {
        "model": model.name,
        "node": " ".join(sorted(model.nodes)),
        "state": "loaded" if model.replicas else "cold",
        "size": model.size_bytes / 2**30,
        "replicas": model.replicas,
        "queued": model.queued,
        "running": model.running,
    }


class MatrixView(RowsView):
    """Which model is where, and which should be."""

    name = "placement"
    key = "2"
    title = "Placement"
    example = "model, state:loaded, size>20, node:n01"

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self.staged = Staged()
        self._models: list[ModelRow] = []
        self._drawn_for: Scene | None = None
        self._all: list[ModelRow] = []
        self._column: TileKey | None = None
        self._first_column = 0
        self._moving: Cell | None = None

    # -- what is shown --

    def _rows(self) -> list[ModelRow]:
        """Models that pass the filter; worked out once a snapshot."""
        if self._drawn_for is not self.scene:
            self._drawn_for = self.scene
            self._all = model_rows(self.scene.fleet)
            self._forget_what_came_true()
        return [m for m in self._all if not self.filter or self.filter.passes(fields_of(m))]

    def _forget_what_came_true(self) -> None:
        """A planned change whose model or device is gone, or that somebody else has made."""
        names = {m.name for m in self._all}
        gone = frozenset(c for c in self.staged if c.model not in names or not self._stands(c))
        if gone:
            self.staged.drop(gone)
            self.host.say(f"{count(len(gone), 'planned change')} no longer applies")

    def _stands(self, change: Change) -> bool:
        if any(key not in self.scene.by_key for _, key in change.cells):
            return False
        here = resident_at(self.scene, change.model, change.at)
        if change.kind == "place":
            return here is None
        return here is not None

    def _column_index(self) -> int:
        tiles = self.scene.tiles
        return next((i for i, t in enumerate(tiles) if t.key == self._column), 0)

    def current(self) -> tuple[ModelRow, Tile] | None:
        """Model and device under the cursor."""
        model = next((m for m in self._models if m.name == self.cursor), None)
        tiles = self.scene.tiles
        return None if model is None or not tiles else (model, tiles[self._column_index()])

    def draw(self, width: int, height: int) -> Frame:
        self._models = models = self._rows()
        tiles = self.scene.tiles
        p = self.scene.palettes.base
        if not models or not tiles:
            empty = "nothing passes the filter: esc clears it" if self.filter else "no model yet"
            return Frame([Row(width, p.base).gap(2).put(empty, p.muted).end()])
        wide = width >= WIDE
        box_rows = _BOX_ROWS if wide else _BOX_ROWS_SMALL
        box_rows = 0 if height < box_rows + 8 else box_rows
        rows = max(1, height - HEAD_ROWS - foot_rows(wide=wide) - box_rows)
        rows = min(rows, len(models)) if wide else rows
        first = self.place_cursor([m.name for m in models], rows)
        layout = self._layout(width)
        here = self.current()
        assert here is not None
        frame = draw_matrix(
            self.scene,
            models,
            first,
            rows,
            tiles,
            layout,
            width,
            cursor=(here[0].name, here[1].key),
            marks=self.staged.marks(),
        )
        if box_rows:
            frame.add(self._boxes(here, width, height - len(frame.lines), p, wide=wide))
        return frame

    def _layout(self, width: int) -> Grid:
        layout = grid(
            self._models, self.scene.tiles, self._column_index(), self._first_column, width
        )
        self._first_column = layout.first
        return layout

    def _boxes(
        self, here: tuple[ModelRow, Tile], width: int, height: int, p: Palette, *, wide: bool
    ) -> Frame:
        model, tile = here
        edits = self._edits()
        if wide:
            inner = width // 2 - 4
            plan = draw_plan(self.scene, edits, inner, height - 2, p)
            cell = draw_cell(self.scene, model, tile, width - width // 2 - 4, height - 2, p)
            planned = count(len(self.staged), "change")
            title = f"Plan: {planned}, not applied" if len(self.staged) else "Plan"
            subject = f"{clean(short_model(model.name))} × {clean(tile.label)}"
            return draw_boxes((title, plan), (subject, cell), width, height, p)
        inner = width - 2
        lines = [rule(width, p.faint)]
        found = draw_cell_line(self.scene, model, tile, inner, p)
        if edits:
            found += draw_plan(self.scene, edits, inner, height - 1 - len(found), p)
        lines.extend([*Row(2, p.base).end(), *line] for line in found)
        return Frame(lines[:height])

    def _edits(self) -> list[Edit]:
        """Both ends of every planned change."""
        edits: list[Edit] = []
        for change in self.staged:
            if change.kind == "place":
                edits.append(Edit("+", change.model, change.at))
            elif change.kind in ("unload", "move"):
                if change.to is not None:
                    edits.append(Edit("+", change.model, change.to))
                edits.append(Edit("-", change.model, change.at))
            else:
                edits.append(Edit("P" if change.kind == "pin" else "p", change.model, change.at))
        return edits

    def crumbs(self) -> str:
        words = [f"/{self.filter.text}" if self.filter else "all"]
        total = f" of {len(self._all)}" if len(self._models) != len(self._all) else ""
        words.append(f"{len(self._models)}{total} × {len(self.scene.tiles)}")
        if len(self.staged):
            words.append(f"plan {len(self.staged)}")
        return " · ".join(words)

    def prompt(self, width: int) -> Line | None:
        """The status line while the target of a move is being chosen."""
        if self._moving is None:
            return super().prompt(width)
        p = self.scene.palettes.base
        row = Row(width, p.base).gap().put("▒ move ", p.loading).put(self._moving[0], p.bright)
        here = self.current()
        if here is not None and here[1].key != self._moving[1]:
            fit = judge_on(self._moving[0], here[1], self.scene.fleet)
            row.put(f" → {clean(here[1].label)} ", p.strong)
            row.put(f"{fit.words}  ", p.ok if fit.verdict == "fits" else p.warn)
        else:
            row.put("  ← → choose the device, ", p.muted)
        return row.put("enter drops, esc cancels", p.muted).end()

    # -- keys --

    def intercept(self, key: Key) -> bool:
        if self._moving is None:
            return super().intercept(key)
        if key.key in ("escape", "ctrl+c", "q"):
            self._moving = None
        elif key.key == "enter":
            self._drop()
        elif key.key in _STEERING:
            return False
        self.host.redraw()
        return True

    def can(self, action: str) -> bool:
        if action in ("apply_plan", "discard_plan"):
            return len(self.staged) > 0
        if action == "retry_split":
            return bool(split_actions.failed_splits(self.host))
        here = self.current()
        if action in ("place_model", "move_model", "unload_model", "pin_model"):
            if here is None:
                return False
            resident = resident_at(self.scene, here[0].name, here[1].key) is not None
            return not resident if action == "place_model" else resident
        return super().can(action)

    def do_cursor_left(self) -> None:
        self._step(-1)

    def do_cursor_right(self) -> None:
        self._step(1)

    def _step(self, by: int) -> None:
        tiles = self.scene.tiles
        if tiles:
            index = max(0, min(len(tiles) - 1, self._column_index() + by))
            self._column = tiles[index].key
        self.host.redraw()

    def click(self, hit: Hit, *, double: bool) -> None:
        row, _, column = hit.value.partition(",")
        if column and int(column) < len(self.scene.tiles):
            self._column = self.scene.tiles[int(column)].key
        if self.rows.pick(int(row)):
            if double:
                self.do_describe()
            self.host.redraw()

    def back(self) -> None:
        self.host.redraw()

    # -- the plan --

    def do_place_model(self) -> None:
        here = self.current()
        if here is None:
            return
        model, tile = here
        fit = judge_on(model.name, tile, self.scene.fleet)
        planned = Change("place", model.name, tile.key)
        if planned not in tuple(self.staged) and not fit.possible:
            self.host.say(fit.reason, severity="warning")
            return
        self._toggle(planned)

    def do_retry_split(self) -> None:
        split_actions.retry(self.host)

    def do_unload_model(self) -> None:
        self._toggle_resident("unload")

    def do_pin_model(self) -> None:
        here = self.current()
        found = None if here is None else resident_at(self.scene, here[0].name, here[1].key)
        self._toggle_resident("unpin" if found is not None and found.pinned else "pin")

    def _toggle_resident(self, kind: Kind) -> None:
        here = self.current()
        if here is None:
            return
        model, tile = here
        if resident_at(self.scene, model.name, tile.key) is None:
            words = f"{clean(model.name)} is not on {clean(tile.label)}: p places it there"
            self.host.say(words, severity="warning")
            return
        if kind == "unload" or not self._is_split(model, tile):
            self._toggle(Change(kind, model.name, tile.key))

    def _is_split(self, model: ModelRow, tile: Tile) -> bool:
        """Says so when only a part of the model is here: its devices are planned as a whole."""
        resident = resident_at(self.scene, model.name, tile.key)
        if resident is None or not resident.of_layers:
            return False
        words = f"{clean(model.name)} is split over several devices: it is planned as a whole"
        self.host.say(words, severity="warning")
        return True

    def do_move_model(self) -> None:
        here = self.current()
        if here is None:
            return
        model, tile = here
        resident = resident_at(self.scene, model.name, tile.key)
        if resident is None or resident.loading:
            words = f"{clean(model.name)} is not loaded on {clean(tile.label)}"
            self.host.say(words, severity="warning")
        elif self._is_split(model, tile):
            return
        elif len(self.scene.tiles) < 2:
            self.host.say("there is no other device to move to", severity="warning")
        else:
            self._moving = (model.name, tile.key)
            self.host.redraw()

    def _drop(self) -> None:
        here = self.current()
        if self._moving is None or here is None or here[1].key == self._moving[1]:
            return
        name, source = self._moving
        fit = judge_on(name, here[1], self.scene.fleet)
        if not fit.possible:
            self.host.say(fit.reason, severity="warning")
            return
        self._moving = None
        self._toggle(Change("move", name, source, here[1].key))

    def _toggle(self, change: Change) -> None:
        self.staged.toggle(change)
        self.host.redraw()

    def do_undo_change(self) -> None:
        if not self.staged.undo():
            self.host.say("nothing to undo", severity="warning")
        self.host.redraw()

    def do_discard_plan(self) -> None:
        self.staged.discard()
        self.host.redraw()

    def do_apply_plan(self) -> None:
        """Ask with every edit and the memory after it; the answer becomes commands."""
        if not len(self.staged):
            self.host.say("nothing is planned", severity="warning")
            return
        edits = self._edits()
        text = [("bright", f"Apply {count(len(self.staged), 'change')}?")]
        text += self._warnings(edits)
        pinned = [
            c.model
            for c in self.staged
            if c.kind == "unload"
            and (found := resident_at(self.scene, c.model, c.at)) is not None
            and found.pinned
        ]
        careful = len(text) > 1
        dialog = Ask(
            self.host,
            "Apply the plan",
            text,
            [Answer("yes", "Apply")],
            danger=careful,
            focus=CANCEL if careful else "yes",
            type_first=clean(pinned[0]) if pinned else "",
            body=lambda width, p: draw_plan(self.scene, edits, width, 14, p),
        )
        self.host.ask(dialog, lambda _: self._apply())

    def _warnings(self, edits: list[Edit]) -> list[tuple[str, str]]:
        found: list[tuple[str, str]] = []
        for edit in edits:
            tile = self.scene.by_key.get(edit.key)
            if tile is None or edit.sign != "-":
                continue
            if running := running_on(self.scene, edit.model, tile):
                words = f"▲ {count(running, 'request')} of {edit.model} on {tile.label}"
                found.append(("warn", f"{words}: ended by an unload, waited for by a move"))
            resident = resident_at(self.scene, edit.model, edit.key)
            if resident is not None and resident.pinned:
                found.append(("warn", f"▲ {edit.model} on {tile.label} is pinned: the pin goes"))
        for key in dict.fromkeys(edit.key for edit in edits if edit.sign == "+"):
            tile, after = self.scene.by_key.get(key), after_plan(self.scene, edits, key)
            total = None if tile is None or tile.device is None else tile.device.vram_bytes
            if tile is not None and after is not None and total is not None and after > total:
                words = f"▲ {tile.label} would need {size_pair(after, total)}"
                found.append(("warn", f"{words}: {size(after - total)} of idle models must go"))
        return found

    def _apply(self) -> None:
        commands = self.staged.commands()
        self.staged.applied()
        self.host.submit(*commands)
        self.host.redraw()

    # -- looking --

    def do_describe(self) -> None:
        here = self.current()
        if here is None:
            return
        key = here[1].key
        shown = here[1]

        def content(width: int, p: Palette) -> list[Line]:
            return facts(tile_facts(self.scene.by_key.get(key, shown), self.scene.fleet), width, p)

        self.host.ask(Sheet(self.host, shown.label, content), lambda _: None)

    def do_open_log(self) -> None:
        here = self.current()
        if here is not None:
            engines = here[1].engines
            self.host.open_log(here[1].node.name, engines[0].id if engines else "")
