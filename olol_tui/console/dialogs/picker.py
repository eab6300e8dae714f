"""Choose one of many, filtered as you type."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from textual.events import Key

from olol_tui.console.dialogs.base import Dialog, DialogHost
from olol_tui.console.line_edit import LineEdit
from olol_tui.render.box import boxed
from olol_tui.render.filters import parse
from olol_tui.render.line import Frame, Hit, Line, Row, blank
from olol_tui.render.palette import Palette


@dataclass(frozen=True, slots=True)
class Item:
    """One row of a picker."""

    value: str
    words: str
    """What the filter searches."""
    draw: Callable[[int, Palette], Line]
    refusal: str = ""
    """Why it cannot be chosen; empty when it can."""


Items = Callable[[], Sequence[Item]]
"""Asked on every frame, so that figures stay live while the window is open."""


class Picker(Dialog[str]):
    """The result is the value of the chosen item."""

    wanted_width = 92

    def __init__(
        self,
        host: DialogHost,
        title: str,
        items: Items,
        *,
        heading: Callable[[int, Palette], Line] | None = None,
        detail: Callable[[str, int, Palette], list[Line]] | None = None,
        hint: str = "enter choose",
        empty: str = "nothing to choose",
    ) -> None:
        """Pick.

        Args:
            heading: the line of column titles.
            detail: lines about the row under the cursor, always as many.
            empty: said when there is no item at all.
        """
        super().__init__(host)
        self._title = title
        self._items = items
        self._heading = heading
        self._detail = detail
        self._hint = hint
        self._empty = empty
        self._edit = LineEdit()
        self._cursor = next((i for i, item in enumerate(items()) if not item.refusal), 0)
        self._first = 0
        self._refusal = ""
        self._shown: list[Item] = []
        self._rows = 8

    def draw(self, width: int, height: int) -> Frame:
        p, inner = self.palettes.panel, width - 4
        everything = list(self._items())
        wanted = parse(self._edit.text)
        self._shown = [i for i in everything if wanted.passes({"name": i.words})]
        self._cursor = max(0, min(self._cursor, len(self._shown) - 1))
        current = self._shown[self._cursor] if self._shown else None
        row = Row(inner, p.base).put("› ", p.strong)
        self._edit.draw(row, p, " type to filter")
        frame = Frame([row.end()])
        if self._heading is not None:
            frame.lines.append(self._indented(self._heading(inner - 2, p), p))
        detail = self._detail(current.value, inner, p) if self._detail and current else []
        fixed = len(frame.lines) + 4 + (len(detail) + 1 if detail else 0)
        self._rows = max(1, min(len(everything) or 1, height - fixed, 16))
        self._scroll()
        self._list(frame, inner, everything)
        if detail:
            frame.lines.append(blank(inner, p.base))
            frame.lines.extend(detail)
        refusal = Row(inner, p.base).put(self._refusal, p.warn, inner)
        frame.lines.append(refusal.end())
        hint = f"{len(self._shown)} of {len(everything)}  ↑↓ move  {self._hint}  esc cancel"
        return boxed(frame, width, p, title=self._title, hint=hint)

    def _list(self, frame: Frame, inner: int, everything: Sequence[Item]) -> None:
        p = self.palettes.panel
        visible = self._shown[self._first : self._first + self._rows]
        for offset, item in enumerate(visible):
            index = self._first + offset
            chosen = index == self._cursor
            palette = self.palettes.panel_cursor if chosen else p
            mark = Row(2, palette.base).put("▶ " if chosen else "  ", palette.strong).end()
            frame.hits.append(Hit(0, len(frame.lines), inner, 1, "choice", str(index)))
            frame.lines.append([*mark, *item.draw(inner - 2, palette)])
        for offset in range(self._rows - len(visible)):
            words = "" if offset or visible else (self._empty if not everything else "no match")
            frame.lines.append(Row(inner, p.base).gap(2).put(words, p.muted).end())

    @staticmethod
    def _indented(line: Line, palette: Palette) -> Line:
        return [*blank(2, palette.base), *line]

    def _scroll(self) -> None:
        self._first = max(0, min(self._first, len(self._shown) - self._rows))
        if self._cursor < self._first:
            self._first = self._cursor
        elif self._cursor >= self._first + self._rows:
            self._first = self._cursor - self._rows + 1

    def pressed(self, key: Key) -> None:
        self._refusal = ""
        if key.key in ("down", "ctrl+n", "tab"):
            self._cursor += 1
        elif key.key in ("up", "ctrl+p", "shift+tab"):
            self._cursor -= 1
        elif key.key == "pagedown":
            self._cursor += self._rows
        elif key.key == "pageup":
            self._cursor -= self._rows
        elif key.key == "enter":
            self._take()
        elif self._edit.handle(key):
            self._cursor = self._first = 0

    def pasted(self, text: str) -> None:
        self._edit.insert(text)

    def chosen(self, value: str, *, double: bool) -> None:
        self._cursor = int(value)
        if double:
            self._take()

    def scrolled(self, rows: int) -> None:
        self._cursor += 1 if rows > 0 else -1

    def _take(self) -> None:
        if not self._shown:
            return
        item = self._shown[self._cursor]
        if item.refusal:
            self._refusal = item.refusal
        else:
            self.dismiss(item.value)
