"""Tables whose columns give way: fixed ones keep their width, flexible ones share the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from olol_tui.render.line import Line, Row
from olol_tui.render.palette import Palette
from olol_tui.render.text import Align


@dataclass(frozen=True, slots=True)
class Column:
    """One column."""

    key: str
    title: str
    width: int
    """Cells it needs; a flexible one needs at least these."""
    align: Align = "<"
    grow: int = 0
    """Cells it may take beyond its width."""
    keep: int = 9
    """The higher, the longer it stays when the terminal narrows."""


Fitted = tuple[tuple[Column, int], ...]
"""Columns that are shown, each with its width."""


def fit_columns(columns: Sequence[Column], width: int, gap: int = 1) -> Fitted:
    """The columns that fit into `width`, the least important dropped first."""
    shown = list(columns)
    while len(shown) > 1 and sum(c.width + gap for c in shown) - gap > width:
        shown.remove(min(shown, key=lambda c: c.keep))
    spare = width - (sum(c.width + gap for c in shown) - gap)
    widths = {c.key: c.width for c in shown}
    growing = [c for c in shown if c.grow]
    while spare > 0 and growing:
        for column in tuple(growing):
            if spare <= 0:
                break
            widths[column.key] += 1
            spare -= 1
            if widths[column.key] >= column.width + column.grow:
                growing.remove(column)
    return tuple((c, widths[c.key]) for c in shown)


def head_line(fitted: Fitted, width: int, palette: Palette, margin: int = 2, gap: int = 1) -> Line:
    """The line of titles."""
    row = Row(width, palette.base).gap(margin)
    for index, (column, cells_wide) in enumerate(fitted):
        row.gap(gap if index else 0)
        row.put(column.title, palette.muted, cells_wide, column.align)
    return row.end()
