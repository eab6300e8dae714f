"""Log lines as an operator reads them: the bad ones stand out."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rich.style import Style

from olol_tui.render.line import Line, Row
from olol_tui.render.palette import Palette
from olol_tui.render.text import cells, clean, fit

_BAD = re.compile(r"\b(error|err|fatal|panic|failed|exception|traceback|out of memory)\b", re.I)
_WARN = re.compile(r"\bwarn(ing)?\b", re.I)
_DULL = re.compile(r"\b(debug|trace)\b", re.I)


def line_style(text: str, p: Palette) -> Style:
    """By the level a line names."""
    if _BAD.search(text):
        return p.crit
    if _WARN.search(text):
        return p.warn
    return p.muted if _DULL.search(text) else p.base


def _pieces(text: str, width: int) -> list[str]:
    """A cleaned line cut into parts of `width` cells; at least one, maybe empty."""
    if cells(text) <= width:
        return [text]
    if text.isascii():
        return [text[at : at + width] for at in range(0, len(text), width)]
    parts, part, used = [], "", 0
    for character in text:
        wide = cells(character)
        if used + wide > width:
            parts.append(part)
            part, used = "", 0
        part += character
        used += wide
    return [*parts, part]


def draw_log(lines: Sequence[str], width: int, rows: int, p: Palette, *, wrap: bool) -> list[Line]:
    """The last `rows` terminal rows of the given lines."""
    inner = max(10, width - 2)
    drawn: list[Line] = []
    for text in reversed(lines):
        text = clean(text)
        style = line_style(text, p)
        parts = _pieces(text, inner) if wrap else [fit(text, inner)]
        for part in reversed(parts):
            drawn.append(Row(width, p.base).gap().put(part, style).end())
            if len(drawn) >= rows:
                return drawn[::-1]
    return drawn[::-1]
