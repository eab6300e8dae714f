"""Something to read: the help page, or everything known about one row."""

from __future__ import annotations

from collections.abc import Callable

from textual.events import Key

from olol_tui.console.dialogs.base import Dialog, DialogHost
from olol_tui.render.box import boxed
from olol_tui.render.line import Frame, Line
from olol_tui.render.palette import Palette

Content = Callable[[int, Palette], list[Line]]
"""Lines for an inner width; asked on every frame."""


class Sheet(Dialog[None]):
    """Scrolls; any closing key ends it."""

    def __init__(self, host: DialogHost, title: str, content: Content, *, width: int = 92) -> None:
        super().__init__(host)
        self._title = title
        self._content = content
        self.wanted_width = width
        self._first = 0
        self._rows = 1
        self._total = 1

    def draw(self, width: int, height: int) -> Frame:
        p = self.palettes.panel
        lines = self._content(width - 4, p)
        self._total = len(lines)
        self._rows = max(1, min(len(lines), height - 2))
        self._first = max(0, min(self._first, self._total - self._rows))
        shown = lines[self._first : self._first + self._rows]
        hint = "esc close"
        if self._rows < self._total:
            last = self._first + self._rows
            hint = f"{self._first + 1}-{last} of {self._total}  ↑↓ scroll  {hint}"
        return boxed(Frame(shown), width, p, title=self._title, hint=hint)

    def pressed(self, key: Key) -> None:
        step = {
            "down": 1,
            "j": 1,
            "up": -1,
            "k": -1,
            "pagedown": self._rows,
            "space": self._rows,
            "pageup": -self._rows,
            "home": -self._total,
            "end": self._total,
        }.get(key.key)
        if step is not None:
            self._first += step
        elif key.key in ("enter", "q", "question_mark", "d"):
            self.dismiss(None)

    def scrolled(self, rows: int) -> None:
        self._first += rows
