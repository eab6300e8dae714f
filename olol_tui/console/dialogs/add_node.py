"""Add a node: a host of the SSH configuration or one that is typed, a name, maybe a lab."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from textual.events import Key

from olol_tui.console.dialogs.base import Dialog, DialogHost
from olol_tui.console.line_edit import LineEdit
from olol_tui.console.node_wish import name_for, parse_where, wish
from olol_tui.fleet.commands import AddNode
from olol_tui.render.box import boxed, buttons
from olol_tui.render.line import Frame, Hit, Line, Row, blank
from olol_tui.render.palette import Palette
from olol_tui.ssh.config_hosts import SshHost

Typed = Literal["where", "name", "simulated"]
TYPED: tuple[Typed, ...] = ("where", "name", "simulated")
Field = Literal[Typed, "buttons"]
FIELDS: tuple[Field, ...] = (*TYPED, "buttons")
LABELS: dict[Typed, str] = {"where": "host", "name": "name", "simulated": "simulate"}
PLACEHOLDERS: dict[Typed, str] = {
    "where": " filter, or user@host:port",
    "simulated": " no: the GPUs it has; 4 or 4x24GiB for a lab",
}
ANSWERS = (("provision", "Add and provision"), ("add", "Add"), ("cancel", "Cancel"))
LABEL_WIDTH = 10
HOST_ROWS = 7


@dataclass(frozen=True, slots=True)
class Added:
    """What was decided."""

    command: AddNode
    provision: bool


class AddNodeDialog(Dialog[Added]):
    """The result is the node to add, and whether it is provisioned at once."""

    wanted_width = 84

    def __init__(self, host: DialogHost, read_hosts: Callable[[], tuple[SshHost, ...]]) -> None:
        """`read_hosts` is called on a thread: it reads files."""
        super().__init__(host)
        self._read_hosts = read_hosts
        self._hosts: tuple[SshHost, ...] | None = None
        self._edits = {field: LineEdit() for field in TYPED}
        self._field: Field = "where"
        self._cursor = 0
        """0 is what was typed, when that is a host; then the hosts that match it."""
        self._first = 0
        self._button = 0
        self._refusal = ""
        self._reading: asyncio.Task[None] | None = None

    def on_mount(self) -> None:
        super().on_mount()
        self._reading = asyncio.create_task(self._read())

    def on_unmount(self) -> None:
        if self._reading is not None:
            self._reading.cancel()

    async def _read(self) -> None:
        self._hosts = await asyncio.to_thread(self._read_hosts)
        if not self._typed and not self._cursor:
            # A host that is a node already is not what somebody wants to add.
            new = (at for at, host in enumerate(self._hosts) if not self._already(host, host.name))
            self._cursor = next(new, 0)
        self.repaint()

    # -- what is meant --

    @property
    def _typed(self) -> str:
        return self._edits["where"].text.strip()

    def _known(self) -> dict[str, SshHost]:
        return {host.name: host for host in self._hosts or ()}

    def _choices(self) -> list[tuple[str, SshHost | None]]:
        """Hosts that match what was typed; the typed text itself when it is none of them."""
        text = self._typed.lower()
        found = [
            (host.name, host)
            for host in self._hosts or ()
            if all(word in f"{host.name} {host.address}".lower() for word in text.split())
        ]
        if self._typed and self._typed not in self._known():
            try:
                parse_where(self._typed)
            except ValueError:
                return list(found)
            return [*found, (self._typed, None)]
        # A name typed in full is meant, whatever else begins like it.
        found.sort(key=lambda choice: choice[0] != self._typed)
        return list(found)

    def _chosen(self) -> str:
        choices = self._choices()
        return choices[min(self._cursor, len(choices) - 1)][0] if choices else self._typed

    def _taken(self) -> set[str]:
        return {node.name for node in self.scene.fleet.nodes}

    def _already(self, host: SshHost | None, text: str) -> str:
        """The node that this host is already."""
        for node in self.scene.fleet.nodes:
            place = node.host.rpartition("@")[2]
            names = {text} if host is None else {host.name, host.hostname}
            if node.kind == "ssh" and (node.name in names or place in names):
                return node.name
        return ""

    def _default_name(self) -> str:
        text = self._chosen()
        if text in self._known():
            return name_for(text)
        try:
            return name_for(parse_where(text).host)
        except ValueError:
            return ""

    # -- drawing --

    def draw(self, width: int, height: int) -> Frame:
        p, inner = self.palettes.panel, width - 4
        frame = Frame()
        frame.add(self._field_line("where", inner, p))
        self._list(frame, inner, max(2, min(HOST_ROWS, height - 11)))
        frame.lines.append(blank(inner, p.base))
        frame.add(self._field_line("name", inner, p))
        frame.add(self._field_line("simulated", inner, p))
        row = Row(inner, p.base).gap(2).put(self._refusal, p.warn, inner - 2)
        frame.lines.append(row.end())
        focus = self._button if self._field == "buttons" else -1
        frame.add(buttons(list(ANSWERS), focus, inner, p))
        hint = "tab next  ↑↓ host  enter go on  esc cancel"
        return boxed(frame, width, p, title="Add a node", hint=hint)

    def _field_line(self, field: Typed, width: int, p: Palette) -> Frame:
        focused = self._field == field
        row = Row(width, p.base).put("› " if focused else "  ", p.strong)
        row.put(LABELS[field], p.strong if focused else p.muted, LABEL_WIDTH)
        edit = self._edits[field]
        placeholder = PLACEHOLDERS.get(field, "")
        if field == "name":
            placeholder = f" {self._default_name()}" if self._default_name() else ""
        if focused:
            edit.draw(row, p, placeholder)
        else:
            row.put(edit.text or placeholder.strip(), p.base if edit.text else p.faint, row.left)
        hit = Hit(0, 0, width, 1, "choice", f"field:{field}")
        return Frame([row.end()], [hit])

    def _list(self, frame: Frame, inner: int, rows: int) -> None:
        choices = self._choices()
        self._cursor = max(0, min(self._cursor, len(choices) - 1))
        self._first = max(0, min(self._first, len(choices) - rows))
        if self._cursor < self._first:
            self._first = self._cursor
        elif self._cursor >= self._first + rows:
            self._first = self._cursor - rows + 1
        p = self.palettes.panel
        shown = choices[self._first : self._first + rows]
        for offset, (text, host) in enumerate(shown):
            index = self._first + offset
            here = index == self._cursor
            palette = self.palettes.panel_cursor if here else p
            frame.hits.append(Hit(0, len(frame.lines), inner, 1, "choice", f"host:{index}"))
            frame.lines.append(self._host_line(text, host, inner, palette, here=here))
        if not shown:
            words = "reading ~/.ssh/config" if self._hosts is None else self._nothing()
            row = Row(inner, p.base).gap(2 + LABEL_WIDTH).put(words, p.muted)
            frame.lines.append(row.end())
        filler = rows - max(1, len(shown))
        frame.lines.extend(blank(inner, p.base) for _ in range(filler))

    def _nothing(self) -> str:
        if self._typed:
            return "no such host in ~/.ssh/config, and no host to dial"
        return "~/.ssh/config names no host: type user@host:port"

    def _host_line(
        self, text: str, host: SshHost | None, width: int, p: Palette, *, here: bool
    ) -> Line:
        row = Row(width, p.base).gap(LABEL_WIDTH).put("▶ " if here else "  ", p.strong)
        row.put(text, p.bright if here else p.base, 22 if host else 40).gap()
        already = self._already(host, text)
        room = max(0, row.left - (len(already) + 14 if already else 1))
        row.put(host.address if host else "as typed", p.muted, room)
        if already:
            row.gap().put(f"is node {already}", p.warn, row.left)
        return row.end()

    # -- keys --

    def pressed(self, key: Key) -> None:
        self._refusal = ""
        name = key.key
        if name in ("tab", "shift+tab"):
            self._tab(1 if name == "tab" else -1)
        elif self._field == "buttons":
            if name in ("left", "right"):
                self._button = (self._button + (1 if name == "right" else -1)) % len(ANSWERS)
            elif name == "up":
                self._field = "simulated"
            elif name == "enter":
                self._take(ANSWERS[self._button][0])
        elif name == "enter":
            # In a field: first to the buttons, so that one Enter too many adds nothing.
            self._field = "buttons"
            self._check()
        elif self._field == "where" and name in ("down", "ctrl+n", "up", "ctrl+p"):
            self._cursor += 1 if name in ("down", "ctrl+n") else -1
        elif name in ("down", "up"):
            self._tab(1 if name == "down" else -1)
        elif self._edits[self._field].handle(key) and self._field == "where":
            self._cursor = self._first = 0

    def _tab(self, by: int) -> None:
        if self._field == "buttons" and 0 <= self._button + by < len(ANSWERS):
            self._button += by
            return
        self._field = FIELDS[(FIELDS.index(self._field) + by) % len(FIELDS)]
        if self._field == "buttons":
            self._button = 0 if by > 0 else len(ANSWERS) - 1

    def pasted(self, text: str) -> None:
        if self._field != "buttons":
            self._edits[self._field].insert(text.strip())
            self._cursor = self._first = 0

    def chosen(self, value: str, *, double: bool) -> None:
        kind, _, rest = value.partition(":")
        if kind == "host":
            self._field, self._cursor = "where", int(rest)
        elif kind == "field":
            self._field = next(field for field in FIELDS if field == rest)
        else:
            self._take(value)

    def scrolled(self, rows: int) -> None:
        self._cursor += 1 if rows > 0 else -1

    def _check(self) -> AddNode | None:
        """The command; a refusal is shown instead."""
        try:
            return wish(
                self._chosen(),
                self._edits["name"].text,
                self._edits["simulated"].text,
                known=self._known().keys(),
                taken=self._taken(),
            )
        except ValueError as error:
            self._refusal = str(error)
            return None

    def _take(self, value: str) -> None:
        if value == "cancel":
            self.dismiss(None)
        elif (command := self._check()) is not None:
            self.dismiss(Added(command, provision=value == "provision"))
