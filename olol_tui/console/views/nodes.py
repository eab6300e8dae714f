"""Screen 4: nodes, and what the one under the cursor is made of and goes through."""

from __future__ import annotations

from collections.abc import Callable

from olol_tui.console.dialogs.sheet import Sheet
from olol_tui.console.views.base import Host
from olol_tui.console.views.node_actions import NodeActions
from olol_tui.console.views.rows import RowCursor, RowsView
from olol_tui.fleet.snapshot import Device, Engine, Node
from olol_tui.render.box import facts
from olol_tui.render.filters import Fields
from olol_tui.render.line import Frame, Hit, Line, Row, beside
from olol_tui.render.node_detail import (
    DetailLine,
    Part,
    draw_node,
    engines_on,
    parts,
    title_line,
)
from olol_tui.render.node_facts import part_facts
from olol_tui.render.nodes import adopted_from, draw_nodes, mean_util, requests_by_node, state_words
from olol_tui.render.palette import Palette
from olol_tui.render.steps import has_failed, is_running
from olol_tui.render.text import clean, count
from olol_tui.render.tiles import is_new

WIDE = 100
"""From this width list and detail stand side by side."""

_REMOTE = frozenset({"provision_node", "uninstall_node", "copy_ssh", "forget_node"})
"""Actions that only a node over SSH knows."""


def fields_of(node: Node, running: int, state: str) -> Fields:
    """A node as the filter sees it."""
    return {
        "node": node.name,
        "host": node.host,
        "pool": node.pool,
        "kind": node.kind,
        "state": state,
        "error": node.error,
        "gpu": " ".join(dict.fromkeys(d.name for d in node.devices)),
        "role": " ".join(dict.fromkeys(d.role for d in node.devices)),
        "engine": " ".join(f"{e.id} {e.state}" for e in node.engines),
        "model": " ".join(x.name for e in node.engines for x in e.loaded),
        "version": node.agent_version,
        "run": running,
        "util": mean_util(node),
    }


class NodesView(RowsView):
    name = "nodes"
    key = "4"
    title = "Nodes"
    example = "name, state:ready, engine:backoff, util>80, !word"

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self._actions = NodeActions(host, host.ask_about_key)
        self._parts = RowCursor()
        """The cursor within a node."""
        self._inside = False
        self._shown: list[Node] = []
        self._wanted = ""
        """A node that was just added: the cursor goes there when it appears."""
        self._top = 0
        """First line of the detail that is on screen."""
        self._top_of = ""

    # -- what is under the cursors --

    def current(self) -> Node | None:
        """The node under the cursor, as it is now."""
        return self.scene.fleet.node(self.cursor) if self.cursor else None

    def part(self) -> Part | None:
        """The part under the cursor, when the cursor is inside a node."""
        node = self.current()
        if node is None or not self._inside:
            return None
        return next((p for p in parts(node) if p.id == self._parts.id), None)

    def _engine(self) -> Engine | None:
        part, node = self.part(), self.current()
        if part is None or node is None or part.kind != "engine":
            return None
        return next((e for e in node.engines if e.id == part.key), None)

    def _device(self) -> Device | None:
        part, node = self.part(), self.current()
        if part is None or node is None:
            return None
        if part.kind == "device":
            return next((d for d in node.devices if d.uuid == part.key), None)
        engine = self._engine()
        if engine is not None and len(engine.devices) == 1:
            return next((d for d in node.devices if d.uuid == engine.devices[0]), None)
        return None

    @property
    def moving(self) -> RowCursor:
        return self._parts if self._inside else self.rows

    # -- drawing --

    def draw(self, width: int, height: int) -> Frame:
        self._select()
        if not self._shown:
            return self._empty(width)
        if width >= WIDE:
            left = min(96, max(60, width * 46 // 100))
            node_list = self._list(left, height)
            edge_style = self.scene.palettes.base.faint
            edge = [Row(1, edge_style).raw("│", 1, edge_style).end()] * height
            detail = self._detail(width - left - 1, height)
            columns = [(node_list.lines, left), (edge, 1), (detail.lines, width - left - 1)]
            hits = [*node_list.hits, *(hit.moved(left + 1, 0) for hit in detail.hits)]
            return Frame(beside(columns, height, self.scene.palettes.base.base), hits)
        if self._inside:
            return self._detail(width, height)
        rows = min(len(self._shown) + 1, max(3, height // 2))
        frame = self._list(width, rows)
        frame.add(self._detail(width, height - rows))
        return frame

    def _select(self) -> None:
        running = requests_by_node(self.scene.fleet)
        self._shown = [
            node
            for node in self.scene.fleet.nodes
            if not self.filter
            or self.filter.passes(
                fields_of(node, running.get(node.name, 0), state_words(self.scene, node))
            )
        ]
        if any(node.name == self._wanted for node in self._shown):
            self.rows.id, self._wanted = self._wanted, ""

    def _empty(self, width: int) -> Frame:
        p = self.scene.palettes.base
        self._inside = False
        self.place_cursor([], 1)
        words = "no node yet: a adds one"
        if self.filter:
            words = "nothing passes the filter: esc clears it"
        return Frame([Row(width, p.base).gap(2).put(words, p.muted).end()])

    def _list(self, width: int, height: int) -> Frame:
        first = self.place_cursor([node.name for node in self._shown], height - 1)
        return draw_nodes(self.scene, self._shown, first, height, width, cursor=self.cursor)

    def _detail(self, width: int, height: int) -> Frame:
        if self._inside:
            # The list may be off screen: its cursor still has to follow what is shown.
            self.place_cursor([node.name for node in self._shown], max(1, height - 1))
        node = self.current()
        if node is None or height < 2:
            return Frame()
        ids = [part.id for part in parts(node)]
        if not ids:
            self._inside = False
        if self._inside:
            self._parts.place(ids, len(ids))
            self.page = max(1, height - 1)
        drawn = draw_node(self.scene, node, width, cursor=self._parts.id if self._inside else "")
        first = self._scrolled(node, drawn, height - 1)
        frame = Frame([title_line(self.scene, node, width, inside=self._inside)])
        for line in drawn[first : first + height - 1]:
            if line.part:
                value = f"part:{ids.index(line.part)}"
                frame.hits.append(Hit(0, len(frame.lines), width, 1, "cursor", value))
            frame.lines.append(line.line)
        below = len(drawn) - first - (height - 1)
        if below > 0 and not self._inside:
            p = self.scene.palettes.base
            more = f"⋮ {count(below + 1, 'more line')}: enter goes in"
            frame.lines[-1] = Row(width, p.base).gap(2).put(more, p.faint).end()
        return frame

    def _scrolled(self, node: Node, drawn: list[DetailLine], rows: int) -> int:
        """The first visible line: what has the cursor, or what is being done, is in view."""
        if self._top_of != node.name:
            self._top_of, self._top = node.name, 0
        wanted = self._parts.id if self._inside else ""
        if not self._inside:
            self._top = 0
            running = next((s.name for s in node.steps if s.state in ("running", "failed")), "")
            wanted = Part("step", running).id if running else ""
        at = [i for i, line in enumerate(drawn) if line.part == wanted] if wanted else []
        if at:
            spare = 0 if self._inside else 2
            if at[0] == next((i for i, line in enumerate(drawn) if line.part), 0):
                self._top = 0
            elif at[0] < self._top:
                self._top = at[0]
            if at[-1] + spare >= self._top + rows:
                self._top = min(at[0], at[-1] + spare - rows + 1)
        self._top = max(0, min(self._top, len(drawn) - rows))
        return self._top

    def crumbs(self) -> str:
        words = f"/{self.filter.text} · " if self.filter else ""
        total = len(self.scene.fleet.nodes)
        shown = f"{len(self._shown)} of {total} nodes" if self.filter else count(total, "node")
        return f"{words}{shown}" + (f" / {clean(self.cursor)}" if self._inside else "")

    # -- what can be done --

    def can(self, action: str) -> bool:
        node = self.current()
        if action == "add_node":
            return True
        if node is None:
            return super().can(action) and action in ("filter_rows", "go_back")
        if action in _REMOTE:
            return node.kind == "ssh"
        possible = {
            "abort_provision": lambda: is_running(node),
            "retry_node": lambda: self._can_retry(node),
            "restart_engine": lambda: bool(self._restartable(node)),
            "set_role": lambda: node.kind != "endpoint" and bool(node.devices),
            "adopt_endpoint": lambda: (
                bool(node.foreign) or adopted_from(node, self.scene.fleet) is not None
            ),
            "drain_node": lambda: not node.draining,
        }.get(action)
        return super().can(action) and (possible is None or possible())

    def _can_retry(self, node: Node) -> bool:
        engine = self._engine()
        faulty = engine is not None and engine.state in ("backoff", "failed")
        unreached = node.state != "ready" and not is_new(node)
        return (has_failed(node) or faulty or unreached) and not is_running(node)

    def _restartable(self, node: Node) -> list[Engine]:
        """The engine under the cursor, those of the GPU under it, or all of the node."""
        engine, device = self._engine(), self._device()
        if engine is not None:
            found: tuple[Engine, ...] = (engine,)
        else:
            found = engines_on(node, device) if device is not None else node.engines
        return [e for e in found if e.kind != "endpoint"]

    def _on_node(self, action: str, do: Callable[[Node], None], refusal: str) -> None:
        node = self.current()
        if node is None:
            self.host.say("no node is chosen", severity="warning")
        elif not self.can(action):
            self.host.say(refusal.format(name=node.name), severity="warning")
        else:
            do(node)

    def do_add_node(self) -> None:
        def added(name: str) -> None:
            self._wanted, self._inside = name, False

        self._actions.add(added)

    def do_provision_node(self) -> None:
        refusal = "{name} is not reached over SSH: there is nothing to provision"
        self._on_node("provision_node", self._actions.provision, refusal)

    def do_uninstall_node(self) -> None:
        refusal = "{name} is not reached over SSH: nothing of ours was installed"
        self._on_node("uninstall_node", self._actions.uninstall, refusal)

    def do_forget_node(self) -> None:
        refusal = "{name} stands in the configuration as it is: take it out there"
        self._on_node("forget_node", self._actions.forget, refusal)

    def do_abort_provision(self) -> None:
        self._on_node("abort_provision", self._actions.abort, "nothing is being done to {name}")

    def do_retry_node(self) -> None:
        engine = self._engine()
        refusal = "nothing of {name} has failed"
        self._on_node("retry_node", lambda node: self._actions.retry(node, engine), refusal)

    def do_cordon_node(self) -> None:
        self._on_node("cordon_node", self._actions.cordon, "")

    def do_drain_node(self) -> None:
        self._on_node("drain_node", self._actions.drain, "{name} is draining already")

    def do_restart_engine(self) -> None:
        def restart(node: Node) -> None:
            engines = self._restartable(node)
            self._actions.choose_engine("Restart an engine", engines, self._actions.restart)

        self._on_node("restart_engine", restart, "{name} has no engine of ours to restart")

    def do_set_role(self) -> None:
        def choose(node: Node) -> None:
            device = self._device()
            if device is not None:
                self._actions.role(node, device)
            else:
                self._actions.choose_device(node, lambda d: self._actions.role(node, d))

        self._on_node("set_role", choose, "{name} has no GPU to give a role")

    def do_adopt_endpoint(self) -> None:
        def adopt(node: Node) -> None:
            part, adopted = self.part(), adopted_from(node, self.scene.fleet)
            if adopted is not None:
                self._actions.release(*adopted)
            elif part is not None and part.kind == "foreign":
                self._actions.adopt(node, [part.key])
            else:
                self._actions.adopt(node, node.foreign)

        self._on_node("adopt_endpoint", adopt, "no other Ollama was found on {name}")

    def do_copy_ssh(self) -> None:
        def copy(node: Node) -> None:
            # What lands in a shell when pasted must be one line without controls.
            command = clean(node.ssh_command or f"ssh {node.host or node.name}")
            self.host.copy(command)
            self.host.say(f"copied: {command}")

        self._on_node("copy_ssh", copy, "{name} is not reached over SSH")

    def do_open_log(self) -> None:
        node, engine = self.current(), self._engine()
        if node is None:
            return
        device = self._device()
        if engine is None and device is not None and (there := engines_on(node, device)):
            engine = there[0]
        if node.kind == "endpoint" or (engine is not None and engine.kind == "endpoint"):
            self.host.say("its log is not ours to read", severity="warning")
            return
        self.host.open_log(node.name, engine.id if engine else "")

    # -- looking --

    def do_open_node(self) -> None:
        """Into the node; inside, everything about the part under the cursor."""
        node = self.current()
        if node is None:
            return
        if node.question is not None and not self.host.read_only and not self._inside:
            self.host.ask_about_key(node)
        elif self._inside or not parts(node):
            self.do_describe_node()
        else:
            self._inside = True
            self._parts = RowCursor()
            stopped = next((s.name for s in node.steps if s.state in ("running", "failed")), "")
            self._parts.id = Part("step", stopped).id if stopped else parts(node)[0].id
            self.host.redraw()

    def do_cursor_right(self) -> None:
        if not self._inside:
            node = self.current()
            if node is not None and parts(node):
                self.do_open_node()

    def do_cursor_left(self) -> None:
        self.back()

    def back(self) -> None:
        self._inside = False
        self.host.redraw()

    def do_describe_node(self) -> None:
        node, part = self.current(), self.part()
        if node is None:
            return
        name = node.name
        title = f"{name}: {part.key}" if part is not None and part.kind == "step" else name
        if part is not None and part.kind == "engine":
            title = part.key

        def content(width: int, p: Palette) -> list[Line]:
            now = self.scene.fleet.node(name)
            gone = [("node", "is gone")]
            pairs = gone if now is None else part_facts(self.scene.fleet, now, part)
            return facts(pairs, width, p)

        self.host.ask(Sheet(self.host, clean(title), content), lambda _: None)

    def click(self, hit: Hit, *, double: bool) -> None:
        kind, _, index = hit.value.partition(":")
        if kind == "node":
            self._inside = False
            self.rows.pick(int(index))
        elif (node := self.current()) is not None and int(index) < len(parts(node)):
            self._inside = True
            self._parts.id = parts(node)[int(index)].id
        if double:
            self.do_open_node()
        self.host.redraw()
