"""Placing, moving, unloading and pinning on the Fleet screen: from a key to a command.

Every change goes through a question that shows memory before and after; the answer
becomes one Command. Nothing here changes the fleet by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from textual.events import Key

from olol_tui.console.dialogs.ask import CANCEL, Answer, Ask
from olol_tui.console.dialogs.picker import Item, Picker
from olol_tui.console.dialogs.sheet import Sheet
from olol_tui.fleet.commands import Move, Place, SetPin, Unload
from olol_tui.models.names import canonical
from olol_tui.render.box import facts, memory_change, paragraph, place_row
from olol_tui.render.details import tile_facts
from olol_tui.render.fit import Fit, find_model, judge_on
from olol_tui.render.line import Line, Row, blank
from olol_tui.render.palette import Palette
from olol_tui.render.panes import resident_row
from olol_tui.render.plan import running_on
from olol_tui.render.text import cells, clean, size, size_pair
from olol_tui.render.tiles import Resident, Tile, TileKey

_STEERING = frozenset(
    {"up", "down", "left", "right", "h", "j", "k", "g", "G"}
    | {"home", "end", "pageup", "pagedown", "v"}
)
"""Keys that keep their meaning while a target is being chosen."""

if TYPE_CHECKING:
    from olol_tui.console.views.fleet import FleetView


class Placement:
    """What the placement keys do for the tile under the Fleet screen's cursor."""

    def __init__(self, view: FleetView) -> None:
        self._view = view
        self._host = view.host
        self._moving: tuple[TileKey, str] | None = None
        """Source tile and model, while the target is being chosen."""

    @property
    def moving(self) -> bool:
        return self._moving is not None

    def can(self, action: str) -> bool:
        tile = self._view.current()
        if tile is None:
            return False
        return action == "place_model" or bool(tile.residents)

    # -- place --

    def place(self) -> None:
        tile = self._view.current()
        if tile is None:
            return
        if tile.device is None:
            self._host.say(f"{tile.label} shows no device to place on", severity="warning")
            return
        key = tile.key

        def items() -> Sequence[Item]:
            here = self._view.scene.by_key.get(key)
            if here is None:
                return []
            return [self._place_item(model.name, here) for model in here.node.library]

        def heading(width: int, p: Palette) -> Line:
            row = Row(width, p.base).put("MODEL", p.muted, _name_width(tile)).gap()
            row.put("NEEDS", p.muted, 6, ">").gap(2).put("KIND", p.muted, 15)
            return row.put(f"  {tile.memory_word.upper()} AFTER", p.muted).end()

        def detail(name: str, width: int, p: Palette) -> list[Line]:
            here = self._view.scene.by_key.get(key, tile)
            fit = judge_on(name, here, self._view.scene.fleet)
            lines = paragraph(fit.reason, width, p, "muted")[:2]
            lines.extend(blank(width, p.base) for _ in range(2 - len(lines)))
            return [*lines, *memory_change(fit, tile.memory_word, width, p)]

        free = tile.device.free_bytes
        words = "" if free is None else f", {size(free)} of {size(tile.device.vram_bytes)} free"
        picker = Picker(
            self._host,
            f"Place a model on {clean(tile.label)}{words}",
            items,
            heading=heading,
            detail=detail,
            empty=f"the library of {clean(tile.node.name)} is empty",
        )
        self._host.ask(picker, lambda name: self._confirm_place(key, name))

    def _place_item(self, name: str, tile: Tile) -> Item:
        fit = judge_on(name, tile, self._view.scene.fleet)
        model = find_model(tile, name)
        kind = "" if model is None else f"{model.parameter_size} {model.quantization}".strip()
        width = _name_width(tile)

        def draw(line_width: int, p: Palette) -> Line:
            return place_row(name, kind, fit, line_width, width, p)

        refusal = "" if fit.possible else fit.reason
        return Item(name, f"{name} {kind}", draw, refusal)

    def _confirm_place(self, key: TileKey, name: str) -> None:
        tile = self._view.scene.by_key.get(key)
        if tile is None:
            return
        fit = judge_on(name, tile, self._view.scene.fleet)
        command = Place(model=name, node=key[0], device=key[1])
        self._confirm(
            title="Place a model",
            question=f"Load {clean(name)} on {clean(tile.label)}?",
            answer="Load",
            fit=fit,
            tile=tile,
            then=lambda: self._host.submit(command),
        )

    def _confirm(
        self,
        *,
        title: str,
        question: str,
        answer: str,
        fit: Fit,
        tile: Tile,
        then: Callable[[], None],
    ) -> None:
        """Ask with memory before and after; Cancel has focus when a model would be evicted."""
        text = [("bright", question)]
        if fit.verdict in ("evicts", "waits"):
            text.append(("warn", f"▲ {fit.words}"))
        text.append(("muted", fit.reason))
        dialog = Ask(
            self._host,
            title,
            text,
            [Answer("yes", answer)],
            danger=fit.verdict == "evicts",
            focus=CANCEL if fit.verdict == "evicts" else "yes",
            body=lambda width, p: memory_change(fit, tile.memory_word, width, p),
        )
        self._host.ask(dialog, lambda _: then())

    # -- move --

    def move(self) -> None:
        if len([t for t in self._view.scene.tiles if t.device is not None]) < 2:
            self._host.say("there is no other device to move to", severity="warning")
            return
        self._pick_resident("Move which model?", self._start_move, loaded_only=True)

    def _start_move(self, tile: Tile, name: str) -> None:
        self._moving = (tile.key, name)
        self._host.redraw()

    def prompt(self, width: int) -> Line | None:
        """The status line while a target is being chosen."""
        if self._moving is None:
            return None
        p = self._view.scene.palettes.base
        source, name = self._moving
        row = Row(width, p.base).gap().put("▒ ", p.loading).put("move ", p.base)
        row.put(name, p.bright, min(cells(clean(name)), 30)).gap()
        tile = self._view.current()
        if tile is None or tile.key == source:
            row.put("  arrows choose the device, enter drops it, esc cancels", p.muted)
            return row.end()
        fit = judge_on(name, tile, self._view.scene.fleet)
        row.put(f"→ {clean(tile.label)} ", p.strong)
        style = {"fits": p.ok, "evicts": p.warn, "waits": p.warn}.get(fit.verdict, p.crit)
        if fit.verdict == "absent":
            words = f"✕ {clean(tile.node.name)} does not have it"
        else:
            after = (
                "" if fit.after_bytes is None else f" {size_pair(fit.after_bytes, fit.total_bytes)}"
            )
            words = f"{fit.words}{after if fit.possible else ''}"
        row.put(f" {words}  ", style)
        return row.put("enter drops, esc cancels", p.muted).end()

    def intercept(self, key: Key) -> bool:
        """While moving: enter drops, escape ends; the arrows stay the view's own."""
        if self._moving is None:
            return False
        if key.key in ("escape", "ctrl+c", "q"):
            self._moving = None
        elif key.key == "enter":
            self._drop()
        elif key.key in _STEERING:
            return False
        self._host.redraw()
        return True

    def _drop(self) -> None:
        assert self._moving is not None
        (node, device), name = self._moving
        tile = self._view.current()
        if tile is None or tile.key == (node, device):
            return
        fit = judge_on(name, tile, self._view.scene.fleet)
        if not fit.possible or tile.device is None:
            self._host.say(fit.reason, severity="warning")
            return
        self._moving = None
        command = Move(
            model=name, node=node, device=device, to_node=tile.key[0], to_device=tile.key[1]
        )
        source = self._view.scene.by_key.get((node, device))
        origin = clean(source.label if source else node)
        self._confirm(
            title="Move a model",
            question=f"Move {clean(name)} from {origin} to {clean(tile.label)}?",
            answer="Move",
            fit=fit,
            tile=tile,
            then=lambda: self._host.submit(command),
        )

    # -- unload and pin --

    def unload(self) -> None:
        self._pick_resident("Unload which model?", self._confirm_unload)

    def _confirm_unload(self, tile: Tile, name: str) -> None:
        resident = _find(tile, name)
        if resident is None:
            return
        text = [("bright", f"Unload {clean(name)} from {clean(tile.label)}?")]
        if running := running_on(self._view.scene, canonical(name), tile):
            text.append(("warn", f"▲ {running} of its requests run there now"))
        if resident.pinned:
            text.append(("warn", "▲ it is pinned: unloading takes the pin away too"))
        command = Unload(model=name, node=tile.key[0], device=tile.key[1])
        dialog = Ask(
            self._host,
            "Unload a model",
            text,
            [Answer("yes", "Unload")],
            danger=True,
            type_first=clean(name) if resident.pinned else "",
        )
        self._host.ask(dialog, lambda _: self._host.submit(command))

    def pin(self) -> None:
        self._pick_resident("Pin or unpin which model?", self._toggle_pin)

    def _toggle_pin(self, tile: Tile, name: str) -> None:
        resident = _find(tile, name)
        pinned = resident is not None and resident.pinned
        self._host.submit(
            SetPin(model=name, node=tile.key[0], device=tile.key[1], pinned=not pinned)
        )

    # -- looking --

    def describe(self) -> None:
        tile = self._view.current()
        if tile is None:
            return
        key = tile.key

        def content(width: int, p: Palette) -> list[Line]:
            here = self._view.scene.by_key.get(key, tile)
            return facts(tile_facts(here, self._view.scene.fleet), width, p)

        self._host.ask(Sheet(self._host, tile.label, content), lambda _: None)

    def open_log(self) -> None:
        tile = self._view.current()
        if tile is None:
            return
        engines = [e.id for e in tile.engines]
        if len(engines) < 2:
            self._host.open_log(tile.node.name, engines[0] if engines else "")
            return

        def items() -> Sequence[Item]:
            return [_plain_item(e) for e in engines]

        picker = Picker(self._host, f"Log of which engine on {clean(tile.label)}?", items)
        self._host.ask(picker, lambda engine: self._host.open_log(tile.node.name, engine))

    def _pick_resident(
        self, title: str, then: Callable[[Tile, str], None], *, loaded_only: bool = False
    ) -> None:
        """Call `then` with the tile's model, asking which when there are several."""
        tile = self._view.current()
        if tile is None:
            return
        residents = [r for r in tile.residents if not (loaded_only and r.loading)]
        if not residents:
            self._host.say(f"nothing is loaded on {clean(tile.label)}", severity="warning")
            return
        if len(residents) == 1:
            then(tile, residents[0].name)
            return

        def items() -> Sequence[Item]:
            return [Item(r.name, r.name, partial(resident_row, r)) for r in residents]

        self._host.ask(Picker(self._host, title, items), lambda name: then(tile, name))


def _name_width(tile: Tile) -> int:
    longest = max((cells(clean(m.name)) for m in tile.node.library), default=12)
    return max(16, min(34, longest))


def _find(tile: Tile, name: str) -> Resident | None:
    return next((r for r in tile.residents if r.name == name), None)


def _plain_item(text: str) -> Item:
    return Item(text, text, lambda width, p: Row(width, p.base).put(text).end())
