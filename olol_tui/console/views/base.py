"""What a screen of the console is, and what it may ask of the app."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any, Protocol

from textual.events import Key
from textual.screen import ModalScreen

from olol_tui.console.line_edit import LineEdit
from olol_tui.fleet.commands import AnyCommand
from olol_tui.fleet.snapshot import Node
from olol_tui.render.filters import Filter, parse
from olol_tui.render.line import Frame, Hit, Line, Row
from olol_tui.render.scene import Scene


class Host(Protocol):
    """The app, as views see it."""

    @property
    def scene(self) -> Scene: ...

    @property
    def read_only(self) -> bool: ...

    def redraw(self) -> None: ...

    @property
    def ssh_config(self) -> Path | None:
        """The SSH configuration to read hosts from; None: the user's."""
        ...

    def submit(self, *commands: AnyCommand) -> None:
        """Send wishes in their order; a refusal becomes a toast, and ends the series."""
        ...

    def say(self, text: str, *, severity: str = "information") -> None: ...

    def ask(
        self,
        dialog: ModalScreen[Any],
        then: Callable[[Any], None],
        *,
        cancelled: Callable[[], None] | None = None,
    ) -> None:
        """Show a dialog; `then` gets its result unless it was cancelled."""
        ...

    def ask_about_key(self, node: Node) -> None:
        """Open the question about a node's unknown host key."""
        ...

    def copy(self, text: str) -> None:
        """Into the clipboard of the operator's terminal."""
        ...

    def open_log(self, node: str, engine: str) -> None:
        """Go to the log screen; an empty engine is the node's agent."""
        ...

    def show_view(self, name: str) -> None: ...

    def logs(self, node: str, engine: str, *, tail: int) -> AsyncIterator[str]: ...

    def chore(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run something small of the interface; its failure is shown, not fatal."""
        ...


class View:
    """One screen. `draw` is called with the size of the body on every frame."""

    name = ""
    key = ""
    title = ""
    example = "model, state:queued, util>80, !word"
    """Shown where a filter is typed."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.filter = Filter()
        self._typing: LineEdit | None = None
        self._typed_before = Filter()
        self.page = 10
        """Rows seen at once, as of the last frame."""

    @property
    def scene(self) -> Scene:
        return self.host.scene

    def draw(self, width: int, height: int) -> Frame:
        raise NotImplementedError

    def crumbs(self) -> str:
        """Where we are and how it is filtered and sorted, at the end of the tab line."""
        return self.name

    def can(self, action: str) -> bool:
        """False while an action has nothing to act on."""
        return hasattr(self, f"do_{action}")

    def perform(self, action: str) -> bool:
        """Carry out an action by its name; False when this view does not know it."""
        method = getattr(self, f"do_{action}", None)
        if method is None:
            return False
        method()
        return True

    def click(self, hit: Hit, *, double: bool) -> None:
        """A click on something the frame named."""

    def scroll(self, rows: int) -> None:
        """The wheel."""

    def opened(self) -> None:
        """The view is now the one on screen."""

    def closed(self) -> None:
        """Another view is."""

    def tick(self) -> None:
        """A new snapshot is there."""

    # -- the status line and what is typed there --

    def prompt(self, width: int) -> Line | None:
        """What the status line shows while the view waits for keys."""
        if self._typing is None:
            return None
        p = self.scene.palettes.base
        row = Row(width, p.base).gap().put("/", p.strong)
        self._typing.draw(row, p, f" {self.example}")
        return row.end()

    def intercept(self, key: Key) -> bool:
        """See a key before the bindings; True when it was taken."""
        if self._typing is None:
            return False
        if key.key == "enter":
            self._typing = None
        elif key.key in ("escape", "ctrl+c"):
            self._typing = None
            self._set_filter(self._typed_before)
        elif self._typing.handle(key):
            self._set_filter(parse(self._typing.text))
        self.host.redraw()
        return True

    def paste(self, text: str) -> None:
        if self._typing is not None:
            self._typing.insert(text)
            self._set_filter(parse(self._typing.text))
            self.host.redraw()

    def do_filter_rows(self) -> None:
        self._typed_before = self.filter
        self._typing = LineEdit(self.filter.text)
        self.host.redraw()

    def do_go_back(self) -> None:
        if self.filter:
            self._set_filter(Filter())
            self.host.redraw()
        else:
            self.back()

    def back(self) -> None:
        """Escape without a filter."""

    def _set_filter(self, new: Filter) -> None:
        self.filter = new
