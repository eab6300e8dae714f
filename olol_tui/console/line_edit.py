"""A line of text being typed, drawn on the canvas like everything else."""

from __future__ import annotations

from textual.events import Key

from olol_tui.render.line import Row
from olol_tui.render.palette import Palette
from olol_tui.render.text import clean

_WORD_BREAKS = " :/-."


class LineEdit:
    """Text with a cursor; knows the usual editing keys."""

    def __init__(self, text: str = "") -> None:
        self.text = text
        self._cursor = len(text)

    def handle(self, key: Key) -> bool:
        """Apply a key; True when it was an editing key or a character."""
        name, at = key.key, self._cursor
        if name == "backspace":
            self._replace(max(0, at - 1), at)
        elif name == "delete":
            self._replace(at, at + 1)
        elif name == "ctrl+u":
            self._replace(0, at)
        elif name in ("ctrl+w", "alt+backspace"):
            self._replace(self._word_start(), at)
        elif name == "left":
            self._cursor = max(0, at - 1)
        elif name == "right":
            self._cursor = min(len(self.text), at + 1)
        elif name in ("home", "ctrl+a"):
            self._cursor = 0
        elif name in ("end", "ctrl+e"):
            self._cursor = len(self.text)
        elif key.character and key.is_printable:
            self.insert(key.character)
        else:
            return False
        return True

    def insert(self, text: str) -> None:
        """Put text at the cursor: a character, or what was pasted."""
        text = clean(text)
        at = self._cursor
        self.text = self.text[:at] + text + self.text[at:]
        self._cursor = at + len(text)

    def _word_start(self) -> int:
        at = self._cursor
        while at and self.text[at - 1] in _WORD_BREAKS:
            at -= 1
        while at and self.text[at - 1] not in _WORD_BREAKS:
            at -= 1
        return at

    def _replace(self, start: int, end: int) -> None:
        self.text = self.text[:start] + self.text[end:]
        self._cursor = start

    def draw(self, row: Row, palette: Palette, placeholder: str = "") -> None:
        """The text with a block where the cursor stands."""
        before, after = self.text[: self._cursor], self.text[self._cursor :]
        room = max(4, row.left - 2)
        row.put(before[-room:], palette.bright)
        row.put(after[:1] or " ", palette.chip).put(after[1:], palette.bright)
        if not self.text:
            row.put(placeholder, palette.faint)
