"""Screen 4: nodes and engines, with what fails and the last log lines."""

from __future__ import annotations

from olol_tui.console.dialogs.ask import Answer, Ask
from olol_tui.console.dialogs.sheet import Sheet
from olol_tui.console.views.base import Host
from olol_tui.console.views.rows import RowsView
from olol_tui.fleet.commands import RestartEngine, SetCordon
from olol_tui.render.box import facts
from olol_tui.render.details import engine_facts
from olol_tui.render.filters import Fields
from olol_tui.render.line import Frame, Line, Row
from olol_tui.render.nodes import Entry, draw_detail, draw_nodes, entries, node_facts
from olol_tui.render.palette import Palette
from olol_tui.render.text import clean

DETAIL_ROWS = 12


def fields_of(entry: Entry) -> Fields:
    """A row as the filter sees it."""
    engine = entry.engine
    return {
        "node": entry.node.name,
        "engine": "" if engine is None else engine.id,
        "kind": entry.node.kind if engine is None else engine.kind,
        "state": entry.node.state if engine is None else engine.state,
        "error": entry.node.error if engine is None else engine.error,
        "model": "" if engine is None else " ".join(x.name for x in engine.loaded),
        "restarts": None if engine is None else engine.restarts,
    }


class NodesView(RowsView):
    name = "nodes"
    key = "4"
    title = "Nodes"

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self._shown: list[Entry] = []

    def current(self) -> Entry | None:
        """The node or engine under the cursor."""
        return next((e for e in self._shown if e.id == self.cursor), None)

    def draw(self, width: int, height: int) -> Frame:
        everything = entries(self.scene.fleet)
        self._shown = [e for e in everything if self.filter.passes(fields_of(e))]
        detail = min(DETAIL_ROWS, height // 2)
        rows = min(max(1, height - detail), max(1, len(self._shown)))
        first = self.place_cursor([e.id for e in self._shown], rows)
        frame = draw_nodes(self.scene, self._shown, first, rows, width, cursor=self.cursor)
        if not self._shown:
            p = self.scene.palettes.base
            words = "nothing passes the filter: esc clears it" if self.filter else "no node yet"
            frame.lines.append(Row(width, p.base).gap(2).put(words, p.muted).end())
        left = height - len(frame.lines)
        frame.lines.extend(draw_detail(self.scene, self.current(), width, left))
        return frame

    def crumbs(self) -> str:
        words = f"/{self.filter.text}" if self.filter else "all"
        return f"{words} · {len(self.scene.fleet.nodes)} nodes"

    def can(self, action: str) -> bool:
        entry = self.current()
        if action == "restart_engine":
            return entry is not None and entry.engine is not None
        return super().can(action)

    def do_describe(self) -> None:
        entry = self.current()
        if entry is None:
            return

        def content(width: int, p: Palette) -> list[Line]:
            now = next((e for e in entries(self.scene.fleet) if e.id == entry.id), entry)
            if now.engine is not None:
                return facts(engine_facts(now.engine, self.scene.fleet), width, p)
            return facts(node_facts(now.node, self.scene.fleet), width, p)

        title = entry.engine.id if entry.engine else entry.node.name
        self.host.ask(Sheet(self.host, clean(title), content), lambda _: None)

    def do_open_log(self) -> None:
        entry = self.current()
        if entry is not None:
            self.host.open_log(entry.node.name, entry.engine.id if entry.engine else "")

    def do_restart_engine(self) -> None:
        entry = self.current()
        if entry is None or entry.engine is None:
            self.host.say("put the cursor on an engine to restart it", severity="warning")
            return
        engine = entry.engine
        running = sum(
            1 for r in self.scene.fleet.requests if r.engine == engine.id and not r.status
        )
        text = [("bright", f"Restart {clean(engine.id)}?")]
        if running:
            text.append(("warn", f"▲ {running} requests run there and will fail"))
        command = RestartEngine(engine=engine.id)
        dialog = Ask(self.host, "Restart an engine", text, [Answer("yes", "Restart")], danger=True)
        self.host.ask(dialog, lambda _: self.host.submit(command))

    def do_cordon_node(self) -> None:
        entry = self.current()
        if entry is None:
            return
        node = entry.node
        command = SetCordon(node=node.name, cordoned=not node.cordoned)
        if node.cordoned:
            text = [("bright", f"Give {clean(node.name)} new work again?")]
            answer = "Uncordon"
        else:
            text = [("bright", f"Give {clean(node.name)} no new work?")]
            text.append(("muted", "What runs there is finished."))
            answer = "Cordon"
        dialog = Ask(self.host, f"{answer} a node", text, [Answer("yes", answer)], danger=True)
        self.host.ask(dialog, lambda _: self.host.submit(command))
